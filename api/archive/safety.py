"""Refuses a whole archive by its central directory, before a byte of it is unpacked."""

import re
import stat
from zipfile import ZipInfo

from api.archive.model import Limits
from api.archive.names import path_parts, shown
from api.errors import ArchiveRefused

_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_LOCAL_HEADER_BYTES = 30
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_NAME = 1024
_DEEPEST_PATH = 64
_MOST_FOLDERS = 2
"""For every file that is allowed, besides those above all: its own, and that of its class."""


def check_entry(info: ZipInfo) -> None:
    """What unpacking it could do to somebody.

    Raises:
        ArchiveRefused: ARCHIVE_ENCRYPTED, ARCHIVE_MULTI_DISK, ARCHIVE_LINK, ARCHIVE_UNSAFE_PATH.
    """
    name = shown(info.orig_filename)
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise ArchiveRefused("ARCHIVE_ENCRYPTED", f"Expected a zip without password, got {name}.")
    if info.volume not in (0, 0xFFFF):
        message = f"Expected a zip in one piece, got {name} on disk {info.volume}."
        raise ArchiveRefused("ARCHIVE_MULTI_DISK", message)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a special file"
        raise ArchiveRefused(
            "ARCHIVE_LINK", f"Expected files and folders only, got {what}: {name}."
        )
    problem = _path_problem(info.orig_filename)
    if info.filename != info.orig_filename:
        # Newer zipfiles take it from an extra field.
        problem = problem or _path_problem(info.filename)
    if problem:
        message = f"Expected a path inside the archive, got {problem}: {name}."
        raise ArchiveRefused("ARCHIVE_UNSAFE_PATH", message)


def _path_problem(name: str) -> str | None:
    """What a careless or another system's unpacker could be led to by this name."""
    parts = name.split("/")
    problems = {
        "no name": not path_parts(name) and name != "./",
        "a NUL character": "\0" in name,
        "a backslash (zip it again with forward slashes)": "\\" in name,
        "an absolute path": name.startswith("/"),
        "a drive letter": _DRIVE.match(name) is not None,
        "a step to the folder above": ".." in parts,
        f"a name of {len(name)} characters": len(name) > _LONGEST_NAME,
        f"{len(parts)} nested folders": len(parts) > _DEEPEST_PATH,
    }
    return next((problem for problem, found in problems.items() if found), None)


class Sizes:
    """Of all entries together, as far as they have been added."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = self._packed = 0
        self._largest, self._largest_size = "", -1

    def add(self, info: ZipInfo) -> None:
        """Raises ArchiveRefused: ARCHIVE_BOMB."""
        self._size += info.file_size
        self._packed += info.compress_size
        if self._size > self._limits.max_uncompressed_bytes:
            expected = f"at most {self._limits.max_uncompressed_bytes} bytes unpacked"
            raise _bomb(expected, f"{self._size} and more")
        if info.file_size > self._largest_size:
            self._largest, self._largest_size = info.filename, info.file_size

    def check_ratio(self) -> None:
        """Raises ArchiveRefused: ARCHIVE_BOMB."""
        ratio = self._limits.max_ratio
        if self._size > self._limits.ratio_floor_bytes and self._size > ratio * self._packed:
            expected = f"at most {ratio:g} times the packed size of {self._packed} bytes"
            got = f"{self._size} bytes unpacked, the largest {shown(self._largest)}"
            raise _bomb(expected, got)


def least_end(info: ZipInfo, directory_start: int) -> int:
    """Where an entry ends at the earliest.

    Raises:
        ArchiveRefused: ARCHIVE_TRUNCATED or ARCHIVE_BOMB, that is not before the directory.
    """
    if info.header_offset < 0 or info.header_offset >= directory_start:
        message = f"Expected {shown(info.filename)} before the directory, got it elsewhere."
        raise ArchiveRefused("ARCHIVE_TRUNCATED", message)
    least = _LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
    if info.header_offset + least > directory_start:
        raise overlapping(info.filename)
    return info.header_offset + least


def check_folders(number: int, limits: Limits) -> None:
    """Sixty folders above every file are few bytes to send and many names to keep.

    Raises:
        ArchiveRefused: ARCHIVE_TOO_MANY_FILES.
    """
    most = _MOST_FOLDERS * limits.max_files + _DEEPEST_PATH
    if number > most:
        message = f"Expected at most {most} folders in the archive, got more."
        raise ArchiveRefused("ARCHIVE_TOO_MANY_FILES", message)


def overlapping(name: str) -> ArchiveRefused:
    """Entries may not share bytes: that is how ten megabytes unpack to petabytes."""
    return _bomb("entries side by side", f"{shown(name)} overlapping what follows")


def duplicate(one: str, other: str) -> ArchiveRefused:
    """Two paths that somebody's file system takes for the same."""
    return ArchiveRefused(
        "ARCHIVE_DUPLICATE_NAME",
        f"Expected every name once, whatever the case, got {shown(one)} and {shown(other)}.",
    )


def _bomb(expected: str, got: str) -> ArchiveRefused:
    return ArchiveRefused("ARCHIVE_BOMB", f"Expected {expected}, got {got}.")
