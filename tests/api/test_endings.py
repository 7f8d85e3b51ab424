"""Attempts without a result: which of them count, how long the next waits, when it is enough."""

from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest

from api import datasets, storage
from api.db import now, reading, transaction
from api.models import DatasetState, ProtectionState, Queue, Step, StepKind, StepState
from api.scheduling import endings, leases, outbox
from api.scheduling.endings import Setback
from api.scheduling.leases import Claim
from tests.api.conftest import Change, queued
from tests.api.lives import (
    claimed,
    dataset,
    finish,
    freeze,
    must_claim,
    protection,
    requested,
    small_zip,
    step,
)

DIED = Setback("PROCESS_DIED", "The process was killed.", suspect=True)
LOST = Setback("WORKER_LOST", "The worker was lost.", suspect=False)


@pytest.fixture
def asked(owner_id: UUID, ready: UUID) -> UUID:
    return requested(owner_id, ready)


def set_back(claim: Claim, setback: Setback) -> None:
    endings.end(claim, partial(endings.set_back, setback=setback))


def wait_over(step_id: UUID) -> float:
    """Seconds that a step was held for; it need not wait for them here."""
    with transaction() as session:
        row, at = session.get_one(Step, step_id), now(session)
        seconds = (row.not_before - at).total_seconds() if row.not_before else 0.0
        row.not_before = None
    return seconds


def try_once(protection_id: UUID, setback: Setback) -> float:
    """An attempt at the training that is set back; how long the next one has to wait."""
    claim = must_claim(protection_id, StepKind.TRAIN)
    set_back(claim, setback)
    return wait_over(claim.step_id)


def test_suspect_attempts_in_a_row_fail_the_step(asked: UUID) -> None:
    for number in (1, 2):
        try_once(asked, DIED)
        waits = step(asked, StepKind.TRAIN)
        assert (waits.state, waits.attempt, waits.error_code) == (
            *(StepState.READY, number, "PROCESS_DIED"),
        )
    try_once(asked, DIED)
    failed = protection(asked)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "PROCESS_DIED")
    assert failed.error == (
        "The process was killed. This was attempt 3 in a row that kept nothing."
    )


def test_what_happens_to_machines_does_not_count(asked: UUID) -> None:
    for _ in range(10):
        try_once(asked, LOST)
    for _ in range(2):
        try_once(asked, DIED)
        try_once(asked, LOST)
    waits = step(asked, StepKind.TRAIN)
    assert (waits.state, waits.attempt) == (StepState.READY, 2)
    assert protection(asked).state is ProtectionState.RUNNING
    claim = must_claim(asked, StepKind.TRAIN)
    freeze(claim)
    finish(claim)
    assert step(asked, StepKind.TRAIN).error_code is None


def test_the_wait_doubles_up_to_a_limit_and_begins_anew_after_progress(
    asked: UUID, change: Change
) -> None:
    change(BACKOFF_SECONDS=4, BACKOFF_MAX_SECONDS=20)
    for seconds in (4, 8, 16, 20, 20):
        assert try_once(asked, LOST) == pytest.approx(seconds, abs=1)
    claim = must_claim(asked, StepKind.TRAIN)
    with transaction() as session:
        leases.keep(session, claim, 7)
    set_back(claim, LOST)
    assert wait_over(claim.step_id) == pytest.approx(4, abs=1)


def test_nobody_claims_or_knocks_before_the_wait_is_over(asked: UUID, change: Change) -> None:
    change(BACKOFF_SECONDS=1000, BACKOFF_MAX_SECONDS=1000)
    outbox.send_ready()
    claim = must_claim(asked, StepKind.TRAIN)
    set_back(claim, LOST)
    before = queued(Queue.GPU)
    outbox.send_ready()
    assert queued(Queue.GPU) == before
    assert claimed(claim.step_id) is None
    wait_over(claim.step_id)
    outbox.send_ready()
    assert queued(Queue.GPU) == before + 1
    assert claimed(claim.step_id) is not None


def began(step_id: UUID, ago: timedelta) -> datetime:
    """Let the first setback in the row have been a while ago."""
    with transaction() as session:
        row = session.get_one(Step, step_id)
        row.setback_at = (now(session) - ago).replace(second=30)  # not near the next minute
        return row.setback_at


