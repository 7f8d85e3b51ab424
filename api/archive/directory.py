"""Reads a zip's directory in slices: zipfile would hold all of it, 0.6 KiB an entry."""

import io
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from api.archive.model import Limits
from api.errors import ArchiveRefused

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_HEADER = struct.Struct("<4s4xH18x3H12x")
_UTF8_FLAG = 0x800
_LONGEST_COMMENT = 0xFFFF
_SLICE_BYTES = 2**16
# What zipfile makes of a directory that it does not understand: NotImplementedError is of a newer
# version of the format, the others are of numbers that lead nowhere.
_NOT_READABLE = (
    *(zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError),
    *(struct.error, EOFError, MemoryError),
)


class _End(NamedTuple):
    """The end record: entries and bytes of the directory, and where that ends in the file."""

    disk: int
    directory_disk: int
    entries_here: int
    entries: int
    size: int
    offset: int
    position: int


class Directory(NamedTuple):
    """Where it begins in the file, and what it says of every entry, in its order, in slices."""

    start: int
    slices: Iterator[list[zipfile.ZipInfo]]


def open_directory(file: IO[bytes], limits: Limits) -> Directory:
    """The directory of a seekable file that is a zip; it is whole and of bearable length.

    Names without the UTF-8 flag are read as UTF-8 where all of them are (a Mac's are), else as
    code page 437.

    Raises:
        ArchiveRefused: NOT_A_ZIP, ARCHIVE_TRUNCATED, ARCHIVE_MULTI_DISK, ARCHIVE_TOO_MANY_FILES,
            ARCHIVE_BROKEN.
    """
    end = _find_end(file)
    _check_disks(end)
    _check_place(end, limits)
    encoding = "utf-8" if _are_utf8(file, end, limits) else None
    return Directory(end.position - end.size, _infos(file, end, encoding))


def _infos(file: IO[bytes], end: _End, encoding: str | None) -> Iterator[list[zipfile.ZipInfo]]:
    before = end.position - end.size - end.offset  # a program that unpacks itself, say
    for headers in _slices(file, end):
        infos = _parsed(headers, encoding)
        for info in infos:
            info.header_offset += before
        yield infos


def _slices(file: IO[bytes], end: _End) -> Iterator[list[bytes]]:
    headers: list[bytes] = []
    size = 0
    for header in _headers(file, end):
        headers.append(header)
        size += len(header)
        if size > _SLICE_BYTES:
            yield headers
            headers, size = [], 0
    if headers:
        yield headers


def _parsed(headers: list[bytes], encoding: str | None) -> list[zipfile.ZipInfo]:
    """By zipfile, for which they are an archive: one that begins with its directory."""
    directory, entries = b"".join(headers), len(headers)
    if directory[-_LOCATOR64.size :].startswith(b"PK\6\7"):
        raise _broken("an entry that ends like the place of another directory")
    record = _END.pack(b"PK\5\6", 0, 0, entries, entries, len(directory), 0, 0)
    try:
        with zipfile.ZipFile(io.BytesIO(directory + record), metadata_encoding=encoding) as archive:
            return archive.infolist()
    except _NOT_READABLE as error:
        raise _broken(str(error)) from error


def _find_end(file: IO[bytes]) -> _End:
    """The end record, by the rules that zipfile finds it by."""
    length = file.seek(0, 2)
    start = max(length - _END.size - _LONGEST_COMMENT, 0)
    file.seek(start)
    tail = file.read()
    at = len(tail) - _END.size
    if not (at >= 0 and tail[at : at + 4] == b"PK\5\6" and tail[-2:] == b"\0\0"):
        at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise _without_end(file, length)
    numbers = _END.unpack_from(tail, at)[1:7]
    return _find_end64(file, start + at) or _End._make((*numbers, start + at))


def _find_end64(file: IO[bytes], position: int) -> _End | None:
    """The zip64 end record right before its locator, right before the end record; if any."""
    start = position - _LOCATOR64.size - _END64.size
    if start < 0:
        return None
    file.seek(start)
    record, locator = file.read(_END64.size), file.read(_LOCATOR64.size)
    if record[:4] != b"PK\6\6" or locator[:4] != b"PK\6\7":
        return None
    _, disk, offset, disks = _LOCATOR64.unpack(locator)
    if disk or disks > 1:
        raise _multi_disk(f"{disks} disks, and a directory on disk {disk}")
    end = _End._make((*_END64.unpack(record)[4:], start))
    if offset != end.offset + end.size:
        # Who goes by the one reads another directory than who goes by the other.
        raise _broken(f"its end at byte {end.offset + end.size}, by the locator at {offset}")
    return end


def _without_end(file: IO[bytes], length: int) -> ArchiveRefused:
    file.seek(0)
    if file.read(4) in (b"PK\3\4", b"PK\7\10"):
        return ArchiveRefused(
            "ARCHIVE_TRUNCATED",
            f"Expected a zip with its directory at the end, got {length} bytes that begin like a "
            "zip and break off; was the upload cut short, or is it one part of a split archive?",
        )
    return ArchiveRefused("NOT_A_ZIP", f"Expected a zip archive, got {length} bytes of another.")


def _check_disks(end: _End) -> None:
    if end.disk or end.directory_disk or end.entries_here != end.entries:
        raise _multi_disk(f"a last part on disk {end.disk}, its directory on {end.directory_disk}")


def _check_place(end: _End, limits: Limits) -> None:
    if end.position < end.size + end.offset:
        raise ArchiveRefused(
            "ARCHIVE_TRUNCATED",
            f"Expected the archive's directory at byte {end.offset} to {end.offset + end.size}, "
            f"got its end at byte {end.position}: bytes are missing before it.",
        )
    if end.size > limits.max_directory_bytes:
        raise ArchiveRefused(
            "ARCHIVE_TOO_MANY_FILES",
            f"Expected a directory of at most {limits.max_directory_bytes} bytes, "
            f"got one of {end.size}.",
        )


def _are_utf8(file: IO[bytes], end: _End, limits: Limits) -> bool:
    """Whether names that say nothing of it are; counts them, as the end record may lie."""
    utf8 = True
    for number, header in enumerate(_headers(file, end), start=1):
        if number > limits.max_files:
            raise ArchiveRefused(
                "ARCHIVE_TOO_MANY_FILES",
                f"Expected at most {limits.max_files} files in the archive, got more.",
            )
        _, flags, name_bytes, *_ = _HEADER.unpack_from(header)
        utf8 = utf8 and (bool(flags & _UTF8_FLAG) or _is_utf8(header[_HEADER.size :][:name_bytes]))
    return utf8


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _headers(file: IO[bytes], end: _End) -> Iterator[bytes]:
    """Each entry's in the directory, one by one, with its name, extra fields and comment."""
    at = end.position - end.size
    while at < end.position:
        file.seek(at)
        header = file.read(_HEADER.size)
        if len(header) != _HEADER.size or header[:4] != b"PK\1\2":
            raise _broken(f"no directory header at byte {at}")
        variable = sum(_HEADER.unpack(header)[2:])
        header += file.read(variable)
        at += _HEADER.size + variable
        if at > end.position or len(header) != _HEADER.size + variable:
            raise _broken(f"a directory header that ends at byte {at}, behind the directory")
        yield header


def _multi_disk(what: str) -> ArchiveRefused:
    return ArchiveRefused("ARCHIVE_MULTI_DISK", f"Expected a zip in one piece, got {what}.")


def _broken(what: str) -> ArchiveRefused:
    return ArchiveRefused("ARCHIVE_BROKEN", f"Expected a readable zip directory, got: {what}.")
