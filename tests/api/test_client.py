"""The client of `sepgate protect`, at a service that breaks off, and is away for a while."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from api.commands import client
from api.commands.client import Client, RequestFailed, ServiceAway
from tests import servers

CONTENT = bytes(range(256)) * 64
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(*answers: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """One answer a request, in turn; the URL, and the headers of what was asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            answers[len(asked) - 1](self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def answer(status: int, body: bytes, length: int | None = None, **headers: str) -> Answer:
    """Of `length` bytes, it says, and breaks off after `body`."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return send


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


DONE = answer(200, b'{"done": true, "state": "ready"}')
GOING = answer(200, b'{"done": false, "state": "ingesting"}', Retry_After="0")
AWAY = answer(503, b'{"code": "UNAVAILABLE", "detail": "Try again."}')
PROXY = answer(502, b"<html>Bad gateway</html>")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEFAULT_WAIT_SECONDS", 0)


def test_a_service_that_is_away_is_asked_again() -> None:
    with serving(GOING, AWAY, hang_up, PROXY, GOING, DONE) as (url, _):
        found = list(Client(url, "sg_1").poll("/v1/datasets/1"))
    states = [resource and resource["state"] for resource in found]
    assert states == ["ingesting", None, None, None, "ingesting", "ready"]


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", -1)
    with serving(AWAY) as (url, _), pytest.raises(ServiceAway, match="UNAVAILABLE: Try again"):
        list(Client(url, "sg_1").poll("/v1/datasets/1"))
    nobody = f"http://127.0.0.1:{servers.free_port()}"
    with pytest.raises(httpx2.ConnectError):
        list(Client(nobody, "sg_1").poll("/v1/datasets/1"))


def test_patience_begins_where_nothing_gets_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long an archive takes."""
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.3)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        answer(200, CONTENT[:5000], len(CONTENT), ETag='"a"')(handler)

    rest = answer(206, CONTENT[5000:], ETag='"a"')
    with serving(slow, rest) as (url, _):
        list(Client(url, "sg_1").download("/archive", tmp_path / "out.zip"))
    assert (tmp_path / "out.zip").read_bytes() == CONTENT


def test_a_request_with_a_key_is_sent_again() -> None:
    with serving(AWAY, hang_up, answer(202, b'{"id": "1"}')) as (url, asked):
        found = list(islice(Client(url, "sg_1").protect("1", {}, "once"), 3))
    assert found == [None, None, {"id": "1"}]
    assert [headers["Idempotency-Key"] for headers in asked] == ["once"] * 3


def test_a_refusal_is_not_asked_again(tmp_path: Path) -> None:
    refused = answer(404, b'{"code": "NOT_FOUND", "detail": "No such data set."}')
    with serving(refused, refused) as (url, asked):
        with pytest.raises(RequestFailed, match="NOT_FOUND: No such data set"):
            list(Client(url, "sg_1").poll("/v1/datasets/1"))
        with pytest.raises(RequestFailed, match="NOT_FOUND"):
            list(Client(url, "sg_1").download("/v1/protections/1/archive", tmp_path / "out.zip"))
    assert len(asked) == 2
    assert not (tmp_path / "out.zip").exists()


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    size = len(CONTENT)
    first = answer(200, CONTENT[:5000], size, ETag='"a"')
    second = answer(206, CONTENT[5000:9000], size - 5000, ETag='"a"')
    third = answer(206, CONTENT[9000:], ETag='"a"')
    with serving(first, hang_up, second, AWAY, third) as (url, asked):
        found = list(Client(url, "sg_1").download("/archive", tmp_path / "out.zip"))
    assert found == [None] * 4 + [tmp_path / "out.zip"]
    assert (tmp_path / "out.zip").read_bytes() == CONTENT
    assert [headers.get("Range") for headers in asked] == [
        *(None, "bytes=5000-", "bytes=5000-", "bytes=9000-", "bytes=9000-")
    ]
    assert {headers.get("If-Range") for headers in asked[1:]} == {'"a"'}
    assert [path.name for path in tmp_path.iterdir()] == ["out.zip"]


def test_a_download_of_something_else_begins_anew(tmp_path: Path) -> None:
    """The version that was begun is gone, or there is no telling."""
    first = answer(200, b"x" * 5000, 9000, ETag='"a"')
    other = answer(200, CONTENT[:100], 200)
    whole = answer(200, CONTENT)
    with serving(first, other, whole) as (url, asked):
        list(Client(url, "sg_1").download("/archive", tmp_path / "out.zip"))
    assert (tmp_path / "out.zip").read_bytes() == CONTENT
    assert asked[1]["If-Range"] == '"a"'
    assert "Range" not in asked[2]
