"""Transactions as both databases are made to keep them."""

import subprocess
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import DBAPIError

from api import db
from api.db import AWAY, engine, reading, transaction
from api.models import Dataset, Owner, Step
from tests.api.conftest import together
from tests.api.lives import dataset, ingested


def test_a_reading_sees_one_state(owner_id: UUID) -> None:
    """A list may look up each row's step: none may vanish between the two."""
    made = ingested(owner_id)
    count = select(func.count()).select_from(Dataset)
    with reading() as session:
        before = session.scalar(count)
        with transaction() as other:
            other.delete(other.get_one(Dataset, made))
        assert session.scalar(count) == before == 1
    with reading() as session:
        assert session.scalar(count) == 0


def test_what_fails_is_undone(owner_id: UUID) -> None:
    def rename() -> None:
        with transaction() as session:
            session.get_one(Owner, owner_id).name = "mallory"
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        rename()
    with reading() as session:
        assert session.get_one(Owner, owner_id).name == "alice"


def test_writers_wait_for_each_other(owner_id: UUID) -> None:
    """Reading before writing in one transaction is where SQLite gives up without `IMMEDIATE`."""

    def rename(letter: str) -> None:
        with transaction() as session:
            owner = session.get_one(Owner, owner_id, with_for_update=True)
            owner.name += letter

    letters = "abcdefgh"
    assert together(*[partial(rename, letter) for letter in letters]) == [None] * 8
    with reading() as session:
        assert sorted(session.get_one(Owner, owner_id).name[5:]) == list(letters)


def test_references_are_kept(owner_id: UUID) -> None:
    ingested(owner_id)
    with pytest.raises(DBAPIError), transaction() as session:
        session.execute(text("DELETE FROM owners"))


def test_times_come_back_in_utc(owner_id: UUID) -> None:
    made = ingested(owner_id)
    east = datetime(2026, 11, 22, 1, 30, tzinfo=timezone(timedelta(hours=5)))
    with transaction() as session:
        session.get_one(Dataset, made).created_at = east
    found = dataset(made).created_at
    assert found == east
    assert found.tzinfo is UTC


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_host_that_does_not_answer_is_given_up_within_half_a_minute() -> None:
    connection = engine().raw_connection()
    given = connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    connection.close()
    assert int(given["tcp_user_timeout"]) == 30_000
    idle, interval, count = (
        int(given[f"keepalives_{name}"]) for name in ("idle", "interval", "count")
    )
    assert idle + interval * count <= 30


def test_a_connection_that_could_not_write_is_not_used_again(environment: dict[str, str]) -> None:
    """SQLite opens a file that can't be written to read it, and stays at that."""
    if db.engine().dialect.name != "sqlite":
        pytest.skip("PostgreSQL says for each transaction whether it may write")
    assert environment
    with db.engine().connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(AWAY), transaction() as session:
        session.execute(update(Step).values(sent_at=None))
    with transaction() as session:
        session.execute(update(Step).values(sent_at=None))


def test_a_file_that_can_t_be_written_is_no_database_that_takes_writes(
    environment: dict[str, str],
) -> None:
    if db.engine().dialect.name != "sqlite":
        pytest.skip("of PostgreSQL see test_health")
    assert environment
    assert db.write_objection() is None
    with transaction():  # another's: it takes writes, one after the other
        assert db.write_objection() is None
    file = str(db.engine().url.database)
    if subprocess.run(["chattr", "+i", file], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to make a file immutable")
    try:
        assert str(db.write_objection()).endswith(f"got {file}: read-only.")
    finally:
        subprocess.run(["chattr", "-i", file], check=True)
