"""One at a time, by the database's clock; another when that one is lost."""

import time
from datetime import UTC, datetime
from functools import partial

import pytest

from api.db import transaction
from api.scheduling import locks
from tests.api.conftest import together


def hold(holder: str, seconds: float = 60) -> bool:
    with transaction() as session:
        return locks.hold(session, "name", holder, seconds)


def release(holder: str) -> None:
    with transaction() as session:
        locks.release(session, "name", holder)


def test_one_holds_it_and_keeps_it(environment: dict[str, str]) -> None:
    assert environment
    assert hold("a")
    assert not hold("b")
    assert hold("a")
    with transaction() as session:
        assert locks.hold(session, "another", "b", 60)


def test_of_many_at_once_one_gets_it(environment: dict[str, str]) -> None:
    assert environment
    got = together(*[partial(hold, str(number)) for number in range(8)])
    assert sorted(got) == [*[False] * 7, True]


def test_one_that_ran_out_is_taken_by_one(environment: dict[str, str]) -> None:
    assert environment
    assert hold("lost", 0.2)
    time.sleep(0.4)
    got = together(*[partial(hold, str(number)) for number in range(4)])
    assert sorted(got) == [*[False] * 3, True]
    assert not hold("lost")


def test_released_it_is_free_at_once_and_another_s_is_not_released(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same millisecond, which is all that SQLite's clock tells apart."""
    assert environment
    monkeypatch.setattr(locks, "now", lambda _: datetime(2026, 11, 29, tzinfo=UTC))
    assert hold("a")
    release("b")
    assert not hold("b")
    release("a")
    assert hold("b")
    assert not hold("a")
