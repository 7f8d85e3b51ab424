"""The files of an archive by name; what its directory says lies in a temporary database on disk."""

import sqlite3
from collections.abc import Iterator
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZipInfo

from api.archive.directory import open_directory
from api.archive.entries import check_limits, read_placed
from api.archive.model import Limits, Place
from api.archive.names import folded, parents, path_parts
from api.archive.safety import Sizes, check_entry, check_folders, duplicate, least_end, overlapping

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
BEGIN;
CREATE TABLE entries (
    name TEXT, is_folder INTEGER, local_name TEXT, method INTEGER,
    start INTEGER, least_end INTEGER, packed_bytes INTEGER, size_bytes INTEGER, crc INTEGER
);
CREATE TABLE paths (folded TEXT PRIMARY KEY, path TEXT) WITHOUT ROWID;
"""
_OVERLAP = """
SELECT name FROM (
    SELECT name, least_end, lead(start, 1, ?) OVER (ORDER BY start) AS next_start FROM entries
) WHERE least_end > next_start LIMIT 1
"""
_FILE = """
SELECT local_name, method, start, packed_bytes, size_bytes, crc FROM entries
WHERE name = ? AND NOT is_folder
"""


class Catalog:
    """All files of a checked archive. Of any number of them SQLite holds a few MiB.

    Several threads may use it in turns, not at once.
    """

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        """Knows nothing yet of a seekable file: see `read_directory`."""
        self._file, self._limits = file, limits
        self._folder, self._folders = "", 0
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.executescript(_SCHEMA)

    @classmethod
    def of(cls, file: IO[bytes], limits: Limits) -> "Catalog":
        """One that has read the directory; raises what that does."""
        catalog = cls(file, limits)
        try:
            for _ in catalog.read_directory():
                pass
        except BaseException:
            catalog.close()
            raise
        return catalog

    def read_directory(self) -> Iterator[None]:
        """Read and check all of it; yields now and then.

        Raises:
            ArchiveRefused: the archive as a whole is refused.
        """
        start, slices = open_directory(self._file, self._limits)
        sizes = Sizes(self._limits)
        for number, infos in enumerate(slices):
            if number:
                yield
            for info in infos:
                check_entry(info)
                sizes.add(info)
                self._add(info, least_end(info, start))
                self._claim_all("/".join(path_parts(info.filename)), is_folder=info.is_dir())
        sizes.check_ratio()
        if overlap := self._rows.execute(_OVERLAP, (start,)).fetchone():
            raise overlapping(overlap[0])
        self._rows.execute("CREATE INDEX by_name ON entries (name)")

    def close(self) -> None:
        """Let go of the database; the archive stays open."""
        self._rows.close()

    def names(self) -> Iterator[str]:
        """Of all files (no folders), sorted."""
        query = "SELECT name FROM entries WHERE NOT is_folder ORDER BY name"
        return (name for (name,) in self._rows.execute(query))

    def place(self, name: str) -> Place:
        """Where a file lies. Raises KeyError if there is none."""
        return self._file_row(name)[2]

    def read(self, name: str) -> bytes:
        """One file's bytes, never more of them than the directory declares and the limit allows.

        An OSError of the underlying file passes: that is our storage's failure, not the upload's.

        Raises:
            ImageRefused: FILE_TOO_LARGE, UNSUPPORTED_COMPRESSION, BROKEN_FILE.
            KeyError: there is no such file.
        """
        local_name, method, where = self._file_row(name)
        check_limits(where, method, self._limits)
        return read_placed(self._file, where, local_name)

    def claim(self, path: str) -> bool:
        """Take a path, unless a file or folder has it, or what some systems take for the same."""
        row = (folded(path.removesuffix("/")), path)
        return self._rows.execute("INSERT OR IGNORE INTO paths VALUES (?, ?)", row).rowcount == 1

    def _file_row(self, name: str) -> tuple[str, int, Place]:
        row: tuple[Any, ...] | None = self._rows.execute(_FILE, (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        local_name, method, offset, packed_bytes, size_bytes, crc = row
        deflated = method == ZIP_DEFLATED
        return local_name, method, Place(offset, packed_bytes, size_bytes, crc, deflated)

    def _add(self, info: ZipInfo, end: int) -> None:
        names = info.filename, info.is_dir(), info.orig_filename, info.compress_type
        numbers = info.header_offset, end, info.compress_size, info.file_size, info.CRC
        self._rows.execute("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,?)", (*names, *numbers))

    def _claim_all(self, path: str, *, is_folder: bool) -> None:
        """One file a name and one spelling a folder, also where case and accents don't count."""
        if not is_folder and not self.claim(path):
            raise duplicate(self._known_as(path), path)
        folders = [path, *parents(path)] if is_folder and path else list(parents(path))
        for folder in folders:
            if folder == self._folder or not self._claim_folder(folder):
                break
        # Most often that of the next entry, too.
        self._folder = folders[0] if folders else ""

    def _claim_folder(self, folder: str) -> bool:
        """Whether it is new, and what is above it may be."""
        path = f"{folder}/"
        if not self.claim(path):
            if (known := self._known_as(path)) != path:
                raise duplicate(known, path)
            return False
        self._folders += 1
        check_folders(self._folders, self._limits)
        return True

    def _known_as(self, path: str) -> str:
        query = "SELECT path FROM paths WHERE folded = ?"
        known: str = self._rows.execute(query, (folded(path.removesuffix("/")),)).fetchone()[0]
        return known
