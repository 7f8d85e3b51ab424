"""Records as a table: what a million images take 120 MB in, and not 1.6 GB."""

from collections.abc import Sequence
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from api.archive.model import ImageRecord, Place

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


class Records(Sequence[ImageRecord]):
    """Records that are made when they are asked for."""

    def __init__(
        self, rows: npt.NDArray[np.void], text: bytes, words: Sequence[Sequence[str]]
    ) -> None:
        self._rows, self._text = rows, text
        self._words = dict(zip(WORDS, words, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = self._rows["released_name_end"][at - 1].item() if at else 0
        name_end, released_end, split, class_name, source_format, *rest = self._rows[at].item()
        height, width, channels, digest, *place = rest
        name = self._text[start:name_end].decode()
        return ImageRecord(
            name,
            self._words["split"][split],
            self._words["class_name"][class_name],
            height,
            width,
            channels,
            self._words["source_format"][source_format],
            digest.hex(),
            self._text[name_end:released_end].decode() or name,
            Place(*place),
        )

    def sizes(self) -> Numbers:
        """See `sizes`."""
        columns = [self._rows[field] for field in ("height", "width", "channels")]
        return np.stack(columns, axis=1, dtype=np.int64)

    def words(self, field: Field) -> tuple[Sequence[str], Numbers]:
        """See `words`."""
        return self._words[field], self._rows[field].astype(np.int64)


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
