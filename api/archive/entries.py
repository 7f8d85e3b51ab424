"""Reads one file of an archive by its place, without the directory."""

import struct
import zipfile
import zlib
from typing import IO

from api.archive.model import ImageRefused, Limits, Place
from api.archive.names import shown

_LOCAL_HEADER = struct.Struct("<4s22x2H")
_PIECE_BYTES = 2**16


def check_limits(where: Place, method: int, limits: Limits) -> None:
    """Before an entry is unpacked by a zip method that the directory names.

    Raises:
        ImageRefused: FILE_TOO_LARGE, UNSUPPORTED_COMPRESSION.
    """
    if where.size_bytes > limits.max_file_bytes:
        reason = f"Expected at most {limits.max_file_bytes} bytes, got {where.size_bytes}."
        raise ImageRefused("FILE_TOO_LARGE", reason)
    # bzip2 and LZMA have no bound on what one read may yield.
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = f"Expected the file stored or deflated, got zip method {method}."
        raise ImageRefused("UNSUPPORTED_COMPRESSION", reason)


def read_placed(file: IO[bytes], where: Place, name: str | None = None) -> bytes:
    """The bytes of an entry within limits, never many more than the directory declares.

    Args:
        name: by which the entry must call itself; any, unless it is told.

    Raises:
        ImageRefused: BROKEN_FILE, something else lies there.
    """
    file.seek(where.offset)
    try:
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        _check_name(file.read(name_bytes), name)
        file.seek(where.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes)
        data = _inflated(file, where) if where.deflated else file.read(where.size_bytes)
    except (struct.error, zlib.error) as error:
        raise ImageRefused("BROKEN_FILE", f"Expected a whole file, got: {error}.") from error
    whole = where.deflated or where.packed_bytes == where.size_bytes
    whole = whole and magic == b"PK\3\4" and len(data) == where.size_bytes
    if not whole or zlib.crc32(data) != where.crc:
        reason = "Expected the file that the archive's directory declares, got another."
        raise ImageRefused("BROKEN_FILE", reason)
    return data


def _check_name(found: bytes, expected: str | None) -> None:
    """Directory and file may differ in what they say of the name's encoding."""
    if expected is None:
        return
    try:
        told = found.decode()
    except UnicodeDecodeError:
        told = found.decode("cp437")
    if told != expected and found.decode("cp437") != expected:
        reason = f"Expected a file that calls itself as in the directory, got {shown(told)}."
        raise ImageRefused("BROKEN_FILE", reason)


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
