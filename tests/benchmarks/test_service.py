"""benchmarks.service polls as a careful client does: by curl, as often as it is told."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks.service import Curl

ANSWERS = [
    ("7", '{"done": false}'),
    ("1", '{"done": false,\n\n"text": 1}'),
    ("", '{"done": false}'),
    ("", '{"done": true}'),
]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wait_seconds, body = ANSWERS[int(self.path[1:])]
        self.send_response(200)
        if wait_seconds:
            self.send_header("Retry-After", wait_seconds)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def curl() -> Iterator[Curl]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield Curl(f"http://127.0.0.1:{server.server_port}", "key")
        server.shutdown()


def test_it_waits_as_long_as_the_service_says(curl: Curl, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for path, seconds in (("/0", 7), ("/1", 1), ("/2", 2)):
        polled = curl.poll(path)
        assert not next(polled)["done"]
        assert not next(polled)["done"]
        assert waits.pop() == seconds
    assert [resource["done"] for resource in curl.poll("/3")] == [True]
