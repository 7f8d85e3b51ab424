"""What every blob store must do: a folder and an S3 server pass the same tests."""

import asyncio
import hashlib
import io
import os
import re
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import obstore
import pytest

from api import storage
from api.settings import settings
from tests import servers
from tests.api.archives import zip_bytes
from tests.api.conftest import together


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Variables that lead to a bucket on an S3 server."""
    with servers.s3_server() as variables:
        yield variables


@pytest.fixture(autouse=True, params=["folder", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    variables = {"SEPGATE_STORAGE_URL": (tmp_path / "a folder & more").as_uri()}
    if request.param == "s3":
        variables = request.getfixturevalue("s3")
        # A prefix of its own: the server is one for all tests.
        bucket = variables["SEPGATE_STORAGE_URL"]
        variables = variables | {"SEPGATE_STORAGE_URL": f"{bucket}/{tmp_path.name}"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _forget()
    yield str(request.param)
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    settings.cache_clear()
    storage._store.cache_clear()


def stored() -> list[str]:
    return sorted(m["path"] for batch in obstore.list(storage._store()) for m in batch)


async def chunks(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        if isinstance(piece, Exception):
            raise piece
        yield piece


def test_bytes_and_files_come_back() -> None:
    data = os.urandom(100_000)
    for key, source in (("a/bytes", data), ("a/file", io.BytesIO(data))):
        if isinstance(source, io.BytesIO):
            source.seek(77)  # it is stored from its start all the same
        assert storage.write(key, source) == hashlib.sha256(data).hexdigest()
        assert storage.read(key) == data
    assert storage.write("a/bytes", b"") == hashlib.sha256(b"").hexdigest()
    assert storage.read("a/bytes") == b""


def test_a_stream_comes_back() -> None:
    pieces = [os.urandom(1_500_000) for _ in range(6)]
    asyncio.run(storage.write_stream("a/stream", chunks(*pieces)))
    whole = b"".join(pieces)
    assert storage.read("a/stream") == whole
    for start, end in ((0, len(whole)), (5, 6), (2**20 - 1, 2**21 + 1), (7, 7)):
        assert b"".join(storage.stream("a/stream", start, end)) == whole[start:end]


def test_a_stream_that_breaks_off_leaves_no_file() -> None:
    pieces = [bytes(2**20)] * 12
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(storage.write_stream("a/stream", chunks(*pieces, RuntimeError("broken"))))
    assert stored() == []


def test_what_is_not_there() -> None:
    for call in (partial(storage.read, "no/blob"), partial(storage.open_blob, "no/blob")):
        with pytest.raises(FileNotFoundError):
            call()
    with pytest.raises(FileNotFoundError):
        next(storage.stream("no/blob", 0, 1))


def test_a_blob_is_a_file_for_zipfile() -> None:
    files = {f"{number}.bin": os.urandom(50_000) for number in range(5)}
    storage.write("a/zip", zip_bytes(files))
    with storage.open_blob("a/zip") as blob, zipfile.ZipFile(blob) as archive:
        assert archive.testzip() is None
        for name in reversed(files):
            assert archive.read(name) == files[name]


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_of_a_large_archive_only_what_is_read_of_it_is_fetched(s3: dict[str, str]) -> None:
    """Its directory and the neighbourhood of one small file, by ranges."""
    files = {f"{number:02d}.bin": os.urandom(200_000) for number in range(40)}
    whole = zip_bytes(files)
    storage.write("a/zip", whole)
    with (
        servers.s3_recorded(s3) as asked,
        storage.open_blob("a/zip") as blob,
        zipfile.ZipFile(blob) as archive,
        archive.open("20.bin") as file,
    ):
        assert file.read(100) == files["20.bin"][:100]
        assert storage.read_range("a/zip", 10, 20) == whole[10:20]
    got = [request["headers"] for request in asked if request["method"] == "GET"]
    fetched = [re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", "")) for headers in got]
    assert all(fetched), got
    sizes = [int(found[2]) - int(found[1]) + 1 for found in fetched if found]
    assert 10 in sizes
    assert 0 < sum(sizes) < len(whole) / 20, sizes


def test_a_blob_seeks_as_a_file_does() -> None:
    data = bytes(range(256)) * 1000
    storage.write("a/blob", data)
    with storage.open_blob("a/blob") as blob, io.BytesIO(data) as file:
        for offset, whence in ((10, 0), (5, 1), (-3, 2), (0, 2), (10**9, 0), (200_000, 0), (-7, 1)):
            assert blob.seek(offset, whence) == file.seek(offset, whence)
            assert blob.read(300) == file.read(300)
            assert blob.tell() == file.tell()


def test_removal_of_a_part() -> None:
    owner = uuid4()
    for name in ("archive.zip", "shards/00000.bin", "shards/00001.bin"):
        storage.write(storage.protection_key(owner, name), b"x")
    storage.remove(storage.protection_key(owner, "shards"))
    assert stored() == [storage.protection_key(owner, "archive.zip")]


def test_two_removals_at_once() -> None:
    """A cancel's and a worker's: neither stumbles over what the other has removed."""
    for _ in range(10):
        prefix = storage.protection_key(uuid4())
        for number in range(30):
            storage.write(f"{prefix}/shards/{number}", b"x")
        assert together(*[partial(storage.remove, prefix) for _ in range(4)]) == [None] * 4
        assert stored() == []


def test_a_blob_can_be_found_and_measured(store: str) -> None:
    assert storage.size_if_there("a/blob") is None
    assert storage.read_if_there("a/blob") is None
    storage.write("a/blob", b"123")
    assert storage.size_if_there("a/blob") == 3
    assert storage.read_if_there("a/blob") == b"123"
    assert (storage.local_path("a/blob") is None) is (store == "s3")
    assert (storage.free_bytes() is None) is (store == "s3")


def test_a_blob_is_replaced_whole() -> None:
    """Readers see one or the other, whatever their sizes."""
    contents = [bytes([number]) * 300_000 * (number + 1) for number in range(2)]
    storage.write("a/blob", contents[0])
    found = together(
        *[partial(storage.write, "a/blob", contents[number % 2]) for number in range(4)],
        *[partial(storage.read, "a/blob") for _ in range(8)],
    )
    assert all(data in contents for data in found[4:])
    assert storage.read("a/blob") in contents


def test_a_large_file_goes_up_in_parts(store: str) -> None:
    data = os.urandom(2**20) * 20
    storage.write("a/large", io.BytesIO(data))
    with storage.open_blob("a/large") as blob:
        blob.seek(-(2**20), io.SEEK_END)
        assert blob.read() == data[-(2**20) :]
    assert storage.size_if_there("a/large") == len(data)
    if store == "s3":  # which names a blob of several parts by their number
        assert (obstore.head(storage._store(), "a/large")["e_tag"] or "").strip('"').endswith("-4")


def test_all_of_an_owner_s_blobs_go_and_no_others() -> None:
    keep, go = uuid4(), uuid4()
    for key in (
        storage.protection_key(go, "archive.zip"),
        storage.protection_key(go, "shards/00000.bin"),
        storage.protection_key(keep, "archive.zip"),
        storage.dataset_key(go, "source.zip"),
    ):
        storage.write(key, b"x")
    for prefix in [storage.protection_key(go)] * 2 + [storage.dataset_key(go)]:
        storage.remove(prefix)
    assert stored() == [storage.protection_key(keep, "archive.zip")]
    storage.remove_one("no/blob")  # is harmless


def test_keys_below_a_prefix() -> None:
    below = {"a/1.bin", "a/deep/2.npy"}
    for key in (*below, "ab/3.bin"):
        storage.write(key, b"4")
    assert storage.keys("a") == below
    assert storage.keys("b") == set()


def test_who_has_been_idle() -> None:
    owners = [uuid4() for _ in range(3)]
    for owner in owners:
        storage.write(storage.dataset_key(owner, "source.zip"), b"x")
    time.sleep(5.1)  # an S3 server tells whole seconds
    storage.write(storage.dataset_key(owners[0], "index.npz"), b"x")
    storage.write(storage.dataset_key(owners[1], "shards/00000.bin"), b"x")
    assert storage.idle_owners("datasets", 3) == {owners[2]}
    names = storage.idle_names("datasets", -1)
    assert names[owners[0]] == {"source.zip", "index.npz"}
    assert names[owners[1]] == {"source.zip", "shards"}
    assert storage.idle_owners("datasets", 600) == set()
    assert storage.idle_owners("protections", 0) == set()


def test_readiness_leaves_nothing() -> None:
    assert together(*[storage.check for _ in range(8)]) == [None] * 8
    assert stored() == []
