"""Holding a step: what `tick` hears, what the renewing thread does, and what a hang comes to."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from uuid import UUID

import pytest

from api import db, protections, storage
from api.db import AWAY, reading, transaction
from api.models import Step, StepState
from api.scheduling import leases
from api.scheduling.leases import Claim
from api.settings import settings
from tests import pictures, servers
from tests.worker import jobs
from worker import faults, lease, resume
from worker.lease import DrainFlag, Lease, LeaseLost, StepStopped, WorkerDraining
from worker.resume import Keeper

KEY = "protections/a-blob"
NOWHERE = f"postgresql+psycopg://nobody@127.0.0.1:{servers.free_port()}/none"

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def protection_id() -> UUID:
    return jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(3))).id)


@pytest.fixture
def claim(protection_id: UUID) -> Claim:
    assert protection_id
    (train,) = jobs.ready()
    with transaction() as session:
        taken = leases.claim(session, train.id, "tester:1")
    assert taken is not None
    return taken


def row(claim: Claim) -> Step:
    with reading() as session:
        return session.get_one(Step, claim.step_id)


def test_tick_writes_progress(claim: Claim) -> None:
    with Lease(claim, DrainFlag()) as held:
        held.tick(3, 7)
    assert (row(claim).progress_done, row(claim).progress_total) == (3, 7)


@pytest.mark.parametrize(("step_seconds", "apart_seconds"), [(0, 1), (150, 3), (300, 5), (9000, 5)])
def test_a_long_step_reports_more_rarely(
    claim: Claim, step_seconds: float, apart_seconds: float
) -> None:
    with Lease(claim, DrainFlag()) as held:
        held._began -= step_seconds
        held.tick(1, 9)
        held._reported -= apart_seconds - 0.5
        held.tick(2, 9)
        assert row(claim).progress_done == 1
        held._reported -= 0.5
        held.tick(3, 9)
        assert row(claim).progress_done == 3


def test_tick_stops_a_cancelled_protection(
    claim: Claim, protection_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "REPORT_SECONDS", 0)
    with Lease(claim, DrainFlag()) as held:
        held.tick(1, 7)
        with transaction() as session:
            protections.cancel(session, jobs.owner(), protection_id)
        with pytest.raises(StepStopped):
            held.tick(2, 7)


def test_tick_stops_who_has_lost_the_lease(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REPORT_SECONDS", 0)
    with Lease(claim, DrainFlag()) as held:
        with transaction() as session:
            leases.give_back(session, session.get_one(Step, claim.step_id), counts=True)
        with pytest.raises(LeaseLost):
            held.tick(1, 7)


def test_tick_stops_a_worker_that_is_to_end_after_a_while(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = DrainFlag()
    monkeypatch.setattr(settings(), "drain_seconds", 60)
    with Lease(claim, drain) as held:
        drain.set()
        held.tick(1, 7)
        drain._since.value -= 61
        drain.set()  # once more: that gives no more time
        with pytest.raises(WorkerDraining):
            held.tick(3, 7)


def test_the_thread_renews_while_ticks_come(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "lease_renew_seconds", 0.05)
    before = row(claim).lease_expires_at
    with Lease(claim, DrainFlag()):
        time.sleep(0.5)
    after = row(claim).lease_expires_at
    assert before is not None
    assert after is not None
    assert after > before


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """For a while this process finds no database; whoever else there is does."""
    there = settings().database

    def cut(off: bool) -> None:
        db.engine().dispose()
        monkeypatch.setattr(settings(), "database_url", NOWHERE if off else there)
        db.engine.cache_clear()

    yield cut
    cut(False)


def test_who_is_cut_off_stores_while_nobody_else_can_have_the_step(
    claim: Claim, cut_off: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings(), "stall_seconds", 0)
    with Lease(claim, DrainFlag()):
        cut_off(True)
        lease.store(claim, KEY, b"first")
        lease._ours_at[claim.token] -= 76  # of 90, of which 15 pass between two renewals
        with pytest.raises(AWAY):
            lease.store(claim, KEY, b"second")
        assert storage.read(KEY) == b"first"
        cut_off(False)
        lease.store(claim, KEY, b"third")
        assert storage.read(KEY) == b"third"


def test_a_training_goes_on_while_its_state_can_not_be_kept(
    claim: Claim, cut_off: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings(), "stall_seconds", 0)
    with Lease(claim, DrainFlag()):
        cut_off(True)
        lease._ours_at[claim.token] -= 76
        keeper = Keeper(claim, KEY)
        keeper.save({"training": 1}, 1)
        assert resume.load(KEY) is None
        cut_off(False)
        keeper.save({"training": 2}, 2)
    assert resume.load(KEY) == {"training": 2, "done": 2}
    assert row(claim).progress_kept == 2


def test_and_waits_for_the_database_after_that(
    claim: Claim, cut_off: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_AGAIN_SECONDS", 0.1)
    with Lease(claim, DrainFlag()):
        lease._ours_at[claim.token] -= 76
        cut_off(True)
        back = threading.Timer(1, cut_off, [False])
        back.start()
        lease.check_held(claim)
        back.join()
        with transaction() as session:
            leases.give_back(session, session.get_one(Step, claim.step_id), counts=True)
        with pytest.raises(LeaseLost):
            lease.check_held(claim)


@pytest.mark.parametrize("asleep", [True, False])
def test_a_host_that_was_asleep_has_not_stalled(
    claim: Claim, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    class Waiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock.now += (timeout or 0) + settings().stall_seconds * asleep
            return False

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: clock.now))
    held = Lease(claim, DrainFlag())
    held._over = Waiting()
    clock.now += settings().stall_seconds
    held._waited()
    assert held._has_stalled() is not asleep


def hanging(claim: Claim, more: str = "") -> "subprocess.CompletedProcess[bytes]":
    """A process that claims the step, does `more` and nothing after it."""
    program = textwrap.dedent(
        f"""
        import threading, time
        from uuid import UUID
        from api.scheduling import leases
        from api.scheduling.leases import Claim
        from api.models import StepKind
        from worker import lease
        from worker.lease import DrainFlag, Lease
        {more}
        claim = {claim!r}
        with Lease(claim, DrainFlag()):
            time.sleep(60)
        """
    ).replace(repr(claim.kind), "StepKind.TRAIN")
    variables = {"SEPGATE_LEASE_RENEW_SECONDS": "0.1", "SEPGATE_STALL_SECONDS": "0.5"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | variables,
        timeout=30,
        check=False,
        capture_output=True,
    )


def test_a_process_that_hangs_ends(claim: Claim) -> None:
    """Nobody could claim its step again as long as it held the device."""
    ended = hanging(claim)
    assert ended.returncode == faults.EXIT_STALLED
    assert b"stalled" in ended.stderr
    waits = row(claim)
    assert (waits.state, waits.attempt, waits.error_code) == (StepState.READY, 1, "STALLED")


def test_a_process_that_hangs_ends_though_the_database_does_too(claim: Claim) -> None:
    stuck = "leases.renew = leases.held = lambda *_: time.sleep(60); lease.TELL_SECONDS = 1"
    ended = hanging(claim, stuck)
    assert ended.returncode == faults.EXIT_STALLED
    assert row(claim).state is StepState.RUNNING  # until its lease runs out
