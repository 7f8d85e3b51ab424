"""File formats: reads and writes archives of labelled images.

Functions of seekable binary files, pure but for temporary files; no web, no rows, no storage. A
whole archive is refused by `ArchiveRefused`, a file of it by a `Refusal` (inside: `ImageRefused`).

    ingest                an uploaded zip -> its records and refusals
    Catalog, read_placed,
    read_pixels           one file again, later, by the same rules
    encode                pixels -> lossless file
    write                 files -> the same zip each time
    decode_released       the way back, to check what leaves
    dump_index, load_index
    Rows                  what is said of every file, in a file
"""

from api.archive.catalog import Catalog
from api.archive.encode import decode_released, encode
from api.archive.entries import read_placed
from api.archive.images import read_pixels
from api.archive.index import dump_index, load_index
from api.archive.model import (
    UNLIMITED,
    Decoded,
    Entry,
    ImageRecord,
    ImageRefused,
    IngestProgress,
    IngestResult,
    Limits,
    Pixels,
    Place,
    Refusal,
)
from api.archive.names import MANIFEST_NAME
from api.archive.read import ingest
from api.archive.rows import Rows
from api.archive.table import Field, Numbers, pixel_digests, sizes, words
from api.archive.write import write

__all__ = [
    "MANIFEST_NAME",
    "UNLIMITED",
    "Catalog",
    "Decoded",
    "Entry",
    "Field",
    "ImageRecord",
    "ImageRefused",
    "IngestProgress",
    "IngestResult",
    "Limits",
    "Numbers",
    "Pixels",
    "Place",
    "Refusal",
    "Rows",
    "decode_released",
    "dump_index",
    "encode",
    "ingest",
    "load_index",
    "pixel_digests",
    "read_pixels",
    "read_placed",
    "sizes",
    "words",
    "write",
]
