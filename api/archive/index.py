"""The result of an ingestion, to be kept beside the data set: a row of a table for each image."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from api.archive.model import ImageRecord, IngestResult, Refusal
from api.archive.table import ROW, WORDS, Records

FORMAT = 1
"""Of the table: what is added to a row makes another."""
_NOT_READABLE = (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)

_OLDER = TypeAdapter(IngestResult)
"""Of what was ingested before there was a table: JSON, without places."""


def dump_index(result: IngestResult) -> bytes:
    """A NumPy archive; the same result gives the same bytes. Every record has its place."""
    words = [sorted({getattr(record, field) for record in result.records}) for field in WORDS]
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
            *(known[getattr(record, field)] for known, field in zip(numbers, WORDS, strict=True)),
            *(record.height, record.width, record.channels),
            bytes.fromhex(record.pixels_sha256),
            *astuple(record.place),
        )

    rows = np.fromiter(map(row, result.records), ROW, len(result.records))
    header = {
        "format": FORMAT,
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
            records = _records(table["rows"], table["text"].tobytes(), header)
        refusals = tuple(Refusal(**refusal) for refusal in header["refusals"])
        return IngestResult(records, refusals, tuple(header["classes"]))
    except _NOT_READABLE as error:
        raise ValueError(f"expected the index of a data set, got: {error}") from error


def _records(rows: npt.NDArray[np.void], text: bytes, header: Mapping[str, Any]) -> Records:
    if header["format"] != FORMAT or rows.dtype != ROW:
        raise ValueError(f"format {header['format']}, rows of {rows.dtype}")
    return Records(rows, text, header["words"])
