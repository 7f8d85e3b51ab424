"""Blobs in a folder: whole or not at all, read in place, gone without a trace."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from api import storage
from api.errors import StorageFull
from api.settings import settings
from tests.api.conftest import blobs, together


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPGATE_STORAGE_URL", folder.as_uri())
    settings.cache_clear()
    storage._store.cache_clear()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    use(tmp_path / "a folder & more", monkeypatch)
    yield tmp_path / "a folder & more"
    monkeypatch.undo()
    settings.cache_clear()
    storage._store.cache_clear()


def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of what is flushed from now on."""
    flushed: list[int] = []
    fsync = os.fsync

    def spy(file: int) -> None:
        flushed.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", spy)
    return flushed


async def chunks(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        if isinstance(piece, Exception):
            raise piece
        yield piece


def test_a_blob_can_be_found_and_measured(folder: Path) -> None:
    assert storage.size_if_there("a/blob") is None
    storage.write("a/blob", b"123")
    assert storage.size_if_there("a/blob") == 3
    assert storage.local_path("a/blob") == folder / "a/blob"
    assert (folder / "a/blob").read_bytes() == b"123"


def test_a_blob_is_on_the_disk_before_its_writer_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the entries of the folders that lead to it."""
    flushed = flushes(monkeypatch)
    storage.write("a/b/blob", b"123")
    asyncio.run(storage.write_stream("a/c/stream", chunks(b"123")))
    for key in ("a/b/blob", "a/b", "a", "", "a/c/stream", "a/c"):
        assert (folder / key).stat().st_ino in flushed


def test_a_blob_is_on_the_disk_before_it_takes_the_place_of_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a loss of power could leave neither the old nor the new one."""
    storage.write("a/blob", b"old")
    storage.write("a/stream", b"old")
    flushed = flushes(monkeypatch)
    replaced: list[Path] = []
    rename = Path.rename

    def spy(path: Path, to: Path) -> Path:
        assert path.stat().st_ino in flushed
        assert to.read_bytes() == b"old"
        replaced.append(to)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", spy)
    storage.write("a/blob", b"new")
    asyncio.run(storage.write_stream("a/stream", chunks(b"new")))
    assert replaced == [folder / "a/blob", folder / "a/stream"]
    assert sorted(blobs()) == ["a/blob", "a/stream"]
    assert storage.read("a/blob") == storage.read("a/stream") == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_is_not_on_the_disk_takes_nobodys_place(
    code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say only as they flush that there is no room."""
    storage.write("a/blob", b"old")

    def fail(_file: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    expected = OSError if code == errno.EIO else StorageFull
    with pytest.raises(expected):
        storage.write("a/blob", b"new")
    with pytest.raises(expected):
        asyncio.run(storage.write_stream("a/blob", chunks(b"new")))
    assert [path.name for path in (folder / "a").iterdir()] == ["blob"]
    assert storage.read("a/blob") == b"old"


def test_what_storage_can_not_do_is_an_oserror(folder: Path) -> None:
    """So that whoever calls tries again: here a blob lies where a folder is looked for."""
    storage.write("a/blob", b"x")
    below = "a/blob/b"
    for call in (
        partial(storage.read, below),
        partial(storage.open_blob, below),
        partial(storage.size_if_there, below),
        partial(storage.remove, below),
        partial(next, storage.stream(below, 0, 1)),
        partial(storage.remove_one, "a"),
    ):
        with pytest.raises(OSError, match="LocalFileSystem") as raised:
            call()
        assert not isinstance(raised.value, FileNotFoundError)
    with storage.open_blob("a/blob") as blob:
        (folder / "a/blob").write_bytes(b"")
        with pytest.raises(OSError, match="range"):
            blob.read()


def test_removal_leaves_nothing(folder: Path) -> None:
    keep, go = uuid4(), uuid4()
    for key in (
        storage.protection_key(go, "archive.zip"),
        storage.protection_key(go, "shards/00000.bin"),
        storage.protection_key(keep, "archive.zip"),
        storage.dataset_key(go, "source.zip"),
    ):
        storage.write(key, b"x")
    (folder / storage.protection_key(go, f"archive.zip#{'0a' * 16}.part")).write_bytes(
        b"half written"
    )
    storage.remove(storage.protection_key(go))
    assert not (folder / storage.protection_key(go)).exists()
    assert len(blobs()) == 2
    storage.remove(storage.protection_key(go))  # again is harmless
    storage.remove(storage.dataset_key(go))
    assert blobs() == [storage.protection_key(keep, "archive.zip")]


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then))


def test_idle_owners(folder: Path) -> None:
    old, new, mixed, half = (uuid4() for _ in range(4))
    for owner in (old, new, mixed):
        storage.write(storage.dataset_key(owner, "source.zip"), b"x")
    (folder / storage.dataset_key(half)).mkdir()
    # What an upload leaves when its process is killed.
    (folder / storage.dataset_key(half, f"source.zip#{'0a' * 16}.part#1")).write_bytes(b"originals")
    (folder / "datasets" / "lost+found").mkdir()
    (folder / "datasets" / "stray").write_text("not ours")
    for owner in (old, mixed, half):
        age(folder / storage.dataset_key(owner), 1000)
    storage.write(storage.dataset_key(mixed, "index.npz"), b"x")
    assert storage.idle_owners("datasets", 500) == {old, half}
    assert storage.idle_owners("datasets", 2000) == set()
    assert storage.idle_owners("protections", 0) == set()


def test_readiness_leaves_nothing_and_may_be_asked_at_once(folder: Path) -> None:
    def ask_often() -> None:
        for _ in range(50):
            storage.check()

    assert together(*[ask_often for _ in range(8)]) == [None] * 8
    assert list(folder.rglob("*")) == [folder / "probes"]


def test_room(folder: Path) -> None:
    free = storage.free_bytes()
    assert free is not None
    assert folder.is_dir()
    stat = os.statvfs(folder)
    assert abs(free - stat.f_bavail * stat.f_frsize) < 2**30


def test_a_full_disk(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tiny_disk / "blobs", monkeypatch)
    with pytest.raises(StorageFull) as refused:
        asyncio.run(storage.write_stream("a/stream", chunks(*[bytes(2**20)] * 128)))
    assert refused.value.status == 507
    storage.remove("a")
    with pytest.raises(StorageFull):
        storage.write("a/blob", bytes(128 * 2**20))
    storage.remove("a")
    assert blobs() == []
    storage.write("a/blob", b"fits")
    assert storage.read("a/blob") == b"fits"
