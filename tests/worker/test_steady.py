"""Nothing is deleted for its age by a clock that may be wrong."""

import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from worker import steady
from worker.steady import SteadyClock

BEGAN = datetime(2026, 12, 1, tzinfo=UTC)
MINUTE = 60.0


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """This process's clock."""
    clock = SimpleNamespace(now=7.0)
    monkeypatch.setattr(steady, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def looks(clock: SteadyClock, own: SimpleNamespace, minutes: int, wrong: float = 0) -> list[bool]:
    """What a look every five minutes says, of a database whose clock is wrong by so much."""
    found = []
    for _ in range(0, minutes, 5):
        own.now += 5 * MINUTE
        found.append(clock.is_trusted(BEGAN + timedelta(seconds=own.now + wrong)))
    return found


def test_it_is_believed_after_an_hour(own: SimpleNamespace) -> None:
    assert looks(SteadyClock(), own, 70) == [False] * 11 + [True] * 3


def test_one_that_was_a_year_ahead_is_put_right(
    own: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteadyClock()
    assert not any(looks(clock, own, 50, wrong=365 * 86_400))
    assert looks(clock, own, 70) == [False] * 12 + [True] * 2
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("the database's clock jumped by -31536000 s")


def test_and_one_that_was_right_is_a_year_ahead(own: SimpleNamespace) -> None:
    clock = SteadyClock()
    assert looks(clock, own, 70)[-1]
    assert not any(looks(clock, own, 60, wrong=365 * 86_400))


def test_a_clock_that_is_moved_along_slowly_is_no_jump(own: SimpleNamespace) -> None:
    clock = SteadyClock()
    found = [looks(clock, own, 5, wrong=30.0 * number)[0] for number in range(14)]
    assert found == [False] * 11 + [True] * 3
