"""A whole service on servers of its own, whose parts may be killed, and what goes wrong with it."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from celery import Celery
from redis import Redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import make_engine
from api.models import QUEUES, Step, StepState
from api.queue import RUN_STEP
from api.settings import Settings
from tests.acceptance.stack import IMPATIENT, Stack, pid_of
from tests.chaos import servers
from tests.chaos.servers import Server

WORKERS = ("worker-gpu", "worker-gpu#2", "worker-cpu", "worker-cpu#2")
PARTS = ("api", *WORKERS, "sweep")
DISK_BYTES = 96 * 2**20
GRACE_SECONDS = 5
MAX_ATTEMPTS = int(Settings.model_fields["max_attempts"].default)
"""The service's own: no fault may make a step look guilty so often, see `child_killed`."""


class World:
    """Queue, database (a file, or a server), storage on a small disk, and every part twice over."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.blobs.mkdir()
        self.redis_url, self.redis = servers.redis(folder)
        self.postgres: Server | None = None
        url = f"sqlite:///{folder / 'chaos.sqlite3'}"
        if database == "postgresql":
            url, self.postgres = servers.postgres(folder)
        logs = folder / "logs"
        logs.mkdir()
        self.environment = IMPATIENT | {
            "SEPGATE_DATABASE_URL": url,
            "SEPGATE_REDIS_URL": self.redis_url,
            "SEPGATE_DATA_DIR": str(folder / "data"),
            "SEPGATE_STORAGE_URL": self.blobs.as_uri(),
            "SEPGATE_WEIGHTS_DIR": str(folder / "weights"),
            "SEPGATE_MIN_FREE_BYTES": "0",
            "SEPGATE_THREADS": "1",
            "SEPGATE_SHARD_SECONDS": "0.001",  # a shard a batch, of which there are two
            "SEPGATE_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "SEPGATE_ORPHAN_GRACE_SECONDS": str(GRACE_SECONDS),
            "SEPGATE_BACKOFF_SECONDS": "0.5",
            "SEPGATE_BACKOFF_MAX_SECONDS": "3",
        }
        self.stack = Stack(self.environment, logs)
        self.engine = make_engine(url).execution_options(sepgate_read_only=True)
        self.taken_leases: set[str] = set()  # as events name them
        self.robbed: set[UUID] = set()  # protections of which a blob was lost
        self.has_disk = _mount(self.blobs)  # last: what fails above leaves no mount behind

    def supervise(self) -> None:
        """Start again what has ended, as docker does."""
        for part in PARTS:
            if self.stack.has_ended(part):
                self.stack.start(part)

    def children(self, part: str) -> list[int]:
        """Process ids of a part's children."""
        path = Path(f"/proc/{self.stack.pid(part)}/task/{self.stack.pid(part)}/children")
        with suppress(FileNotFoundError, ProcessLookupError):
            return [int(pid) for pid in path.read_text().split()]
        return []

    def steps(self, state: StepState) -> list[Step]:
        """As the rows have them now, those of the oldest protection first."""
        query = select(Step).where(Step.state == state).order_by(Step.created_at, Step.id)
        with Session(self.engine) as session:
            return list(session.scalars(query))

    def step(self, step_id: UUID) -> Step | None:
        """As its row is now."""
        with Session(self.engine) as session:
            return session.get(Step, step_id)

    def holds(self, step: Step) -> bool:
        """Whether a step is still run under the lease that it shows."""
        found = self.step(step.id)
        return found is not None and found.lease_token == step.lease_token

    def running(self) -> list[tuple[str, Step]]:
        """Steps at work, those of the oldest protection first; each with the part that is at it."""
        parts = {pid: part for part in WORKERS for pid in self.children(part)}
        held = [(pid_of(step.lease_owner or ""), step) for step in self.steps(StepState.RUNNING)]
        return [(parts[pid], step) for pid, step in held if pid in parts]

    def processes(self) -> list[int]:
        """Of all that belong to this world: they were started with its data folder."""
        mark = f"SEPGATE_DATA_DIR={self.environment['SEPGATE_DATA_DIR']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return [pid for pid in found if pid != os.getpid() and _state(pid) != "Z"]

    def messages(self) -> Redis:
        """The queue, to do harm in."""
        return Redis.from_url(self.redis_url, socket_timeout=2)

    def knock(self, step: Step) -> None:
        """One more message for a step, as the service sends it."""
        with Celery("chaos", broker=self.redis_url, set_as_current=False) as app:
            app.send_task(RUN_STEP, args=[str(step.id)], queue=QUEUES[step.kind], retry=False)


@contextmanager
def world(database: str) -> Iterator[World]:
    """All of it, migrated, ready and with a key; nothing is left of it at the end."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's is closed to PostgreSQL's user
        yield from _world(World(Path(folder), database))


def _world(made: World) -> Iterator[World]:
    needed = [server for server in (made.redis, made.postgres) if server is not None]
    try:
        for server in needed:
            server.start()
        made.stack.run("migrate")
        made.supervise()
        made.stack.wait_until_ready()
        made.stack.new_key()
        yield made
    finally:
        made.stack.close()
        made.engine.dispose()
        for server in needed:
            server.end(signal.SIGTERM if server is made.postgres else signal.SIGKILL)
        if made.has_disk:
            subprocess.run(["umount", "--lazy", str(made.blobs)], check=False)


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def _mount(folder: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0
