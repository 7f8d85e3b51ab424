"""Refuses a whole archive by its central directory, before a byte of it is unpacked."""

import re
import stat
from collections.abc import Sequence
from zipfile import ZipFile, ZipInfo

from api.archive.model import Limits
from api.archive.names import folded, parents, path_parts, shown
from api.errors import ArchiveRefused

_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_LOCAL_HEADER_BYTES = 30
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_NAME = 1024
_DEEPEST_PATH = 64


def check_archive(archive: ZipFile, limits: Limits) -> None:
    """All that unpacking the archive could do to somebody.

    Raises:
        ArchiveRefused: ARCHIVE_ENCRYPTED, ARCHIVE_UNSAFE_PATH, ARCHIVE_LINK, ARCHIVE_MULTI_DISK,
            ARCHIVE_BOMB, ARCHIVE_TRUNCATED, ARCHIVE_DUPLICATE_NAME.
    """
    infos = archive.infolist()
    for info in infos:
        _check_entry(info)
    _check_sizes(infos, limits)
    _check_places(infos, archive.start_dir)
    _check_names(infos)


def _check_entry(info: ZipInfo) -> None:
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


def _check_sizes(infos: Sequence[ZipInfo], limits: Limits) -> None:
    size = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if size > limits.max_uncompressed_bytes:
        raise _bomb(f"at most {limits.max_uncompressed_bytes} bytes unpacked", f"{size}")
    if size > limits.ratio_floor_bytes and size > limits.max_ratio * packed:
        largest = max(infos, key=lambda info: info.file_size)
        expected = f"at most {limits.max_ratio:g} times the packed size of {packed} bytes"
        raise _bomb(expected, f"{size} bytes unpacked, the largest {shown(largest.filename)}")


def _check_places(infos: Sequence[ZipInfo], directory_start: int) -> None:
    """Entries may not share bytes: that is how ten megabytes unpack to petabytes."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), directory_start]
    for info, limit in zip(ordered, ends, strict=False):
        if info.header_offset < 0 or info.header_offset >= directory_start:
            message = f"Expected {shown(info.filename)} before the directory, got it elsewhere."
            raise ArchiveRefused("ARCHIVE_TRUNCATED", message)
        least = _LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
        if info.header_offset + least > limit:
            raise _bomb("entries side by side", f"{shown(info.filename)} overlapping what follows")


def _check_names(infos: Sequence[ZipInfo]) -> None:
    """One file a name and one spelling a folder, also where case and accents don't count."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    seen: set[str] = set()
    for info in infos:
        path = "/".join(path_parts(info.filename))
        if not info.is_dir():
            _claim(files, path)
        for folder in [path, *parents(path)] if info.is_dir() else parents(path):
            if folder in seen:
                break
            seen.add(folder)
            _claim(folders, folder)
    for key in sorted(files.keys() & folders.keys()):
        raise _duplicate(files[key], folders[key] + "/")


def _claim(names: dict[str, str], path: str) -> None:
    key = folded(path)
    if key in names:
        raise _duplicate(names[key], path)
    names[key] = path


def _duplicate(one: str, other: str) -> ArchiveRefused:
    return ArchiveRefused(
        "ARCHIVE_DUPLICATE_NAME",
        f"Expected every name once, whatever the case, got {shown(one)} and {shown(other)}.",
    )


def _bomb(expected: str, got: str) -> ArchiveRefused:
    return ArchiveRefused("ARCHIVE_BOMB", f"Expected {expected}, got {got}.")
