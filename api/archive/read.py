"""Reads an uploaded archive: what it promises, and the whole of it."""

import hashlib
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from api.archive.directory import open_zip
from api.archive.entries import place, read_entry
from api.archive.images import read_pixels
from api.archive.layout import EXPECTED_LAYOUT, sort_out
from api.archive.model import (
    Decoded,
    Entry,
    ImageRecord,
    ImageRefused,
    IngestProgress,
    IngestResult,
    Inspection,
    Limits,
    Place,
    Refusal,
)
from api.archive.names import released_names, shown
from api.archive.safety import check_archive
from api.errors import ArchiveRefused

_FIRST_REASONS = 3


@dataclass(frozen=True, slots=True)
class _Read:
    """A decoded image without its pixels."""

    entry: Entry
    place: Place
    shape: tuple[int, ...]
    source_format: str
    pixels_sha256: str


def open_archive(file: IO[bytes], limits: Limits) -> zipfile.ZipFile:
    """A checked archive to read entries from; names are those of `Entry` and `ImageRecord`.

    Raises:
        ArchiveRefused: the archive as a whole is refused.
    """
    archive = open_zip(file, limits)
    check_archive(archive, limits)
    return archive


def inspect(file: IO[bytes], limits: Limits) -> Inspection:
    """Reads the central directory only, of a seekable file.

    Raises:
        ArchiveRefused: the archive as a whole is refused.
    """
    return _inspect(open_archive(file, limits))


def _inspect(archive: zipfile.ZipFile) -> Inspection:
    return sort_out(info.filename for info in archive.infolist() if not info.is_dir())


def ingest(file: IO[bytes], limits: Limits) -> Iterator[IngestProgress | IngestResult]:
    """Decodes every file: progress after each, last the result.

    Raises:
        ArchiveRefused: the archive as a whole is refused, or TOO_FEW_CLASSES.
    """
    # The directory is let go of before the records are made: it takes as much memory as they do.
    images, refusals = yield from _decode(file, limits)
    yield _result(images, refusals)


def _decode(
    file: IO[bytes], limits: Limits
) -> Generator[IngestProgress, None, tuple[list[_Read], list[Refusal]]]:
    with open_archive(file, limits) as archive:
        inspection = _inspect(archive)
        images: list[_Read] = []
        refusals = list(inspection.refusals)
        for done, entry in enumerate(inspection.entries, start=1):
            read = _read(archive, entry, limits)
            if isinstance(read, Refusal):
                refusals.append(read)
            else:
                images.append(read)
            yield IngestProgress(done, len(inspection.entries))
    return images, refusals


def _read(archive: zipfile.ZipFile, entry: Entry, limits: Limits) -> _Read | Refusal:
    try:
        decoded = read_pixels(read_entry(archive, entry.name, limits), limits)
    except ImageRefused as refused:
        return Refusal(entry.name, refused.code, refused.reason)
    where = place(archive.getinfo(entry.name))
    return _Read(entry, where, decoded.pixels.shape, decoded.source_format, _digest(decoded))


def _digest(decoded: Decoded) -> str:
    return hashlib.sha256(decoded.pixels.tobytes()).hexdigest()


def _result(images: Sequence[_Read], refusals: Sequence[Refusal]) -> IngestResult:
    classes = {image.entry.class_name for image in images if image.entry.split == "train"}
    accepted = [image for image in images if image.entry.class_name in classes]
    untrained = [image.entry for image in images if image.entry.class_name not in classes]
    everything = sorted(
        [*refusals, *(_without_training(entry) for entry in untrained)], key=lambda item: item.name
    )
    _check_classes(classes, everything)
    names = released_names(
        (image.entry.name for image in accepted), (refusal.name for refusal in everything)
    )
    records = tuple(_record(image, names[image.entry.name]) for image in accepted)
    return IngestResult(records, tuple(everything), tuple(sorted(classes)))


def _without_training(entry: Entry) -> Refusal:
    reason = f"Expected training images of class {shown(entry.class_name)}, got none."
    return Refusal(entry.name, "CLASS_WITHOUT_TRAINING_IMAGES", reason)


def _check_classes(classes: set[str], refusals: Sequence[Refusal]) -> None:
    if len(classes) >= 2:
        return
    found = ", ".join(shown(name) for name in classes) or "none"
    telling = [item for item in refusals if item.code != "METADATA_FILE"]
    first = "".join(f" {shown(r.name)}: {r.reason}" for r in telling[:_FIRST_REASONS])
    reasons = f" The first of them:{first}" if first else ""
    raise ArchiveRefused(
        "TOO_FEW_CLASSES",
        f"Expected at least two classes with training images, got {found}. "
        f"{len(refusals)} files were refused.{reasons} {EXPECTED_LAYOUT}",
    )


def _record(image: _Read, released_name: str) -> ImageRecord:
    height, width, channels = image.shape
    return ImageRecord(
        name=image.entry.name,
        split=image.entry.split,
        class_name=image.entry.class_name,
        height=height,
        width=width,
        channels=channels,
        source_format=image.source_format,
        pixels_sha256=image.pixels_sha256,
        released_name=released_name,
        place=image.place,
    )