def test_setbacks_for_a_day_are_enough(asked: UUID) -> None:
    try_once(asked, LOST)
    train = step(asked, StepKind.TRAIN)
    began(train.id, timedelta(hours=23))
    try_once(asked, LOST)
    assert step(asked, StepKind.TRAIN).state is StepState.READY
    since = began(train.id, timedelta(hours=24, minutes=2))
    try_once(asked, LOST)
    failed = protection(asked)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "WORKER_LOST")
    assert failed.error == (
        f"The worker was lost. It is setback 3 in a row since {since:%Y-%m-%d %H:%M} UTC."
    )


def test_waiting_for_a_worker_is_no_setback(asked: UUID) -> None:
    try_once(asked, LOST)
    train = step(asked, StepKind.TRAIN)
    began(train.id, timedelta(hours=30))
    with transaction() as session:  # due again half an hour after that; nobody had time for it
        row = session.get_one(Step, train.id)
        row.ready_at = now(session) - timedelta(hours=29.5)
    set_back(must_claim(asked, StepKind.TRAIN), LOST)
    waits = step(asked, StepKind.TRAIN)
    assert (waits.state, waits.setbacks) == (StepState.READY, 2)
    with reading() as session:
        assert waits.setback_at is not None
        lasted = now(session) - waits.setback_at
    assert lasted.total_seconds() == pytest.approx(1800, abs=60)


def test_a_day_of_setbacks_with_progress_is_none(asked: UUID) -> None:
    try_once(asked, LOST)
    began(step(asked, StepKind.TRAIN).id, timedelta(hours=48))
    claim = must_claim(asked, StepKind.TRAIN)
    with transaction() as session:
        leases.keep(session, claim, 7)
    set_back(claim, LOST)
    train = step(asked, StepKind.TRAIN)
    assert (train.state, train.setbacks) == (StepState.READY, 1)
    with reading() as session:
        assert train.setback_at is not None
        assert now(session) - train.setback_at < timedelta(minutes=1)


def test_a_drain_that_keeps_something_ends_the_setbacks(asked: UUID) -> None:
    try_once(asked, LOST)
    began(step(asked, StepKind.TRAIN).id, timedelta(hours=20))
    endings.end(must_claim(asked, StepKind.TRAIN), endings.stop)
    assert step(asked, StepKind.TRAIN).setbacks == 1  # nothing was kept
    claim = must_claim(asked, StepKind.TRAIN)
    with transaction() as session:
        leases.keep(session, claim, 7)
    endings.end(claim, endings.stop)
    train = step(asked, StepKind.TRAIN)
    assert (train.setbacks, train.setback_at) == (0, None)


def test_a_stop_holds_as_long_as_it_is_told_and_says_nothing(asked: UUID) -> None:
    claim = must_claim(asked, StepKind.TRAIN)
    endings.end(claim, partial(endings.postpone, hold_seconds=30))
    train = step(asked, StepKind.TRAIN)
    assert (train.attempt, train.setbacks, train.error_code) == (0, 0, None)
    assert claimed(train.id) is None
    assert wait_over(train.id) == pytest.approx(30, abs=1)


def test_an_upload_that_kills_its_process_is_rejected(owner_id: UUID) -> None:
    dataset_id = uuid4()
    storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), small_zip())
    with transaction() as session:
        datasets.create(session, owner_id, dataset_id, "killer", "0" * 64, 1)
        step_id = datasets.ingest_step(session, dataset_id).id
    for _ in range(3):
        claim = claimed(step_id)
        assert claim is not None
        set_back(claim, DIED)
        wait_over(step_id)
    found = dataset(dataset_id)
    assert (found.state, found.error_code) == (DatasetState.REJECTED, "PROCESS_DIED")
    assert storage.idle_owners("datasets", -1) == {dataset_id}  # it may be read again


def test_who_lost_the_lease_sets_nothing_back(asked: UUID) -> None:
    claim = must_claim(asked, StepKind.TRAIN)
    set_back(claim, LOST)
    wait_over(claim.step_id)
    again = must_claim(asked, StepKind.TRAIN)
    set_back(claim, DIED)
    train = step(asked, StepKind.TRAIN)
    assert (train.state, train.lease_token) == (StepState.RUNNING, again.token)
    assert train.error_code == "WORKER_LOST"
