"""Blobs by key, through obstore: in a folder or in S3.

A blob becomes visible whole or not at all, and is on the disk before it does: in a folder it is
written under another name, flushed and renamed.
"""

import asyncio
import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse
from uuid import UUID, uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from api.atomic import atomically
from api.errors import StorageFull
from api.settings import settings

# Small enough that reading one small file of an archive does not fetch its whole neighbourhood.
READ_BUFFER_BYTES = 2**16
STREAM_CHUNK_BYTES = 2**20
# What storing a file holds of it in memory: so many parts of 5 MiB.
PARTS_AT_ONCE = 4


def dataset_key(dataset_id: UUID, name: str = "") -> str:
    """Key of a data set's blob; without a name, of all of them."""
    return f"datasets/{dataset_id}/{name}".rstrip("/")


def protection_key(protection_id: UUID, name: str = "") -> str:
    """Key of a protection's blob; without a name, of all of them."""
    return f"protections/{protection_id}/{name}".rstrip("/")


def probe_key(probe_id: UUID, name: str = "") -> str:
    """Key of what is written to see whether that works, and is nobody's: several may at once."""
    return f"probes/{probe_id}/{name}".rstrip("/")


@lru_cache
def _store() -> ObjectStore:
    """Made in the process that uses it: obstore's runtime does not survive a fork."""
    folder = _folder()
    if folder is None:
        return from_url(settings().storage)
    # Folders that are empty stay until `remove`: obstore's own clean-up takes them from under those
    # who are about to write there.
    return LocalStore(folder, mkdir=True)


def _folder() -> Path | None:
    url = urlparse(settings().storage)
    return Path(unquote(url.path)) if url.scheme == "file" else None


def free_bytes() -> int | None:
    """Room left for blobs; None where the store has no such limit."""
    folder = _folder()
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free


async def write_stream(key: str, chunks: AsyncIterator[bytes]) -> None:
    """Store a stream; if it breaks off, nothing stays.

    Raises:
        StorageFull: no room left.
    """
    with _translating(), atomically(_folder(), key) as (name, replace):
        await obstore.put_async(_store(), name, chunks, max_concurrency=PARTS_AT_ONCE)
        await asyncio.to_thread(replace)


def write(key: str, data: bytes | IO[bytes]) -> str:
    """Store bytes or a binary file from its start; returns the SHA-256 of what was stored.

    Raises:
        StorageFull: no room left.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file
    file.seek(0)
    with _translating(), atomically(_folder(), key) as (name, replace):
        obstore.put(_store(), name, file, max_concurrency=PARTS_AT_ONCE)
        replace()
    return digest


def read(key: str) -> bytes:
    """A whole blob.

    Raises:
        FileNotFoundError: there is none.
    """
    with _translating():
        return bytes(obstore.get(_store(), key).bytes())


def read_if_there(key: str) -> bytes | None:
    """A whole blob, or None."""
    try:
        return read(key)
    except FileNotFoundError:
        return None


def size_if_there(key: str) -> int | None:
    """Of a blob, in bytes, or None."""
    try:
        with _translating():
            return obstore.head(_store(), key)["size"]
    except FileNotFoundError:
        return None


def local_path(key: str) -> Path | None:
    """Where a blob lies, so that it can be mapped; None where the store is not a folder.

    A blob is never changed in place: who has mapped one that is removed or replaced keeps it, on
    one machine. Over a network file system another machine's mapping may end with it.
    """
    folder = _folder()
    return None if folder is None else folder / key


def stream(key: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes [start, end) of a blob, piece by piece.

    Raises:
        FileNotFoundError: there is none.
    """
    for at in range(start, end, STREAM_CHUNK_BYTES):
        yield read_range(key, at, min(at + STREAM_CHUNK_BYTES, end))


def stream_begun(key: str, start: int, end: int) -> Iterator[bytes]:
    """The same with the first piece at hand: a blob that is gone is an error now, not later.

    Raises:
        FileNotFoundError: there is none.
    """
    pieces = stream(key, start, end)
    return chain([next(pieces)], pieces)


