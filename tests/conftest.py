"""Servers for the whole session, a fresh database and storage for every test that asks."""
# ruff: noqa: E402  the checker of sep_core's annotations comes before what it checks

from tests.sep_core import typechecker

typechecker.install()

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from redis import Redis

from api import db, queue, revision, storage
from api.settings import settings
from tests import servers

MOST_PROCESSES = 4
DATABASES = ("sqlite", "postgresql")

# No test is timed: a machine that is busy is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="minutes of computing: --slow runs it"))


def pytest_xdist_auto_num_workers() -> int:
    """A process a core, each with servers of its own; one where the servers are given."""
    given = "TEST_REDIS_URL" in os.environ or "TEST_DATABASE_URL" in os.environ
    return 1 if given else min(os.cpu_count() or 1, MOST_PROCESSES)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with servers.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Of a server on which databases may be made."""
    with servers.postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_tables(postgres_url: str) -> Iterator[str]:
    """Of a database with all tables, which the tests use one after the other."""
    name = f"sepgate_test_{uuid4().hex}"
    with servers.database(postgres_url, name) as url:
        with _settings(SEPGATE_DATABASE_URL=url):
            revision.migrate()
        yield url


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "sepgate.sqlite3"
    with _settings(SEPGATE_DATABASE_URL=f"sqlite:///{path}"):
        revision.migrate()
    return path


def fresh_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """URL of a database with all tables and no rows."""
    if kind == "sqlite":
        path = shutil.copy(request.getfixturevalue("sqlite_tables"), folder)
        return f"sqlite:///{path}"
    url = str(request.getfixturevalue("postgres_tables"))
    servers.empty(url, ("owners", "workers", "events", "locks", "orphans"))
    return url


@contextmanager
def service_environment(
    database_url: str, redis_url: str, folder: Path
) -> Iterator[dict[str, str]]:
    """This process, and every one it starts, works on this database, an empty queue and storage."""
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    variables = {
        "SEPGATE_DATABASE_URL": database_url,
        "SEPGATE_REDIS_URL": redis_url,
        "SEPGATE_DATA_DIR": str(folder / "data"),
        "SEPGATE_STORAGE_URL": (folder / "blobs").as_uri(),
        "SEPGATE_WEIGHTS_DIR": str(folder / "weights"),
        "SEPGATE_MIN_FREE_BYTES": "0",
        "SEPGATE_THREADS": "1",
    }
    with _settings(**variables):
        yield variables


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with all tables and no rows, on each of the two kinds."""
    return fresh_database(request.param, request, tmp_path)


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """For one test: see `service_environment`."""
    with service_environment(database_url, redis_url, tmp_path) as variables:
        yield variables


class _settings:  # noqa: N801  reads as a function at its call
    """Variables of the environment for a while; what was cached from others is dropped."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name in [name for name in os.environ if name.startswith("SEPGATE_")]:
            self._patch.delenv(name)
        for name, value in self._variables.items():
            self._patch.setenv(name, value)
        self._forget()
        use_broker(settings().broker)

    def __exit__(self, *_: object) -> None:
        if db.engine.cache_info().currsize:
            db.engine().dispose()
        self._patch.undo()
        self._forget()

    @staticmethod
    def _forget() -> None:
        queue.app.close()
        for cached in (settings, db.engine, storage._store):
            cached.cache_clear()


def use_broker(url: str) -> None:
    """Let this process's Celery app send to this broker from now on."""
    queue.app.close()
    queue.app.__dict__.pop("amqp", None)  # it keeps producers that are connected to the old one
    queue.app.conf.update(broker_url=url)
    queue.app.set_current()
