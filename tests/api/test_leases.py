"""One worker a step: claims, leases, and tokens that are worth nothing once they are lost."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from api import datasets, progress, protections, storage
from api.db import now, reading, transaction
from api.models import DatasetState, ProtectionState, Step, StepKind, StepState
from api.scheduling import endings, leases
from api.scheduling.leases import Claim, Word
from api.settings import settings
from tests.api.conftest import Change, together
from tests.api.lives import (
    claimed,
    dataset,
    finish,
    must_claim,
    protection,
    requested,
    small_zip,
    step,
    train,
)


@pytest.fixture
def queued(owner_id: UUID, ready: UUID) -> UUID:
    return requested(owner_id, ready)


def fail(claim: Claim, code: str = "BROKEN") -> None:
    endings.end(claim, partial(endings.fail, code=code, message="It broke."))


def cancel(owner_id: UUID, protection_id: UUID) -> None:
    with transaction() as session:
        ended = protections.cancel(session, owner_id, protection_id)
    protections.clean(ended)


def stop(claim: Claim) -> None:
    endings.end(claim, endings.stop)


def report(claim: Claim, done: int = 1, total: int = 2) -> Word:
    with transaction() as session:
        return leases.report(session, claim, done, total)


def renew(claim: Claim) -> bool:
    with transaction() as session:
        return leases.renew(session, claim)


def lose(claim: Claim) -> None:
    """What the sweep does with a step whose lease ran out."""
    with transaction() as session:
        leases.give_back(session, session.get_one(Step, claim.step_id), counts=True)


def test_of_eight_claims_one_wins(queued: UUID) -> None:
    step_id = step(queued, StepKind.TRAIN).id
    claims = together(*[partial(claimed, step_id, f"worker {n}") for n in range(8)])
    assert sum(isinstance(claim, Claim) for claim in claims) == 1
    assert claims.count(None) == 7
    won = step(queued, StepKind.TRAIN)
    assert (won.state, won.attempt) == (StepState.RUNNING, 1)
    assert protection(queued).state is ProtectionState.RUNNING


def test_an_ingest_step_is_claimed_once(owner_id: UUID) -> None:
    with transaction() as session:
        row = datasets.create(session, owner_id, uuid4(), "pets", "0" * 64, 1)
        step_id = datasets.ingest_step(session, row.id).id
    claims = together(*[partial(claimed, step_id) for _ in range(4)])
    assert sum(isinstance(claim, Claim) for claim in claims) == 1


def test_nothing_to_claim(owner_id: UUID, ready: UUID) -> None:
    assert claimed(uuid4()) is None
    cancelled, failed = requested(owner_id, ready), requested(owner_id, ready)
    assert claimed(step(cancelled, StepKind.PACKAGE).id) is None  # waits for others
    cancel(owner_id, cancelled)
    assert claimed(step(cancelled, StepKind.TRAIN).id) is None
    train(failed)
    fail(must_claim(failed, StepKind.PERTURB, 0))
    assert protection(failed).state is ProtectionState.FAILED
    assert claimed(step(failed, StepKind.PERTURB, 1).id) is None


def test_nothing_to_claim_beside_a_failed_step(queued: UUID) -> None:
    train(queued)
    first, second = must_claim(queued, StepKind.PERTURB, 0), step(queued, StepKind.PERTURB, 1)
    assert second.state is StepState.READY
    with transaction() as session:
        held = leases.held(session, first)
        assert held is not None
        leases.fail(session, held, "BROKEN", "It broke.")
    assert claimed(second.id) is None


def test_an_attempt_that_kept_something_does_not_count(queued: UUID) -> None:
    """Lost again and again, it gets on all the same; without that, attempts add up."""
    for kept, attempt in ((0, 1), (0, 2), (5, 0), (5, 1), (5, 2), (9, 0), (9, 1)):
        claim = must_claim(queued, StepKind.TRAIN)
        with transaction() as session:
            leases.begin(session, claim, step(queued, StepKind.TRAIN).progress_kept)
            leases.keep(session, claim, kept)
        lose(claim)
        assert step(queued, StepKind.TRAIN).attempt == attempt
    stopped = must_claim(queued, StepKind.TRAIN)
    assert stopped.attempt == 2
    with transaction() as session:
        leases.keep(session, stopped, 12)
    stop(stopped)
    assert must_claim(queued, StepKind.TRAIN).attempt == 1


def test_the_next_attempt_begins_with_what_was_kept(queued: UUID) -> None:
    first = must_claim(queued, StepKind.TRAIN)
    with transaction() as session:
        leases.report(session, first, 70, 100)
        leases.keep(session, first, 60)
    lose(first)
    with transaction() as session:
        leases.keep(session, first, 90)  # it is not theirs any more
    second = must_claim(queued, StepKind.TRAIN)
    found = step(queued, StepKind.TRAIN)
    assert (found.progress_done, found.progress_begun, found.progress_kept) == (60, 60, 60)
    with transaction() as session:
        leases.begin(session, second, 0)  # what was kept is damaged
    found = step(queued, StepKind.TRAIN)
    assert (found.progress_done, found.progress_begun, found.progress_kept) == (0, 0, 0)


def test_a_claim_and_a_cancel_at_once(owner_id: UUID, ready: UUID) -> None:
    """Never a cancelled protection with a step that runs: nobody would clean up after it."""
    for _ in range(12):
        protection_id = requested(owner_id, ready)
        step_id = step(protection_id, StepKind.TRAIN).id
        together(partial(claimed, step_id), partial(cancel, owner_id, protection_id))
        found = protection(protection_id)
        running = step(protection_id, StepKind.TRAIN).state is StepState.RUNNING
        assert found.cancel_requested
        assert found.state is (ProtectionState.RUNNING if running else ProtectionState.CANCELLED)


@pytest.mark.parametrize("again", [False, True], ids=["given back", "held by another"])
def test_a_lost_token_writes_nothing(queued: UUID, again: bool) -> None:
    lost = must_claim(queued, StepKind.TRAIN)
    lose(lost)
    if again:
        must_claim(queued, StepKind.TRAIN)
    before = step(queued, StepKind.TRAIN)
    assert renew(lost) is False
    assert report(lost, 7, 9) is Word.LOST
    finish(lost, {"stolen": True})
    fail(lost)
    stop(lost)
    after = step(queued, StepKind.TRAIN)
    for name in ("state", "lease_token", "lease_expires_at", "progress_done", "output", "attempt"):
        assert getattr(after, name) == getattr(before, name), name
    assert protection(queued).state is ProtectionState.RUNNING


def test_a_finished_step_hears_no_more(queued: UUID) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    finish(claim, {"first": 1})
    finish(claim, {"second": 2})
    fail(claim)
    assert report(claim) is Word.LOST
    done = step(queued, StepKind.TRAIN)
    assert (done.state, done.output, done.error_code) == (StepState.DONE, {"first": 1}, None)


def test_a_lost_ingest_writes_nothing(owner_id: UUID) -> None:
    dataset_id = uuid4()
    storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), small_zip())
    with transaction() as session:
        datasets.create(session, owner_id, dataset_id, "pets", "0" * 64, 1)
        step_id = datasets.ingest_step(session, dataset_id).id
    old = claimed(step_id)
    assert old is not None
    lose(old)
    with transaction() as session:
        datasets.ready(session, old, {"summary": {}, "refused": []})
    assert dataset(dataset_id).state is DatasetState.INGESTING


def test_renewing_pushes_the_expiry_on(queued: UUID, change: Change) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    first = step(queued, StepKind.TRAIN).lease_expires_at
    change(LEASE_SECONDS=500)
    assert renew(claim) is True
    second = step(queued, StepKind.TRAIN).lease_expires_at
    assert first is not None
    assert second is not None
    assert second - first > timedelta(seconds=400)


def test_reports_are_heard(owner_id: UUID, queued: UUID) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    assert report(claim, 3, 10) is Word.GO_ON
    running = step(queued, StepKind.TRAIN)
    assert (running.progress_done, running.progress_total) == (3, 10)
    assert progress.share_done(running) == pytest.approx(0.3)
    cancel(owner_id, queued)
    assert protection(queued).state is ProtectionState.RUNNING
    assert report(claim, 4, 10) is Word.STOP
    stop(claim)
    assert protection(queued).state is ProtectionState.CANCELLED


def test_a_step_hears_of_the_failure_of_another(queued: UUID) -> None:
    train(queued)
    first, second = (must_claim(queued, StepKind.PERTURB, index) for index in (0, 1))
    assert report(second) is Word.GO_ON
    fail(first)
    assert report(second) is Word.STOP


def test_draining_uses_no_attempt(queued: UUID) -> None:
    for _ in range(5):
        stop(must_claim(queued, StepKind.TRAIN))
    assert step(queued, StepKind.TRAIN).attempt == 0
    lose(must_claim(queued, StepKind.TRAIN))
    given = step(queued, StepKind.TRAIN)
    assert (given.attempt, given.state) == (1, StepState.READY)
    assert (given.lease_token, given.lease_expires_at, given.sent_at) == (None, None, None)


def expire(claim: Claim, seconds: float) -> None:
    with transaction() as session:
        at = now(session) + timedelta(seconds=seconds)
        session.execute(update(Step).where(Step.id == claim.step_id).values(lease_expires_at=at))


def test_only_leases_that_ran_out_are_expired(owner_id: UUID, ready: UUID) -> None:
    made = [requested(owner_id, ready) for _ in range(3)]
    claims = [must_claim(protection_id, StepKind.TRAIN) for protection_id in made]
    expire(claims[0], -1)
    expire(claims[1], 30)
    finish(claims[2])
    with transaction() as session:
        assert [found.id for found in leases.expired(session)] == [claims[0].step_id]


def test_a_renewed_lease_is_not_expired(queued: UUID) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    expire(claim, -1)
    assert renew(claim) is True
    with transaction() as session:
        assert leases.expired(session) == []


def test_times_come_from_the_databases_clock(queued: UUID) -> None:
    with reading() as session:
        before = now(session)
    must_claim(queued, StepKind.TRAIN)
    with reading() as session:
        after = now(session)
    running = step(queued, StepKind.TRAIN)
    assert running.started_at is not None
    assert running.lease_expires_at is not None
    assert before <= running.started_at <= after
    lease = running.lease_expires_at - running.started_at
    assert lease == timedelta(seconds=settings().lease_seconds)
    assert before.tzinfo is not None
    assert abs(before - datetime.now(UTC)) < timedelta(seconds=5)


def test_the_clock_moves_within_a_transaction(environment: dict[str, str]) -> None:
    assert environment
    with transaction() as session:
        first = now(session)
        time.sleep(0.01)
        assert now(session) > first  # the start of the transaction would not have moved
