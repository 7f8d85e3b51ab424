"""Records as a table in a file: a million images take 120 MB there, and as objects 1.6 GB."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from api.archive.model import ImageRecord, Place
from api.archive.rows import Rows

Numbers = npt.NDArray[np.int64]
Field = Literal["split", "class_name"]

_PLACE = [
    *(("offset", "<u8"), ("packed_bytes", "<u8"), ("size_bytes", "<u8")),
    *(("crc", "<u4"), ("deflated", "?")),
]
ROW = np.dtype(
    [
        # In the text of all names: where this record's ends, and where the one that it leaves by
        # does, which is empty if it is the same.
        *(("name_end", "<u8"), ("released_name_end", "<u8")),
        *(("split", "u1"), ("class_name", "<u4"), ("source_format", "u1")),
        *(("height", "<u4"), ("width", "<u4"), ("channels", "u1")),
        ("pixels_sha256", "V32"),
        *_PLACE,
    ]
)
WORDS = ("split", "class_name", "source_format")
"""Fields of few values, of which a row has the number."""


@runtime_checkable
class Columns(Protocol):
    """Records whose fields can be had without making them, which takes 4 us each."""

    def sizes(self) -> Numbers:
        """See `sizes`."""

    def words(self, field: Field) -> tuple[Sequence[str], Numbers]:
        """See `words`."""

    def pixel_digests(self) -> Numbers:
        """See `pixel_digests`."""


class Records(Sequence[ImageRecord]):
    """Records that are made when they are asked for."""

    def __init__(
        self,
        rows: npt.NDArray[np.void],
        text: npt.NDArray[np.uint8],
        words: Sequence[Sequence[str]],
    ) -> None:
        self.rows, self.text = rows, text
        self._words = dict(zip(WORDS, words, strict=True))

    @property
    def known_words(self) -> Sequence[Sequence[str]]:
        """Of each of WORDS its values."""
        return list(self._words.values())

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = self.rows["released_name_end"][at - 1].item() if at else 0
        name_end, released_end, split, class_name, source_format, *rest = self.rows[at].item()
        height, width, channels, digest, *place = rest
        name = self._name(start, name_end)
        return ImageRecord(
            name,
            self._words["split"][split],
            self._words["class_name"][class_name],
            height,
            width,
            channels,
            self._words["source_format"][source_format],
            digest.hex(),
            self._name(name_end, released_end) or name,
            Place(*place),
        )

    def _name(self, start: int, end: int) -> str:
        return self.text[start:end].tobytes().decode()

    def sizes(self) -> Numbers:
        """See `sizes`."""
        columns = [self.rows[field] for field in ("height", "width", "channels")]
        return np.stack(columns, axis=1, dtype=np.int64)

    def words(self, field: Field) -> tuple[Sequence[str], Numbers]:
        """See `words`."""
        return self._words[field], self.rows[field].astype(np.int64)

    def pixel_digests(self) -> Numbers:
        """See `pixel_digests`."""
        assert ROW.fields is not None
        _, offset, *_ = ROW.fields["pixels_sha256"]
        return self.rows.getfield(np.dtype("<i8"), offset)


class Table:
    """Takes records one by one; in memory are only the words that differ."""

    def __init__(self) -> None:
        self._rows, self._text = Rows(ROW), Rows(np.uint8)
        self._words: list[dict[str, int]] = [{} for _ in WORDS]

    def append(self, record: ImageRecord) -> None:
        """The next one, which has its place."""
        assert record.place is not None
        name_end = self._add(record.name)
        own = record.released_name != record.name
        released_end = self._add(record.released_name) if own else name_end
        words = (
            known.setdefault(getattr(record, field), len(known))
            for known, field in zip(self._words, WORDS, strict=True)
        )
        size = record.height, record.width, record.channels
        digest = bytes.fromhex(record.pixels_sha256)
        self._rows.append((name_end, released_end, *words, *size, digest, *astuple(record.place)))

    def _add(self, name: str) -> int:
        """Where it ends."""
        self._text.extend(np.frombuffer(name.encode(), np.uint8))
        return len(self._text)

    def close(self) -> None:
        """What was taken stays where it was asked for."""
        self._rows.close()
        self._text.close()

    def records(self) -> Records:
        """What was taken so far."""
        known = [list(words) for words in self._words]
        return Records(self._rows.array(), self._text.array(), known)


def sizes(records: Sequence[ImageRecord]) -> Numbers:
    """(n, 3): height, width and channels of each."""
    if isinstance(records, Columns):
        return records.sizes()
    found = [(record.height, record.width, record.channels) for record in records]
    return np.array(found, np.int64).reshape(-1, 3)


def words(records: Sequence[ImageRecord], field: Field) -> tuple[Sequence[str], Numbers]:
    """The values of a field, and (n): the number of each record's among them."""
    if isinstance(records, Columns):
        return records.words(field)
    found = [getattr(record, field) for record in records]
    known = sorted(set(found))
    number = {word: at for at, word in enumerate(known)}
    return known, np.array([number[word] for word in found], np.int64)


def pixel_digests(records: Sequence[ImageRecord]) -> Numbers:
    """(n): the beginning of each record's `pixels_sha256`, by which equal pixels are found."""
    if isinstance(records, Columns):
        return records.pixel_digests()
    digests = b"".join(bytes.fromhex(record.pixels_sha256)[:8] for record in records)
    return np.frombuffer(digests, "<i8")
