"""A database that was away says nothing of the workers that could not reach it."""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest
from sqlalchemy import text, update

from api.db import AWAY, engine, now, transaction
from api.models import Step, StepState
from api.scheduling import leases
from api.settings import settings
from sep_core import surrogate
from tests import pictures
from tests.api.conftest import take_writes
from tests.worker import jobs
from worker import faults, sweep
from worker.sweep import Outage

BEGAN = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _periods(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("lease", 90), ("lease_renew", 15), ("sweep", 5)):
        monkeypatch.setattr(settings(), f"{name}_seconds", seconds)


def over(outage: Outage, *seconds: float) -> list[bool]:
    return [outage.is_over(BEGAN + timedelta(seconds=at)) for at in seconds]


def test_holders_are_given_a_lease_s_time_at_first() -> None:
    assert over(Outage(), 0, 5, 10, 35, 60, 85, 89, 90, 95) == [False] * 7 + [True] * 2


def test_and_after_nobody_could_look_for_a_while() -> None:
    outage = Outage()
    assert over(outage, 0, 30, 60, 90, 120) == [False] * 3 + [True] * 2
    assert over(outage, 151, 156) == [False] * 2
    assert over(outage, 180, 210, 240, 241) == [False] * 2 + [False, True]


def test_a_round_that_takes_long_is_no_outage() -> None:
    outage = Outage()
    over(outage, 0, 30, 60, 90)
    outage.looked(BEGAN + timedelta(seconds=200))
    assert over(outage, 205) == [True]


def test_where_rounds_are_rarer_than_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "lease_renew_seconds", 1)
    assert over(Outage(), *range(0, 95, 5))[-2:] == [False, True]


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.usefixtures("environment")
def test_a_sweep_frees_nothing_before(lost: bool) -> None:
    jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(3))).id)
    jobs.begin()
    with transaction() as session:
        past = now(session) - timedelta(seconds=1)
        running = update(Step).where(Step.state == StepState.RUNNING)
        session.execute(running.values(lease_expires_at=past))
    sweep.sweep(lost=lost)
    with transaction() as session:
        assert bool(leases.expired(session)) is not lost


@pytest.mark.usefixtures("environment")
def test_a_database_that_takes_no_writes_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read all the time, but nobody can renew a lease."""
    if engine().dialect.name != "postgresql":
        pytest.skip("SQLite has no stand-by")
    for name, seconds in (("lease", 1), ("lease_renew", 0.1), ("sweep", 0.1)):
        monkeypatch.setattr(settings(), f"{name}_seconds", seconds)
    jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(3))).id)
    outage = Outage()
    sweep.take_turn(outage)
    for _ in range(12):  # it has long been there
        time.sleep(0.1)
        assert sweep.take_turn(outage)
    jobs.begin()
    take_writes("off")
    for _ in range(4):
        with pytest.raises(AWAY):
            sweep.take_turn(outage)
        time.sleep(0.1)
    take_writes("on")
    with transaction() as session:
        running = update(Step).where(Step.state == StepState.RUNNING)
        session.execute(running.values(lease_expires_at=now(session) - timedelta(seconds=1)))
    sweep.take_turn(outage)
    assert lost() == 1
    for _ in range(12):
        time.sleep(0.1)
        sweep.take_turn(outage)
    assert lost() == 0


@pytest.mark.usefixtures("environment")
def test_why_a_step_failed_is_told_when_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if engine().dialect.name != "postgresql":
        pytest.skip("SQLite has no stand-by")
    timers = [threading.Timer(1, take_writes, ["on"])]

    def diverge(*_: Any, **__: Any) -> NoReturn:
        take_writes("off")
        timers[0].start()
        raise FloatingPointError("The loss is not finite.")

    monkeypatch.setattr(surrogate, "train", diverge)
    made = jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(3))).id)
    jobs.work()
    timers[0].join()
    assert jobs.show(made).error_code == "TRAINING_DIVERGED"


def lost() -> int:
    with transaction() as session:
        return len(leases.expired(session))


@pytest.mark.usefixtures("environment")
def test_a_database_that_takes_no_writes_is_no_defect_of_ours() -> None:
    if engine().dialect.name != "postgresql":
        pytest.skip("SQLite has no stand-by")
    with transaction() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(AWAY) as caught:
            session.execute(update(Step).values(sent_at=None))
    found = faults.setback(caught.value)
    assert (found.code, found.suspect) == ("INFRASTRUCTURE", False)
