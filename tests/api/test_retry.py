"""A protection that failed may go on, as long as what it would go on from is there."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import update

from api import datasets, events, progress, protections
from api.db import now, reading, transaction
from api.errors import AppError
from api.models import Event, Protection, ProtectionState, StepKind, StepState
from api.scheduling import endings, leases
from api.scheduling.leases import Claim
from tests.api.conftest import Change, blobs, together
from tests.api.lives import (
    claimed,
    finish,
    freeze,
    must_claim,
    protection,
    requested,
    states,
    step,
    succeed,
    train,
)


def fail(claim: Claim) -> None:
    endings.end(claim, partial(endings.fail, code="BROKEN", message="It broke."))


def retry(owner_id: UUID, protection_id: UUID) -> None:
    with transaction() as session:
        protections.retry(session, owner_id, protection_id)


def refused(owner_id: UUID, protection_id: UUID) -> str:
    with pytest.raises(AppError) as refusal:
        retry(owner_id, protection_id)
    assert refusal.value.status == 409
    return refusal.value.code


@pytest.fixture
def failed(owner_id: UUID, ready: UUID) -> UUID:
    """One of its two shards failed, the other is done."""
    made = requested(owner_id, ready)
    train(made)
    first, second = (must_claim(made, StepKind.PERTURB, index) for index in (0, 1))
    fail(first)
    finish(second)
    assert protection(made).state is ProtectionState.FAILED
    return made


def test_its_eta_is_of_what_was_done_since(owner_id: UUID, failed: UUID) -> None:
    """Not of the days before it was asked for."""

    def eta() -> float | None:
        with reading() as session:
            row = session.get_one(Protection, failed)
            return progress.eta_seconds(
                session, row, progress.of(session, [failed])[failed], now(session)
            )

    with transaction() as session:
        row = session.get_one(Protection, failed)
        assert row.started_at is not None
        row.started_at -= timedelta(days=6)
    retry(owner_id, failed)
    assert eta() is None
    again = must_claim(failed, StepKind.PERTURB, 0)
    assert eta() is None
    with transaction() as session:
        session.execute(
            update(Event)
            .where(Event.protection_id == failed, Event.what == events.RETRY_REQUESTED)
            .values(at=now(session) - timedelta(minutes=1))
        )
        leases.report(session, again, 5, 10)
    # Of 15 in all, 6 were done before, and 1 in this minute.
    assert eta() == pytest.approx(60 * 8, rel=0.1)


def test_what_is_kept_is_progress_and_none_of_it_was_done_since(
    owner_id: UUID, ready: UUID
) -> None:
    """A third: it has no end in decimals."""
    made = requested(owner_id, ready)
    claim = must_claim(made, StepKind.TRAIN)
    freeze(claim)
    with transaction() as session:
        leases.report(session, claim, 2, 3)
        leases.keep(session, claim, 1)
    assert progress.share_done(step(made, StepKind.TRAIN)) == pytest.approx(2 / 3)
    fail(claim)
    retry(owner_id, made)
    assert progress.share_done(step(made, StepKind.TRAIN)) == pytest.approx(1 / 3)
    again = must_claim(made, StepKind.TRAIN)
    with transaction() as session:
        assert leases.report(session, again, 0, 0) is leases.Word.GO_ON  # while it decodes
    assert progress.share_done(step(made, StepKind.TRAIN)) == pytest.approx(1 / 3)
    with transaction() as session:
        leases.report(session, again, 0, 3)  # while it changes images that it will train on
    assert progress.share_done(step(made, StepKind.TRAIN)) == pytest.approx(1 / 3)
    with reading() as session:
        row = session.get_one(Protection, made)
        assert (
            progress.eta_seconds(session, row, progress.of(session, [made])[made], now(session))
            is None
        )


def test_it_goes_on_where_it_failed(owner_id: UUID, failed: UUID) -> None:
    before = protection(failed)
    retry(owner_id, failed)
    after = protection(failed)
    assert (after.state, after.error_code, after.error, after.finished_at) == (
        *(ProtectionState.RUNNING, None, None, None),
    )
    assert (after.config, after.plan) == (before.config, before.plan)
    assert states(failed)[:6] == [
        (StepKind.TRAIN, StepState.DONE),
        (StepKind.PERTURB, StepState.READY),
        (StepKind.PERTURB, StepState.DONE),
        (StepKind.ENCODE, StepState.WAITING),
        (StepKind.ENCODE, StepState.READY),  # as soon as another may begin
        (StepKind.PACKAGE, StepState.WAITING),
    ]
    again = step(failed, StepKind.PERTURB)
    assert (again.attempt, again.error_code, again.finished_at, again.sent_at) == (0, *[None] * 3)
    finish(must_claim(failed, StepKind.PERTURB))
    for index in (0, 1):
        finish(must_claim(failed, StepKind.ENCODE, index))
    assert step(failed, StepKind.PACKAGE).state is StepState.READY


def test_what_is_over_is_in_nobody_s_way(owner_id: UUID, failed: UUID, ready: UUID) -> None:
    """Thousands of steps that are never to be done would be looked through at every claim."""
    cancelled = requested(owner_id, ready)
    train(cancelled)
    with transaction() as session:
        protections.cancel(session, owner_id, cancelled)
    for over in (failed, cancelled):
        assert StepState.READY not in {state for _, state in states(over)}
    retry(owner_id, failed)
    assert StepState.READY in {state for _, state in states(failed)}


def test_what_has_not_failed_is_not_tried_again(owner_id: UUID, ready: UUID) -> None:
    runs, done, over = (requested(owner_id, ready) for _ in range(3))
    succeed(done)
    with transaction() as session:
        protections.cancel(session, owner_id, over)
    for each in (runs, done, over):
        assert refused(owner_id, each) == "PROTECTION_NOT_FAILED"


def test_nobody_retries_another_s(failed: UUID) -> None:
    with pytest.raises(AppError) as refusal:
        retry(UUID(int=1), failed)
    assert refusal.value.status == 404


def test_without_its_data_set_it_is_over_and_shows_no_originals(
    owner_id: UUID, ready: UUID, failed: UUID
) -> None:
    with transaction() as session:
        made = protections.made_of(session, ready)
        datasets.delete(session, owner_id, ready)
    protections.clean_originals(made)
    assert refused(owner_id, failed) == "DATASET_DELETED"
    assert blobs(f"protections/{failed}") == []


def test_too_late(owner_id: UUID, failed: UUID, change: Change) -> None:
    change(FAILED_KEEP_SECONDS=0)
    assert refused(owner_id, failed) == "RETRY_TOO_LATE"


def test_a_retry_and_a_deletion_at_once(owner_id: UUID, failed: UUID) -> None:
    """One of them is refused: nothing goes on without its row."""

    def delete() -> None:
        with transaction() as session:
            protections.delete(session, owner_id, failed)

    calls: list[Callable[[], None]] = [partial(retry, owner_id, failed), delete]
    found = together(*calls)
    assert sum(isinstance(result, AppError) for result in found) == 1
    assert found.count(None) == 1


def test_it_may_be_cancelled(owner_id: UUID, failed: UUID) -> None:
    retry(owner_id, failed)
    with transaction() as session:
        protections.cancel(session, owner_id, failed)
    assert protection(failed).state is ProtectionState.CANCELLED
    assert claimed(step(failed, StepKind.PERTURB).id) is None
