"""Servers for the whole session, a fresh database and storage for every test that asks."""
# ruff: noqa: E402  the checker of sep_core's annotations comes before what it checks

from tests.sep_core import typechecker

typechecker.install()

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from redis import Redis
from sqlalchemy.engine import make_url

from api import db, launcher, queue, storage
from api.settings import settings
from tests import servers

TEMPLATE = "sepgate_template"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="minutes of computing: --slow runs it"))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with servers.redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Of a server on which databases may be made; the template holds the tables."""
    with servers.postgres_server() as url:
        with psycopg.connect(servers.libpq(url), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        with _settings(SEPGATE_DATABASE_URL=_database(url, TEMPLATE)):
            launcher.migrate()
        yield url
        with psycopg.connect(servers.libpq(url), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {TEMPLATE}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with all tables and no rows, on each of the two kinds."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'sepgate.sqlite3'}"
        with _settings(SEPGATE_DATABASE_URL=url):
            launcher.migrate()
        yield url
        return
    server = request.getfixturevalue("postgres_url")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(servers.libpq(server), autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
    yield _database(server, name)
    with psycopg.connect(servers.libpq(server), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """This process, and every one it starts, works on a fresh database, queue and storage."""
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    variables = {
        "SEPGATE_DATABASE_URL": database_url,
        "SEPGATE_REDIS_URL": redis_url,
        "SEPGATE_DATA_DIR": str(tmp_path / "data"),
        "SEPGATE_STORAGE_URL": (tmp_path / "blobs").as_uri(),
        "SEPGATE_MIN_FREE_BYTES": "0",
        "SEPGATE_THREADS": "1",
    }
    with _settings(**variables):
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
        queue.app.conf.update(broker_url=settings().broker)
        queue.app.set_current()

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


def _database(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)
