"""Several hosts on one PostgreSQL: nobody waits for who is gone, nor in a ring."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import Session

from api import db, protections
from api.errors import AppError
from api.models import Owner, Protection, Queue
from api.scheduling import turns
from tests.api.lives import requested, train
from tests.api.test_retry import retry
from tests.servers import wait_for


@pytest.fixture(autouse=True)
def _on_postgresql(environment: dict[str, str]) -> None:
    assert environment["SEPGATE_DATABASE_URL"]
    if db.engine().dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")


def test_connections_are_told_how_long_the_server_waits() -> None:
    with db.reading() as session:
        for name in db.POSTGRESQL_SESSION:
            assert session.scalar(text(f"SHOW {name}")) not in {"0", "7200"}
    with db.transaction() as session:
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "30s"


def test_locks_of_a_host_that_sleeps_are_let_go(
    monkeypatch: pytest.MonkeyPatch, owner_id: UUID
) -> None:
    monkeypatch.setattr(db, "IDLE_LIMIT", db.IDLE_LIMIT.replace("30s", "500ms"))
    row = select(Owner).where(Owner.id == owner_id).with_for_update()

    def sleep() -> None:
        with db.transaction() as asleep:
            asleep.execute(row)
            with patient() as session:
                session.execute(row)  # waits for half a second, and not for good

    with pytest.raises(db.AWAY):
        sleep()


def test_a_reading_may_take_its_time(monkeypatch: pytest.MonkeyPatch, owner_id: UUID) -> None:
    """A plan for a million images does; it holds no lock."""
    monkeypatch.setattr(db, "IDLE_LIMIT", db.IDLE_LIMIT.replace("30s", "100ms"))
    with db.reading() as session:
        assert session.get(Owner, owner_id) is not None
        time.sleep(0.5)
        assert session.scalar(select(func.count()).select_from(Owner)) == 1


def test_one_that_takes_no_writes_is_away(owner_id: UUID) -> None:
    """As after a failover, for a moment."""
    with db.transaction() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        session.get_one(Owner, owner_id).name = "mallory"
        with pytest.raises(InternalError) as caught:
            session.flush()
        assert isinstance(caught.value, db.AWAY)
        session.rollback()


def test_who_cancels_does_not_wait_for_who_claims(owner_id: UUID, ready: UUID) -> None:
    """One that is in line, and would have a step of another owner's next."""
    made = requested(owner_id, ready)
    with db.transaction() as session:
        session.get_one(Owner, owner_id).max_running = 4
    with db.transaction() as claiming:
        turns._wait_in_line(claiming, Queue.GPU)
        with patient() as session:
            protections.cancel(session, owner_id, made)
        assert turns.claim_next(claiming, Queue.GPU, "a worker") is None


def test_a_retry_waits_for_a_protection_that_goes_on(owner_id: UUID, ready: UUID) -> None:
    """And holds nothing meanwhile that this one asks for."""
    made = requested(owner_id, ready)
    train(made)
    again = partial(retry, owner_id, made)
    with ThreadPoolExecutor() as threads, patient() as session:
        protection = session.get_one(Protection, made, with_for_update=True)
        protection.priority += 1
        session.flush()
        asked = threads.submit(again)
        wait_for(is_waited_for, 20, "the retry")
        protection.priority += 1  # the second time its keys are looked at
        session.flush()
        session.commit()
        with pytest.raises(AppError, match="Expected a protection that failed"):
            asked.result(timeout=20)


def is_waited_for() -> bool:
    with db.reading() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


@contextmanager
def patient() -> Iterator[Session]:
    """A transaction that fails where it waits for five seconds."""
    with Session(db.engine()) as session, session.begin():
        session.execute(text("SET LOCAL lock_timeout = '5s'"))
        yield session
