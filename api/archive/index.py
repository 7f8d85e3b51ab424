"""The result of an ingestion, to be kept beside the data set: a row of a table for each image."""

import errno
import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from api.archive.model import IngestResult, Refusal
from api.archive.rows import mapped
from api.archive.table import ROW, Records

FORMAT = 1
"""Of the table: what is added to a row makes another."""
PIECE_BYTES = 2**18
_NOT_READABLE = (
    *(ValueError, KeyError, EOFError, TypeError, RuntimeError),
    *(struct.error, zipfile.BadZipFile),
)
_NAME_LENGTHS = struct.Struct("<26x2H")
"""Of a local header, which ends with them."""

_OLDER = TypeAdapter(IngestResult)
"""Of what was ingested before there was a table: JSON, without places."""


def dump_index(result: IngestResult, file: IO[bytes]) -> None:
    """A NumPy archive of what `ingest` or `load_index` gave; the same each time."""
    records = result.records
    assert isinstance(records, Records)
    header = {
        "format": FORMAT,
        "words": records.known_words,
        "refusals": [asdict(refusal) for refusal in result.refusals],
        "classes": result.classes,
    }
    told = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays = {"rows": records.rows, "text": records.text, "header": told}
    with zipfile.ZipFile(file, "w") as archive:  # np.savez would hold 16 MiB at a time, twice
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:  # without a date
                _dump(array, member)


def _dump(array: npt.NDArray[Any], member: IO[bytes]) -> None:
    """As np.save does it, in pieces."""
    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
    step = PIECE_BYTES // array.itemsize
    for at in range(0, len(array), step):
        member.write(array[at : at + step].tobytes())


def load_index(file: IO[bytes]) -> IngestResult:
    """What `dump_index` was given, mapped from a file on disk, which may be closed then.

    Raises:
        ValueError: it is not an index.
    """
    begins = file.read(4)
    file.seek(0)
    if begins.startswith(b"{"):
        return _OLDER.validate_json(file.read())
    try:
        if begins != b"PK\3\4":
            raise ValueError(f"a file that begins with {begins!r}")
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():
                raise ValueError(f"{broken} that is not what was written")
            rows, text, told = (
                _array(file, archive.getinfo(f"{name}.npy")) for name in ("rows", "text", "header")
            )
        header: Mapping[str, Any] = json.loads(told.tobytes())
        records = _records(rows, text, header)
        refusals = tuple(Refusal(**refusal) for refusal in header["refusals"])
        return IngestResult(records, refusals, tuple(header["classes"]))
    except (*_NOT_READABLE, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # EINVAL: it names a place before its own beginning.
        raise ValueError(f"expected the index of a data set, got: {error}") from error


def _array(file: IO[bytes], info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    """One of one dimension, which lies there as it is."""
    file.seek(info.header_offset)
    file.seek(sum(_NAME_LENGTHS.unpack(file.read(_NAME_LENGTHS.size))), 1)
    np.lib.format.read_magic(file)
    (number,), _, dtype = np.lib.format.read_array_header_1_0(file)
    return mapped(file, dtype, file.tell(), number)


def _records(
    rows: npt.NDArray[np.void], text: npt.NDArray[np.uint8], header: Mapping[str, Any]
) -> Records:
    if header["format"] != FORMAT or rows.dtype != ROW:
        raise ValueError(f"format {header['format']}, rows of {rows.dtype}")
    return Records(rows, text, header["words"])
