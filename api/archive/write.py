"""Writes the archive that leaves the house: the same members, the same bytes."""

import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

from api.archive.names import MANIFEST_NAME

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644
_UNIX = 3


def write(out_file: IO[bytes], members: Iterable[tuple[str, bytes | IO[bytes]]]) -> Iterator[str]:
    """Writes (name, content) pairs as they come, stored, without date, owner or host system.

    Of a content that is a file all is written, from its start.
    Yields each name once it is written; the archive is whole when the iterator is exhausted.
    `out_file` is seekable and empty; zip64 sets in where it must. `manifest.json`, if any, is the
    last member. An exception, or an iterator that is given up, leaves no directory behind: nobody
    takes half an archive for a whole one.

    Raises:
        ValueError: a name twice, or a member behind the manifest.
    """
    archive = zipfile.ZipFile(out_file, "w", zipfile.ZIP_STORED, allowZip64=True)
    written: set[str] = set()
    try:
        for name, content in members:
            _claim(name, written)
            if isinstance(content, bytes):
                archive.writestr(_header(name), content)
            else:
                _copy(archive, _header(name), content)
            yield name
    except BaseException:
        # Without a file, zipfile does not finish the archive when it is collected.
        archive.fp = None
        raise
    archive.close()


def _claim(name: str, written: set[str]) -> None:
    if name in written or MANIFEST_NAME in written:
        raise ValueError(f"expected each name once and {MANIFEST_NAME} last, got {name!r}")
    written.add(name)


def _copy(archive: zipfile.ZipFile, header: zipfile.ZipInfo, content: IO[bytes]) -> None:
    header.file_size = content.seek(0, os.SEEK_END)
    content.seek(0)
    with archive.open(header, "w") as entry:
        shutil.copyfileobj(content, entry)


def _header(name: str) -> zipfile.ZipInfo:
    header = zipfile.ZipInfo(name, _LONG_AGO)
    header.compress_type = zipfile.ZIP_STORED
    header.create_system = _UNIX
    header.external_attr = _REGULAR_FILE << 16
    return header
