"""Writes the archive that leaves the house: the same members, the same bytes."""

import os
import shutil
import struct
import tempfile
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

    Nothing is known of what has been written: each name is expected once.

    Raises:
        ValueError: a member behind the manifest.
    """
    archive = zipfile.ZipFile(out_file, "w", zipfile.ZIP_STORED, allowZip64=True)
    with tempfile.TemporaryFile() as directory:
        archive.filelist = _Written(directory)
        try:
            for name, content in _manifest_last(members):
                if isinstance(content, bytes):
                    archive.writestr(_header(name), content)
                else:
                    _copy(archive, _header(name), content)
                archive.NameToInfo.clear()
                yield name
        except BaseException:
            # Without a file, zipfile does not finish the archive when it is collected.
            archive.fp = None
            raise
        archive.close()


def _manifest_last(
    members: Iterable[tuple[str, bytes | IO[bytes]]],
) -> Iterator[tuple[str, bytes | IO[bytes]]]:
    before = ""
    for name, content in members:
        if before == MANIFEST_NAME:
            raise ValueError(f"expected {MANIFEST_NAME} last, got {name!r}")
        yield name, content
        before = name


class _Written(list[zipfile.ZipInfo]):
    """What the directory will say, in a file: of a million members zipfile would hold 600 MB."""

    _NUMBERS = struct.Struct("<3QLHH")

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._number = file, 0

    def __len__(self) -> int:
        return self._number

    def append(self, info: zipfile.ZipInfo) -> None:
        name = info.filename.encode()
        sizes = info.header_offset, info.file_size, info.compress_size
        told = self._NUMBERS.pack(*sizes, info.CRC, info.extract_version, len(name))
        self._file.write(told + name)
        self._number += 1

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self._file.seek(0)
        while numbers := self._file.read(self._NUMBERS.size):
            *sizes, crc, version, length = self._NUMBERS.unpack(numbers)
            info = _header(self._file.read(length).decode())
            info.header_offset, info.file_size, info.compress_size = sizes
            info.CRC, info.create_version, info.extract_version = crc, version, version
            yield info


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
