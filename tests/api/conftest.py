"""A served application, clients with keys, and what the service says of itself."""

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from uuid import UUID

import httpx2
import pytest
import uvicorn
from sqlalchemy import text
from typer.testing import CliRunner

from api import db, keys, main, queue, storage
from api.cli import app as command
from api.models import Queue, Worker
from api.plans import weights
from api.routes.requests import Requests
from api.settings import settings
from sep_core.config import NetworkName
from tests import servers
from tests.api.lives import ingested, owner, requested, small_zip, succeed, work
from tests.conftest import use_broker

logging.root.handlers.clear()  # `api.main` has configured them; pytest captures by its own

Change = Callable[..., None]
JSON = dict[str, Any]


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Iterator[Change]:
    """Gives settings other values for the rest of the test."""
    assert environment

    def changed(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"SEPGATE_{name}", str(value))
        settings.cache_clear()
        storage._store.cache_clear()
        if "DATABASE_URL" in variables:
            db.engine().dispose()
            db.engine.cache_clear()
        if "REDIS_URL" in variables:
            use_broker(settings().broker)

    yield changed
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The application, served once: it keeps nothing that is not in database or storage."""
    with serving(Requests(main.build())) as address:
        yield address


@pytest.fixture
def url(server: str, environment: dict[str, str]) -> str:
    """Where the application is served, on a fresh database, queue and storage."""
    assert environment
    return server


class serving:  # noqa: N801  reads as a function at its call
    """A real server in a thread of this process."""

    def __init__(self, app: Any) -> None:
        self.port = servers.free_port()
        config = uvicorn.Config(
            app, port=self.port, log_level="critical", lifespan="off", ws="none", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> str:
        self._thread.start()
        servers.wait_for(lambda: self._server.started, 10, "the server")
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    """Alice, with her key."""
    with keyed(url, "alice") as made:
        yield made


@pytest.fixture
def other(url: str) -> Iterator[httpx2.Client]:
    """Bob, with his."""
    with keyed(url, "bob") as made:
        yield made


@pytest.fixture
def anonymous(url: str) -> Iterator[httpx2.Client]:
    """Nobody: without a key."""
    with web(url) as made:
        yield made


@pytest.fixture
def owner_id(environment: dict[str, str]) -> UUID:
    """An owner, for tests below HTTP."""
    assert environment
    return owner("alice")


@pytest.fixture
def ready(owner_id: UUID) -> UUID:
    """A data set of that owner that has been ingested."""
    return ingested(owner_id)


@pytest.fixture
def done(owner_id: UUID, ready: UUID) -> UUID:
    """A protection of that data set that has succeeded."""
    made = requested(owner_id, ready)
    succeed(made)
    return made


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 96 MiB."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def ready_dataset(client: httpx2.Client) -> str:
    """Id of a data set that Alice uploaded and that is ready."""
    return str(uploaded(client)["id"])


def keyed(url: str, name: str) -> httpx2.Client:
    with db.transaction() as session:
        key = keys.create(session, name)
    return web(url, Authorization=f"Bearer {key}")


def web(url: str, **headers: str) -> httpx2.Client:
    # Without certificates to load, which takes longer than most tests.
    return httpx2.Client(base_url=url, headers=headers, timeout=20, verify=False)


def give_weights(network: NetworkName, content: bytes) -> None:
    """Put a file where the operator would: the application looks no further into it."""
    file = weights.path(network)
    file.parent.mkdir(parents=True, exist_ok=True)
    other = file.with_suffix(".new")
    other.write_bytes(content)
    other.replace(file)


def uploaded(client: httpx2.Client, body: bytes | None = None, name: str = "pets") -> JSON:
    """Upload a data set over HTTP and ingest it here."""
    answer = client.post("/v1/datasets", params={"name": name}, content=body or small_zip())
    assert answer.status_code == 202, answer.text
    work()
    shown: JSON = client.get(answer.headers["Location"]).json()
    return shown


def protected(client: httpx2.Client, dataset_id: str, **config: object) -> JSON:
    body = {"dataset_id": dataset_id, "config": config}
    answer = client.post("/v1/protections", json=body)
    assert answer.status_code == 202, answer.text
    created: JSON = answer.json()
    return created


def examined() -> tuple[int, dict[str, list[str]]]:
    """What `sepgate doctor` says: the exit status, and by part `state text`."""
    result = CliRunner().invoke(command, ["doctor"])
    found: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        state, part, text = line.split(maxsplit=2)
        found.setdefault(part, []).append(f"{state} {text}")
    return result.exit_code, found


def beat(
    queue: Queue = Queue.GPU, device: str = "cuda", silent_seconds: float = 0, **fields: Any
) -> None:
    """A worker registers, or did and has said nothing for so long."""
    told = {
        "name": f"host/0:{queue}-{device}-{silent_seconds}",
        "queue": queue,
        "device": device,
        "device_name": "H100",
        "memory_bytes": 1,
        "bfloat16": True,
        "threads": 1,
        "versions": {},
    }
    with db.transaction() as session:
        at = db.now(session) - timedelta(seconds=silent_seconds)
        session.add(Worker(started_at=at, heartbeat_at=at, **told | fields))


def blob_folder() -> Path:
    return Path(unquote(urlparse(settings().storage).path))


def blobs(prefix: str = "") -> list[str]:
    """Every file in storage below a prefix, half-written ones included."""
    top = blob_folder()
    files = (path for path in (top / prefix).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(top)) for path in files)


def left() -> list[str]:
    """Everything in storage, empty folders included."""
    return [
        str(path)
        for kind in ("datasets", "protections")
        for path in (blob_folder() / kind).glob("*")
    ]


def queued(name: Queue) -> int:
    return queue.waiting(name)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls at the same moment, a thread each; their results or exceptions in order."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        barrier.wait(10)
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001  the test looks at it
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def take_writes(whether: str) -> None:
    """`off`: as after a failover to a PostgreSQL that stands by, until `on`."""
    name = db.engine().url.database
    read_only = {"on": "off", "off": "on"}[whether]
    with db.engine().connect() as connection:
        connection.execute(text("SET default_transaction_read_only = off"))
        connection.commit()
        told = f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only}"
        connection.execute(text(told))
        connection.commit()
    db.engine().dispose()  # it holds for new connections
