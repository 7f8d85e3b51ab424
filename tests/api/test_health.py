"""Liveness and readiness, with a part away; what a client sees of outages and of defects."""

import shutil
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest
from alembic import command
from redis import Redis
from typer.testing import CliRunner

from api import main, queue, revision, storage
from api.cli import app
from api.db import engine
from api.models import Queue
from api.routes.requests import Requests
from api.scheduling import outbox
from tests import servers
from tests.api.conftest import Change, keyed, serving, take_writes, together
from tests.api.lives import small_zip
from tests.api.test_routes_datasets import problem


def quickly(client: httpx2.Client, method: str, path: str, **more: bytes) -> httpx2.Response:
    began = time.monotonic()
    answer = client.request(method, path, content=more.get("content"))
    assert time.monotonic() - began < 5
    return answer


def test_a_whole_service(anonymous: httpx2.Client, tmp_path: Path) -> None:
    assert anonymous.get("/livez").json() == {"status": "ok"}
    answers = together(*[partial(anonymous.get, "/readyz") for _ in range(8)])
    assert [answer.status_code for answer in answers] == [200] * 8
    blobs = tmp_path / "blobs"
    assert list(blobs.rglob("*")) == [blobs / "probes"]


def test_the_database_is_away(client: httpx2.Client, change: Change) -> None:
    gone = f"postgresql+psycopg://x@127.0.0.1:{servers.free_port()}/x"
    change(DATABASE_URL=gone)
    found = problem(quickly(client, "GET", "/readyz"), 503, "NOT_READY")
    assert "database" in found["detail"]
    answer = quickly(client, "GET", "/v1/datasets")
    assert "127.0.0.1" not in problem(answer, 503, "UNAVAILABLE")["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/livez").status_code == 200


def test_the_database_takes_no_writes(client: httpx2.Client) -> None:
    if engine().dialect.name != "postgresql":
        pytest.skip("SQLite has no stand-by")
    take_writes("off")
    try:
        found = problem(quickly(client, "GET", "/readyz"), 503, "NOT_READY")
        assert (
            found["detail"] == "Expected a database that takes writes, got one that refuses them."
        )
        problem(quickly(client, "POST", "/v1/datasets", content=small_zip()), 503, "UNAVAILABLE")
        told = CliRunner().invoke(app, ["doctor"])
        assert (told.exit_code, "takes writes" in told.output) == (1, True)
    finally:
        take_writes("on")
    assert client.get("/readyz").status_code == 200


def test_the_database_has_no_tables(
    anonymous: httpx2.Client, change: Change, tmp_path: Path
) -> None:
    change(DATABASE_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    problem(quickly(anonymous, "GET", "/readyz"), 503, "NOT_READY")


def test_the_database_is_of_an_earlier_version(
    anonymous: httpx2.Client, change: Change, tmp_path: Path
) -> None:
    change(DATABASE_URL=f"sqlite:///{tmp_path / 'earlier.sqlite3'}")
    command.upgrade(revision.config(), "20261123h")
    found = problem(quickly(anonymous, "GET", "/readyz"), 503, "NOT_READY")
    assert "got 20261123h; run `sepgate migrate`" in found["detail"]
    revision.migrate()
    assert anonymous.get("/readyz").status_code == 200


def test_the_broker_is_away(client: httpx2.Client, change: Change, redis_url: str) -> None:
    change(REDIS_URL=f"redis://127.0.0.1:{servers.free_port()}/0")
    for _ in range(3):  # with more and more that waits to be sent
        answer = quickly(client, "POST", "/v1/datasets", content=small_zip())
        assert answer.status_code == 202
    found = problem(quickly(client, "GET", "/readyz"), 503, "NOT_READY")
    assert "queue" in found["detail"]
    change(REDIS_URL=redis_url)
    assert queue.waiting(Queue.CPU) == 0
    assert client.post("/v1/datasets", content=small_zip()).status_code == 202
    assert queue.waiting(Queue.CPU) == 4  # what was not sent comes with the next
    assert client.get("/readyz").status_code == 200


def test_the_storage_is_not_mounted(client: httpx2.Client, ready_dataset: str) -> None:
    folder = storage.local_path("")
    assert folder is not None
    away = folder.rename(folder.with_name("away"))
    found = problem(client.get("/readyz"), 503, "NOT_READY")
    assert found["detail"].endswith("a volume may not be mounted.")
    refused = client.post("/v1/datasets", content=small_zip())
    assert "a volume may not be mounted" in problem(refused, 503, "UNAVAILABLE")["detail"]
    shutil.rmtree(folder)
    away.rename(folder)
    assert client.get("/readyz").status_code == 200
    assert client.get(f"/v1/datasets/{ready_dataset}").status_code == 200


def test_the_broker_is_full(client: httpx2.Client, redis_url: str) -> None:
    with Redis.from_url(redis_url) as broker:
        broker.config_set("maxmemory", "1")
        try:
            answer = quickly(client, "POST", "/v1/datasets", content=small_zip())
            assert answer.status_code == 202
            assert quickly(client, "GET", answer.headers["Location"]).status_code == 200
            found = problem(quickly(client, "GET", "/readyz"), 503, "NOT_READY")
            assert found["detail"].startswith("The queue takes no messages: ")
        finally:
            broker.config_set("maxmemory", "0")
    assert queue.waiting(Queue.CPU) == 0
    outbox.send_ready()
    assert queue.waiting(Queue.CPU) == 1


def test_the_broker_does_not_take_connections(client: httpx2.Client, change: Change) -> None:
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # more than it holds: the next waits for its first packet's answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        change(REDIS_URL=f"redis://127.0.0.1:{full.getsockname()[1]}/0")
        for _ in range(3):  # with more and more that waits to be sent
            answer = quickly(client, "POST", "/v1/datasets", content=small_zip())
            assert answer.status_code == 202


def test_the_storage_is_away(client: httpx2.Client, change: Change, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    change(STORAGE_URL=(tmp_path / "file" / "blobs").as_uri())
    found = problem(quickly(client, "GET", "/readyz"), 503, "NOT_READY")
    assert "storage" in found["detail"]


def test_a_defect_is_a_problem_document(environment: dict[str, str]) -> None:
    assert environment
    app = main.build()

    @app.get("/defect")
    def defect() -> None:
        raise RuntimeError("a secret of ours")

    with serving(Requests(app)) as url, keyed(url, "alice") as client:
        answer = client.get("/defect")
    found = problem(answer, 500, "INTERNAL")
    assert "secret" not in str(found)
    assert answer.headers["X-Request-ID"] in found["detail"]
