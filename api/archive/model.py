"""What the archive's functions take and give: limits, entries, refusals, records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""uint8 (height, width, channels); channels is 1 for grey, 3 for RGB."""

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an upload may ask of us.

    `max_ratio` (uncompressed to compressed bytes, of the whole archive) counts only once the
    archive unpacks to more than `ratio_floor_bytes`: small flat images compress as well as a bomb.
    """

    max_files: int = 1_000_000
    max_uncompressed_bytes: int = 200 * GIBIBYTE
    max_ratio: float = 50
    ratio_floor_bytes: int = 64 * MEBIBYTE
    max_image_pixels: int = 64_000_000
    min_side: int = 8
    max_side: int = 32_768
    max_file_bytes: int = 512 * MEBIBYTE
    max_directory_bytes: int = 512 * MEBIBYTE


_NO_LIMIT = 2**62
UNLIMITED = Limits(
    max_files=_NO_LIMIT,
    max_uncompressed_bytes=_NO_LIMIT,
    max_ratio=_NO_LIMIT,
    max_image_pixels=_NO_LIMIT,
    min_side=1,
    max_file_bytes=_NO_LIMIT,
    max_directory_bytes=_NO_LIMIT,
)
"""For archives that we wrote ourselves: they hold a manifest more, and PNG where JPEG came."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a class folder: perhaps an image. `split` is train, val or test."""

    name: str
    split: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that does not become part of the data set, and why."""

    name: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as a viewer shows it. `source_format` is Pillow's name: JPEG, PNG, ..."""

    pixels: Pixels
    source_format: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies in a zip, and as what: all that reading it takes of the directory."""

    offset: int
    packed_bytes: int
    size_bytes: int
    crc: int
    deflated: bool


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An accepted image: where it came from, what it is, the name under which it leaves.

    `name` finds the entry in the uploaded zip, and so does `place`, which indexes of older data
    sets lack; `pixels_sha256` is the hexadecimal digest of the decoded pixels' raw bytes (rows from
    the top, channels last).
    """

    name: str
    split: str
    class_name: str
    height: int
    width: int
    channels: int
    source_format: str
    pixels_sha256: str
    released_name: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """So many of so many files read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """A data set: records and refusals sorted by name, names of classes with training images."""

    records: Sequence[ImageRecord]
    refusals: tuple[Refusal, ...]
    classes: tuple[str, ...]


class ImageRefused(ValueError):
    """One file can't become part of the data set: an UPPER_SNAKE code and one sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
