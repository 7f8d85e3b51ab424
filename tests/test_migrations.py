"""Migrations make the tables of `api.models`, on both databases, there and back."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from api import db, launcher
from api.db import Base
from api.settings import settings
from tests import servers


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Config]:
    """Alembic on a database without any table."""
    if request.param == "sqlite":
        yield from _at(f"sqlite:///{tmp_path / 'empty.sqlite3'}", monkeypatch)
    else:
        server = request.getfixturevalue("postgres_url")
        with servers.database(server, f"empty_{uuid4().hex}") as url:
            yield from _at(url, monkeypatch)


def _at(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setenv("SEPGATE_DATABASE_URL", url)
    settings.cache_clear()
    db.engine.cache_clear()
    config = Config()
    config.set_main_option("script_location", str(launcher.MIGRATIONS))
    yield config
    db.engine().dispose()
    monkeypatch.undo()
    settings.cache_clear()
    db.engine.cache_clear()


def tables() -> set[str]:
    return set(inspect(db.engine()).get_table_names()) - {"alembic_version"}


def test_up_from_nothing_down_and_up_again(empty: Config) -> None:
    wanted = set(Base.metadata.tables)
    assert tables() == set()
    launcher.migrate()
    assert tables() == wanted
    launcher.migrate()  # again is harmless
    command.downgrade(empty, "base")
    assert tables() == set()
    command.upgrade(empty, "head")
    assert tables() == wanted


def test_baselines_stay_and_those_begun_go_with_their_column(empty: Config) -> None:
    command.upgrade(empty, "20261123b")
    owner, data = uuid4().hex, uuid4().hex
    at = "2026-11-23 00:00:00+00:00"

    def insert(table: str, **values: object) -> None:
        names = ", ".join(values)
        slots = ", ".join(f":{name}" for name in values)
        with db.engine().begin() as connection:
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({slots})"), values)

    def kept() -> list[str]:
        with db.engine().begin() as connection:
            return list(connection.scalars(text("SELECT digest FROM baselines ORDER BY digest")))

    insert("owners", id=owner, name="o", created_at=at)
    insert(
        "datasets",
        id=data,
        owner_id=owner,
        name="d",
        state="ready",
        sha256="0",
        size_bytes=1,
        refused="[]",
        created_at=at,
    )
    insert("baselines", dataset_id=data, digest="done", output="{}", created_at=at)
    command.upgrade(empty, "head")
    insert("baselines", dataset_id=data, digest="begun", lease_token=uuid4().hex, created_at=at)
    assert kept() == ["begun", "done"]
    command.downgrade(empty, "20261123b")
    assert kept() == ["done"]


def test_models_and_migrations_agree(empty: Config) -> None:
    launcher.migrate()
    command.check(empty)
    for name, table in Base.metadata.tables.items():
        columns = {column["name"]: column for column in inspect(db.engine()).get_columns(name)}
        assert columns.keys() == {column.name for column in table.columns}
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable, (name, column.name)
