"""Downloads by RFC 9110: ranges, conditions, and a resumed download that gives the same bytes."""

import base64
import hashlib
from uuid import UUID

import httpx2
import pytest

from tests.api.lives import ARCHIVE_BYTES as DATA
from tests.api.lives import owner, requested, succeed
from tests.api.test_routes_datasets import problem

# What a download is does not depend on the database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SIZE = len(DATA)
ETAG = f'"{hashlib.sha256(DATA).hexdigest()}"'


@pytest.fixture
def path(client: httpx2.Client, ready_dataset: str) -> str:
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made)
    assert client.get(f"/v1/protections/{made}").json()["archive"]["size_bytes"] == SIZE
    return f"/v1/protections/{made}/archive"


def test_the_whole(client: httpx2.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, DATA)
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    expected = {
        "ETag": ETAG,
        "Accept-Ranges": "bytes",
        "Content-Length": str(SIZE),
        "Content-Type": "application/zip",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": 'attachment; filename="protected.zip"',
    }
    assert {name: answer.headers[name] for name in expected} == expected
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in expected} == expected
    ranged = client.head(path, headers={"Range": "bytes=0-9"})
    assert (ranged.status_code, ranged.headers["Content-Length"]) == (200, str(SIZE))


RANGES = {
    "bytes=0-99": (0, 100),
    "bytes=5000-5000": (5000, 5001),
    "bytes=100-": (100, SIZE),
    "bytes=-10": (SIZE - 10, SIZE),
    "bytes=-999999": (0, SIZE),
    f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
    f"bytes=0-{SIZE * 2}": (0, SIZE),
    "bytes=0-" + "9" * 5000: (0, SIZE),
    "bytes=-" + "9" * 5000: (0, SIZE),
    "bytes=" + "0" * 5000 + "7-8": (7, 9),
    "Bytes= 1-2": (1, 3),
}
UNSATISFIABLE = [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", "bytes=" + "9" * 5000]
UNSATISFIABLE[-1] += "-"
IGNORED = [
    "bytes=0-1,5-6",
    "bytes=1 0-20",
    "bytes=a-b",
    "bytes=-",
    "bytes=--5",
    "bytes=0x1-5",
    "lines=0-1",
    "bytes",
    "",
    "bytes=\N{SUPERSCRIPT TWO}-",
]


def test_one_range(client: httpx2.Client, path: str) -> None:
    for asked, (start, end) in RANGES.items():
        answer = client.get(path, headers={"Range": asked})
        assert answer.status_code == 206, asked[:60]
        assert answer.content == DATA[start:end]
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
        assert answer.headers["Content-Length"] == str(end - start)
        assert answer.headers["ETag"] == ETAG


def test_ranges_outside(client: httpx2.Client, path: str) -> None:
    for asked in UNSATISFIABLE:
        answer = client.get(path, headers={"Range": asked})
        problem(answer, 416, "RANGE_NOT_SATISFIABLE")
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


def test_what_is_no_single_range_gets_the_whole(client: httpx2.Client, path: str) -> None:
    for asked in IGNORED:
        answer = client.get(path, headers={b"Range": asked.encode("latin-1")})
        assert (answer.status_code, answer.content) == (200, DATA), asked
        assert "Content-Range" not in answer.headers
    assert client.get(path, headers={"Range": "bytes=9-3"}).status_code in {200, 416}


def test_a_range_if_it_is_still_the_same(client: httpx2.Client, path: str) -> None:
    for condition, status in (
        (ETAG, 206),
        (f"W/{ETAG}", 200),  # weak tags never match here: bytes would be glued together
        ('"other"', 200),
        (ETAG.strip('"'), 200),
        ("Sun, 22 Nov 2026 00:00:00 GMT", 200),
        ("*", 200),
    ):
        headers = {"Range": "bytes=3-5", "If-Range": condition}
        answer = client.get(path, headers=headers)
        assert answer.status_code == status, condition
        assert answer.content == (DATA[3:6] if status == 206 else DATA)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_if_it_has_changed(client: httpx2.Client, path: str, method: str) -> None:
    for condition, status in (
        (ETAG, 304),
        (f"W/{ETAG}", 304),
        ("*", 304),
        (f'"other", {ETAG}', 304),
        (f'W/"other",W/{ETAG}', 304),
        ('"other"', 200),
        (ETAG.strip('"'), 200),
        ("", 200),
    ):
        headers = {"If-None-Match": condition, "Range": "bytes=0-1"}
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == (206 if status == 200 and method == "GET" else status)
        assert answer.headers["ETag"] == ETAG
        if status == 304:
            assert answer.content == b""


def test_only_if_it_is_the_same(client: httpx2.Client, path: str) -> None:
    for condition, status in (
        (ETAG, 200),
        ("*", 200),
        (f'"other", {ETAG}', 200),
        ('"other"', 412),
        (f"W/{ETAG}", 412),
    ):
        answer = client.get(path, headers={"If-Match": condition})
        assert answer.status_code == status, condition
        assert answer.content == DATA or status == 412


def test_a_resumed_download_gives_the_same_bytes(client: httpx2.Client, path: str) -> None:
    got = b""
    with client.stream("GET", path) as answer:
        etag = answer.headers["ETag"]
        for piece in answer.iter_bytes(1000):
            got += piece
            if len(got) > SIZE // 3:
                break
    got = got[: SIZE // 3]
    while len(got) < SIZE:
        headers = {"Range": f"bytes={len(got)}-{len(got) + 3000}", "If-Range": etag}
        answer = client.get(path, headers=headers)
        assert answer.status_code == 206
        got += answer.content
    assert hashlib.sha256(got).hexdigest() == etag.strip('"')


def test_an_archive_of_several_pieces(client: httpx2.Client, ready_dataset: str) -> None:
    data = b"0123456789abcdef" * 200_000
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made, data)
    path = f"/v1/protections/{made}/archive"
    assert client.get(path).content == data
    across = client.get(path, headers={"Range": f"bytes={2**20 - 3}-{2**21 + 2}"})
    assert across.content == data[2**20 - 3 : 2**21 + 3]
