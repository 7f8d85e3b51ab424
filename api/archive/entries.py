"""Reads one file of an archive: by its name, through the directory, or by its place, without."""

import copy
import struct
import zipfile
import zlib
from typing import IO

from api.archive.model import ImageRefused, Limits, Place

_LOCAL_HEADER = struct.Struct("<4s22x2H")
_PIECE_BYTES = 2**16
_NOT_READABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


def read_entry(archive: zipfile.ZipFile, entry_name: str, limits: Limits) -> bytes:
    """One file's bytes, never more of them than the directory declares and the limit allows.

    An OSError of the underlying file passes: that is our storage's failure, not the upload's.

    Raises:
        ImageRefused: FILE_TOO_LARGE, UNSUPPORTED_COMPRESSION, BROKEN_FILE.
        KeyError: there is no such entry.
    """
    info = archive.getinfo(entry_name)
    _check_entry(info, limits)
    # One byte more than declared is asked for, so that a longer content shows.
    open_ended = copy.copy(info)
    open_ended.file_size += 1
    try:
        with archive.open(open_ended) as content:
            data = content.read(open_ended.file_size)
    except _NOT_READABLE as error:
        raise ImageRefused("BROKEN_FILE", f"Expected a whole file, got: {error}.") from error
    if len(data) != info.file_size:
        reason = f"Expected {info.file_size} bytes as the archive declares, got others."
        raise ImageRefused("BROKEN_FILE", reason)
    return data


def _check_entry(info: zipfile.ZipInfo, limits: Limits) -> None:
    if info.file_size > limits.max_file_bytes:
        reason = f"Expected at most {limits.max_file_bytes} bytes, got {info.file_size}."
        raise ImageRefused("FILE_TOO_LARGE", reason)
    # zipfile unpacks bzip2 and LZMA without a bound on what one read may yield.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = f"Expected the file stored or deflated, got zip method {info.compress_type}."
        raise ImageRefused("UNSUPPORTED_COMPRESSION", reason)


def place(info: zipfile.ZipInfo) -> Place:
    """Of an entry that `read_entry` has read."""
    return Place(
        offset=info.header_offset,
        packed_bytes=info.compress_size,
        size_bytes=info.file_size,
        crc=info.CRC,
        deflated=info.compress_type == zipfile.ZIP_DEFLATED,
    )


def read_placed(file: IO[bytes], where: Place) -> bytes:
    """The bytes that `read_entry` returned of the same archive; never many more are held.

    A million entries of a directory take zipfile 700 MB.

    Raises:
        ImageRefused: BROKEN_FILE, something else lies there now.
    """
    file.seek(where.offset)
    try:
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(where.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)
        data = _inflated(file, where) if where.deflated else file.read(where.size_bytes)
    except (struct.error, zlib.error) as error:
        raise ImageRefused("BROKEN_FILE", f"Expected a whole file, got: {error}.") from error
    if magic != b"PK\3\4" or len(data) != where.size_bytes or zlib.crc32(data) != where.crc:
        raise ImageRefused("BROKEN_FILE", "Expected the file that was ingested, got another.")
    return data


def _inflated(file: IO[bytes], where: Place) -> bytes:
    """Piece by piece: what is packed may be larger by any amount than what comes of it."""
    stream, data, left = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(), where.packed_bytes
    while left and not stream.eof and len(data) <= where.size_bytes:
        packed = file.read(min(left, _PIECE_BYTES))
        if not packed:
            break
        left -= len(packed)
        data += stream.decompress(packed, where.size_bytes + 1 - len(data))
    return bytes(data)
