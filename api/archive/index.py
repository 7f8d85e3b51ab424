"""The result of an ingestion, to be kept beside the data set: a row of a table for each image."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from api.archive.model import ImageRecord, IngestResult, Place, Refusal

_PLACE = [
    *(("offset", "<u8"), ("packed_bytes", "<u8"), ("size_bytes", "<u8")),
    *(("crc", "<u4"), ("deflated", "?")),
]
_ROW = np.dtype(
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
_WORDS = ("split", "class_name", "source_format")
"""Fields of few values, of which a row has the number."""
_NOT_READABLE = (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)

_OLDER = TypeAdapter(IngestResult)
"""Of what was ingested before there was a table: JSON, without places."""

Rows = npt.NDArray[np.void]


class Records(Sequence[ImageRecord]):
    """Records that are made when they are asked for: a million take 120 MB, and not 1.6 GB."""

    def __init__(self, rows: Rows, text: bytes, words: Sequence[Sequence[str]]) -> None:
        self._rows, self._text = rows, text
        self._splits, self._classes, self._formats = words

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
            self._splits[split],
            self._classes[class_name],
            height,
            width,
            channels,
            self._formats[source_format],
            digest.hex(),
            self._text[name_end:released_end].decode() or name,
            Place(*place),
        )


def dump_index(result: IngestResult) -> bytes:
    """A NumPy archive; the same result gives the same bytes. Every record has its place."""
    words = [sorted({getattr(record, field) for record in result.records}) for field in _WORDS]
    numbers = [{word: number for number, word in enumerate(known)} for known in words]
    text = bytearray()

    def row(record: ImageRecord) -> tuple[Any, ...]:
        assert record.place is not None
        text.extend(record.name.encode())
        name_end = len(text)
        if record.released_name != record.name:
            text.extend(record.released_name.encode())
        return (
            *(name_end, len(text)),
            *(known[getattr(record, field)] for known, field in zip(numbers, _WORDS, strict=True)),
            *(record.height, record.width, record.channels),
            bytes.fromhex(record.pixels_sha256),
            *astuple(record.place),
        )

    rows = np.fromiter(map(row, result.records), _ROW, len(result.records))
    header = {
        "words": words,
        "refusals": [asdict(refusal) for refusal in result.refusals],
        "classes": result.classes,
    }
    file = io.BytesIO()
    np.savez(file, rows=rows, text=_bytes(text), header=_bytes(json.dumps(header).encode()))
    return file.getvalue()


def _bytes(data: bytes | bytearray) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def load_index(data: bytes) -> IngestResult:
    """What `dump_index` was given.

    Raises:
        ValueError: it is not an index.
    """
    if data[:1] == b"{":
        return _OLDER.validate_json(data)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as table:
            header: Mapping[str, Any] = json.loads(table["header"].tobytes())
            records = Records(table["rows"], table["text"].tobytes(), header["words"])
        refusals = tuple(Refusal(**refusal) for refusal in header["refusals"])
        return IngestResult(records, refusals, tuple(header["classes"]))
    except _NOT_READABLE as error:
        raise ValueError(f"expected the index of a data set, got: {error}") from error