def read_range(key: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a blob.

    Raises:
        FileNotFoundError: there is none.
    """
    with _translating():
        return bytes(obstore.get_range(_store(), key, start=start, end=end))


@contextmanager
def copied(key: str) -> Iterator[IO[bytes]]:
    """A copy on disk of a whole blob, in a file without a name: who maps it keeps it.

    Raises:
        FileNotFoundError: there is none.
    """
    with open_blob(key) as blob, tempfile.TemporaryFile() as file:
        shutil.copyfileobj(blob, file, STREAM_CHUNK_BYTES)
        file.seek(0)
        yield file


def open_blob(key: str, buffer_bytes: int = READ_BUFFER_BYTES) -> io.BufferedReader:
    """A seekable binary file.

    Args:
        buffer_bytes: that are fetched at once: many where all of it is read, in its order.

    Raises:
        FileNotFoundError: there is none.
    """
    return io.BufferedReader(_Blob(key), buffer_bytes)


def remove(prefix: str) -> None:
    """Remove every blob below `prefix`, half-written ones included; twice at once is harmless."""
    with _translating():
        for batch in obstore.list(_store(), prefix, chunk_size=REMOVED_AT_ONCE):
            _remove_all([meta["path"] for meta in batch])
    folder = _folder()
    if folder is not None:
        shutil.rmtree(folder / prefix, ignore_errors=True)


def remove_one(key: str) -> None:
    """Remove a blob, if it is there."""
    with suppress(FileNotFoundError), _translating():
        obstore.delete(_store(), key)


REMOVED_AT_ONCE = 1000
"""What S3 takes in one request."""


def _remove_all(keys: list[str]) -> None:
    """In a bucket by one request, where nobody minds what is gone; in a folder one by one."""
    if _folder() is None:
        obstore.delete(_store(), keys)
        return
    for key in keys:
        remove_one(key)


def keys(prefix: str) -> set[str]:
    """Of all blobs below `prefix`."""
    with _translating():
        return {meta["path"] for batch in obstore.list(_store(), prefix) for meta in batch}


def idle_owners(kind: str, grace_seconds: float) -> set[UUID]:
    """Ids below `kind` (`datasets`, `protections`, `probes`) without a blob younger than that."""
    return set(idle_names(kind, grace_seconds))


def idle_names(kind: str, grace_seconds: float) -> dict[UUID, set[str]]:
    """The same, and what each of them has: the first part of its blobs' names."""
    limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
    names: dict[UUID, set[str]] = {}
    busy: set[UUID] = set()
    for (owner, *below), at in _changes(kind):
        with suppress(ValueError):  # not made by us
            names.setdefault(UUID(owner), set()).update(below[:1])
            busy |= {UUID(owner)} if at >= limit else set()
    return {owner: found for owner, found in names.items() if owner not in busy}


def check() -> None:
    """Raise unless a blob can be written and removed: what readiness asks."""
    probe = uuid4()
    with _translating():
        obstore.put(_store(), probe_key(probe, "page"), bytes(4096))  # none is taken by a full disk
    remove(probe_key(probe))


def _changes(kind: str) -> Iterator[tuple[Sequence[str], datetime]]:
    """What lies below `kind`, by the parts of its name, and when it was changed."""
    folder = _folder()
    if folder is None:
        with _translating():
            listed = [meta for batch in obstore.list(_store(), kind) for meta in batch]
        yield from ((meta["path"].split("/")[1:], meta["last_modified"]) for meta in listed)
        return
    # obstore lists neither folders nor all that a process that was killed has left half written.
    for path, _, files in os.walk(folder / kind):
        for entry in (Path(path), *(Path(path, file) for file in files)):
            with suppress(FileNotFoundError):  # removed meanwhile
                changed = datetime.fromtimestamp(entry.stat().st_mtime, UTC)
                if entry != folder / kind:
                    yield entry.relative_to(folder / kind).parts, changed


class _Blob(io.RawIOBase):
    """A blob as a raw file, so that an archive can be read in place."""

    def __init__(self, key: str) -> None:
        self._key, self._at = key, 0
        with _translating():
            self._size = obstore.head(_store(), key)["size"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any writable buffer
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = read_range(self._key, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


# Of the operating system's errors, which obstore names only in its text.
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _translating() -> Iterator[None]:
    """Obstore's own errors become StorageFull or an OSError, which is worth another try."""
    try:
        yield
    except (BaseError, OSError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL or any(f"(os error {code})" in str(error) for code in _FULL):
            raise StorageFull("Expected room for the blob, got a full disk.") from error
        if isinstance(error, OSError):
            raise
        raise OSError(str(error)) from error
