"""Migrations make the tables of `api.models`, on both databases, there and back."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, MetaData, inspect, select, text

from api import db
from api.db import Base
from api.models import (
    Dataset,
    DatasetState,
    Protection,
    ProtectionState,
    Queue,
    Step,
    StepKind,
    StepState,
)
from api.revision import MIGRATIONS, config, migrate, objection
from api.scheduling import endings, turns
from api.settings import settings
from tests import servers
from tests.servers import wait_for


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
    yield config()
    db.engine().dispose()
    monkeypatch.undo()
    settings.cache_clear()
    db.engine.cache_clear()


def tables() -> set[str]:
    return set(inspect(db.engine()).get_table_names()) - {"alembic_version"}


def test_up_from_nothing_down_and_up_again(empty: Config) -> None:
    wanted = set(Base.metadata.tables)
    assert tables() == set()
    migrate()
    assert tables() == wanted
    migrate()  # again is harmless
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
    migrate()
    command.check(empty)
    for name, table in Base.metadata.tables.items():
        columns = {column["name"]: column for column in inspect(db.engine()).get_columns(name)}
        assert columns.keys() == {column.name for column in table.columns}
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable, (name, column.name)


REVISIONS = [
    revision.revision
    for revision in ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    if not revision.is_head
]
DUMMIES: dict[type, Callable[[], object]] = {
    str: lambda: uuid4().hex,
    int: lambda: 1,
    float: lambda: 0.5,
    bool: lambda: False,
    datetime: lambda: datetime(2026, 11, 20, tzinfo=UTC),
    UUID: uuid4,
    dict: dict,
    list: list,
}


def insert(tables: MetaData, name: str, *, full: bool = False, **values: object) -> UUID:
    """A row with what is given, and anything in the other columns that must have something.

    Args:
        full: in those that need not have anything, too, but for references to other rows.
    """
    table, key = tables.tables[name], uuid4()
    row = {"id": key, "created_at": DUMMIES[datetime]()} | values
    for column in table.columns:
        wanted = not column.foreign_keys if full else not column.nullable
        if wanted and column.name not in row and (full or column.server_default is None):
            is_json = isinstance(column.type, JSON)
            row[column.name] = {} if is_json else DUMMIES[column.type.python_type]()
    known = {name: _plain(value) for name, value in row.items() if name in table.columns}
    with db.engine().begin() as connection:
        connection.execute(table.insert().values(known))
    return key


def _plain(value: object) -> object:
    """SQLite's columns are read back as CHAR(32) and as times without a zone."""
    sqlite = db.engine().dialect.name == "sqlite"
    if isinstance(value, UUID) and sqlite:
        return value.hex
    if isinstance(value, datetime) and sqlite:
        return value.replace(tzinfo=None)
    return value


def rows(tables: MetaData) -> dict[str, list[object]]:
    """All of each table, in the columns that it had when `tables` was read."""
    with db.engine().begin() as connection:
        return {
            name: list(connection.execute(select(table).order_by(table.columns["id"])).all())
            for name, table in tables.tables.items()
        }


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_in_every_state_survive_the_way_to_the_newest(empty: Config, revision: str) -> None:
    command.upgrade(empty, revision)
    tables = MetaData()
    tables.reflect(db.engine(), only=["owners", "datasets", "protections", "steps"])
    owner = insert(tables, "owners")
    data = {
        state: insert(tables, "datasets", full=True, owner_id=owner, state=state, refused=[])
        for state in DatasetState
    }
    made = {}
    for stage in ProtectionState:
        values = {"owner_id": owner, "dataset_id": data[DatasetState.READY], "state": stage}
        made[stage] = insert(tables, "protections", full=True, **values, config=None, plan=None)
    steps = {}
    for number, (kind, state) in enumerate(product(StepKind, StepState)):
        of = {"protection_id": made[ProtectionState.RUNNING]}
        if kind is StepKind.INGEST:
            of = {"dataset_id": data[DatasetState.INGESTING]}
        step = insert(tables, "steps", full=True, **of, kind=kind, state=state, index=number)
        steps[step] = (kind, state)
    queued = made[ProtectionState.QUEUED]
    first = {"kind": StepKind.TRAIN, "state": StepState.READY, "index": 0}
    train = insert(tables, "steps", full=False, **first, protection_id=queued)
    steps[train] = (StepKind.TRAIN, StepState.READY)

    before = rows(tables)
    migrate()
    assert rows(tables) == before
    with db.reading() as session:
        assert {row.state: row.id for row in session.scalars(select(Dataset))} == data
        assert {row.state: row.id for row in session.scalars(select(Protection))} == made
        assert {row.id: (row.kind, row.state) for row in session.scalars(select(Step))} == steps
    with db.transaction() as session:
        claim = turns.claim_next(session, Queue.GPU, "a worker")
        assert claim is not None
        assert claim.step_id == train
        assert endings.stop(session, session.get_one(Step, train)) is not None


@pytest.mark.parametrize("revision", REVISIONS[: REVISIONS.index("20261123a") + 1])
def test_processes_of_that_version_still_find_and_write_their_columns(
    empty: Config, revision: str
) -> None:
    """The rule since the one that took away the speeds that were not told by side."""
    command.upgrade(empty, revision)
    before, after = MetaData(), MetaData()
    before.reflect(db.engine())
    migrate()
    after.reflect(db.engine())
    for name, table in before.tables.items():
        columns = after.tables[name].columns
        assert set(table.columns.keys()) <= set(columns.keys())
        added = [column for column in columns if column.name not in table.columns]
        assert [c.name for c in added if not c.nullable and c.server_default is None] == []
        for column in table.columns:
            assert str(columns[column.name].type) == str(column.type)  # statements are prepared
            assert columns[column.name].nullable or not column.nullable
            assert column.server_default is None or columns[column.name].server_default is not None


@pytest.mark.parametrize("empty", ["postgresql"], indirect=True)
def test_a_table_in_use_keeps_others_waiting_for_no_longer_than_it_must(empty: Config) -> None:
    command.upgrade(empty, "20261128a")  # the next one changes `steps`
    with ThreadPoolExecutor() as threads, db.engine().connect() as user:
        user.execute(text("SELECT * FROM steps"))
        migrating = threads.submit(migrate)
        for _ in range(3):
            wait_for(is_waiting_for_a_table, 30, "the migration")
            began = time.monotonic()
            with db.engine().begin() as other:
                other.execute(text("SET LOCAL lock_timeout = '5s'"))
                other.execute(text("SELECT * FROM steps"))
            assert time.monotonic() - began < 5  # and not for as long as `user` goes on
        assert not migrating.done()
        user.rollback()
        migrating.result(timeout=60)
    with db.reading() as session:
        assert objection(session.connection()) is None


def is_waiting_for_a_table() -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    query += " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    with db.engine().begin() as connection:
        return bool(connection.scalar(text(query)))


@pytest.mark.usefixtures("empty")
def test_several_may_migrate_at_once() -> None:
    """As hosts do that are brought up together: each in a process of its own."""
    script = "from api import revision; print(flush=True); input(); revision.migrate()"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for host in hosts:  # until each has imported what it needs
            assert host.stdout is not None
            host.stdout.readline()
        for host in hosts:
            assert host.stdin is not None
            print(file=host.stdin, flush=True)
        for host in hosts:
            host.communicate(timeout=200)
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0] * 4
    assert tables() == set(Base.metadata.tables)
