"""The life of a protection below HTTP: joins, failures, cancelling, and what stays in storage."""

from functools import partial
from uuid import UUID

import pytest

from api import datasets, progress, protections
from api.db import now, reading, transaction
from api.errors import AppError
from api.models import Protection, ProtectionState, Step, StepKind, StepState
from api.scheduling import endings, leases
from api.scheduling.moves import move
from api.steps import CLEAN, PROTECTED
from tests.api.conftest import blobs
from tests.api.lives import (
    accuracy,
    cancel,
    claimed,
    fail,
    finish,
    freeze,
    half_done_in_a_minute,
    must_claim,
    owner,
    perturb,
    protection,
    request,
    requested,
    states,
    step,
    steps_of,
    succeed,
    train,
)


@pytest.fixture
def queued(owner_id: UUID, ready: UUID) -> UUID:
    return requested(owner_id, ready)


def test_the_whole_life(queued: UUID) -> None:
    waiting, ready, done = StepState.WAITING, StepState.READY, StepState.DONE
    package, protected = (StepKind.PACKAGE, waiting), (StepKind.EVALUATE, waiting)
    before_the_plan = [package, (StepKind.EVALUATE, waiting), protected]
    assert states(queued) == [(StepKind.TRAIN, ready), *before_the_plan]
    train(queued)
    shards = [(StepKind.PERTURB, ready)] * 2
    rest = [
        (StepKind.ENCODE, waiting),
        (StepKind.ENCODE, waiting),
        package,
        (StepKind.EVALUATE, ready),
        protected,
    ]
    assert states(queued) == [(StepKind.TRAIN, done), *shards, *rest]
    for index, following in ((1, waiting), (0, ready)):
        finish(must_claim(queued, StepKind.PERTURB, index))
        assert step(queued, StepKind.ENCODE, index).state is ready  # whatever the other does
        finish(must_claim(queued, StepKind.ENCODE, index))
        assert step(queued, StepKind.PACKAGE).state is following
    finish(must_claim(queued, StepKind.PACKAGE), {"archive_sha256": "a" * 64, "archive_bytes": 5})
    assert protection(queued).archive_sha256 is None  # not before it is evaluated
    for index in (0, 1):
        assert protection(queued).state is ProtectionState.RUNNING
        finish(must_claim(queued, StepKind.EVALUATE, index), accuracy(0.5))
    found = protection(queued)
    assert found.state is ProtectionState.SUCCEEDED
    assert (found.archive_sha256, found.archive_bytes) == ("a" * 64, 5)
    assert found.finished_at is not None


def test_originals_are_trained_on_while_the_surrogate_still_is(queued: UUID) -> None:
    surrogate = must_claim(queued, StepKind.TRAIN)
    assert claimed(step(queued, StepKind.EVALUATE, CLEAN).id) is None
    freeze(surrogate)
    early = must_claim(queued, StepKind.EVALUATE, CLEAN)
    assert claimed(step(queued, StepKind.EVALUATE, PROTECTED).id) is None
    finish(early, accuracy(0.5))
    assert protection(queued).state is ProtectionState.RUNNING
    finish(surrogate)
    perturb(queued)
    finish(must_claim(queued, StepKind.PACKAGE), {"archive_sha256": "a" * 64, "archive_bytes": 5})
    finish(must_claim(queued, StepKind.EVALUATE, PROTECTED), accuracy(0.1))
    assert protection(queued).state is ProtectionState.SUCCEEDED


def test_what_is_due_is_made_ready_though_others_run(queued: UUID) -> None:
    train(queued)
    early = must_claim(queued, StepKind.EVALUATE, CLEAN)
    perturb(queued)
    assert step(queued, StepKind.PACKAGE).state is StepState.READY
    finish(early, accuracy(0.5))
    assert step(queued, StepKind.EVALUATE, PROTECTED).state is StepState.WAITING


def test_a_failure_waits_for_the_other_shard(queued: UUID) -> None:
    train(queued)
    first, second = (must_claim(queued, StepKind.PERTURB, index) for index in (0, 1))
    fail(first, "BROKEN")
    assert protection(queued).state is ProtectionState.RUNNING
    assert blobs(f"protections/{queued}")
    endings.end(second, endings.stop)
    found = protection(queued)
    assert found.state is ProtectionState.FAILED
    assert (found.error_code, found.error) == ("BROKEN", "BROKEN happened.")
    assert step(queued, StepKind.PACKAGE).state is StepState.WAITING
    assert blobs(f"protections/{queued}") == [f"protections/{queued}/checkpoints/000.pt"]


def test_a_failure_after_the_other_shard_is_done(queued: UUID) -> None:
    train(queued)
    first, second = (must_claim(queued, StepKind.PERTURB, index) for index in (0, 1))
    fail(first, "BROKEN")
    finish(second)
    assert protection(queued).state is ProtectionState.FAILED
    assert step(queued, StepKind.PACKAGE).state is StepState.WAITING


def test_success_keeps_archive_record_and_keys_only(queued: UUID) -> None:
    succeed(queued)
    assert blobs(f"protections/{queued}") == [
        f"protections/{queued}/{name}"
        for name in (
            "archive.zip",
            "before-after.png",
            "checkpoints/000.pt",
            "record.json",
            "worst.png",
        )
    ]


def test_cancelling_in_the_middle(owner_id: UUID, queued: UUID) -> None:
    train(queued)
    claim = must_claim(queued, StepKind.PERTURB)
    assert cancel(owner_id, queued).state is ProtectionState.RUNNING
    assert blobs(f"protections/{queued}")
    finish(claim, {"sha256": "0" * 64})
    assert protection(queued).state is ProtectionState.CANCELLED
    assert step(queued, StepKind.PACKAGE).state is StepState.WAITING
    assert blobs(f"protections/{queued}") == []


def test_a_plan_is_frozen_once(queued: UUID) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    freeze(claim)
    first = protection(queued)
    freeze(claim)
    second = protection(queued)
    assert first.config is not None
    assert first.config["seed"]  # drawn anew by each call
    assert (second.config, second.plan) == (first.config, first.plan)
    assert [each.kind for each in steps_of(queued)].count(StepKind.PERTURB) == 2
    assert [each.cost for each in steps_of(queued)] == [*(4.0, 2.0, 2.0, 0.25, 0.25, 0.5, 3.0, 3.0)]


def test_who_lost_the_lease_freezes_nothing(queued: UUID) -> None:
    claim = must_claim(queued, StepKind.TRAIN)
    endings.end(claim, endings.stop)
    freeze(claim)
    assert protection(queued).plan is None
    assert StepKind.PERTURB not in [each.kind for each in steps_of(queued)]


def test_progress_and_eta(queued: UUID) -> None:
    train(queued)
    with transaction() as session:
        row = session.get_one(Protection, queued)
        assert row.started_at is not None
        row.started_at = row.started_at.replace(year=row.started_at.year - 1)
    with reading() as session:
        row = session.get_one(Protection, queued)
        found = progress.of(session, [queued])[queued]
        assert found.share == found.share_kept == pytest.approx(4 / 15)
        eta = progress.eta_seconds(session, row, found, now(session))
    assert eta == pytest.approx(365 * 86_400 * 11 / 4, rel=0.01)


def test_every_step_has_an_eta_of_its_own(queued: UUID) -> None:
    def eta() -> float | None:
        with reading() as session:
            return progress.step_eta_seconds(step(queued, StepKind.TRAIN), now(session))

    assert eta() is None
    claim = must_claim(queued, StepKind.TRAIN)
    assert eta() is None
    half_done_in_a_minute(claim)
    assert eta() == pytest.approx(60, abs=5)
    with transaction() as session:
        assert leases.report(session, claim, 9, 10)
    assert eta() == pytest.approx(60 / 9, abs=1)
    endings.end(claim, endings.stop)
    assert eta() is None
    again = must_claim(queued, StepKind.TRAIN)
    assert eta() is None  # what the attempt before had done is to be done again
    half_done_in_a_minute(again)
    finish(again)
    assert eta() is None


def test_an_eta_is_of_what_this_attempt_has_done(queued: UUID) -> None:
    """Of ten parts three were done before, and two in a minute: the five that are left take 2.5."""
    claim = must_claim(queued, StepKind.TRAIN)
    with transaction() as session:
        leases.begin(session, claim, 3)
        leases.report(session, claim, 3, 10)
    with reading() as session:
        assert progress.step_eta_seconds(step(queued, StepKind.TRAIN), now(session)) is None
    half_done_in_a_minute(claim)
    with reading() as session:
        eta = progress.step_eta_seconds(step(queued, StepKind.TRAIN), now(session))
    assert eta == pytest.approx(150, abs=10)


def test_no_eta_before_there_is_any_work_to_judge_by(queued: UUID) -> None:
    def eta() -> float | None:
        with reading() as session:
            row = session.get_one(Protection, queued)
            return progress.eta_seconds(
                session, row, progress.of(session, [queued])[queued], now(session)
            )

    assert eta() is None
    must_claim(queued, StepKind.TRAIN)
    assert eta() is None


def test_an_illegal_move_is_a_defect(queued: UUID) -> None:
    with transaction() as session:
        row = session.get_one(Protection, queued)
        with pytest.raises(ValueError, match="expected a legal move from queued, got succeeded"):
            move(session, row, ProtectionState.SUCCEEDED)
        waiting = step(queued, StepKind.PACKAGE)
        with pytest.raises(ValueError, match="from waiting, got done"):
            move(session, session.get_one(Step, waiting.id), StepState.DONE)


def test_a_move_from_a_state_that_is_no_more_writes_nothing(queued: UUID) -> None:
    stale = step(queued, StepKind.TRAIN)
    must_claim(queued, StepKind.TRAIN)
    with transaction() as session:
        assert move(session, stale, StepState.RUNNING, attempt=99) is False
    assert step(queued, StepKind.TRAIN).attempt == 1


def test_somebody_elses_does_not_exist(queued: UUID, ready: UUID) -> None:
    stranger = owner("mallory")
    with transaction() as session:
        for call in (
            partial(protections.get, session, stranger, queued),
            partial(protections.cancel, session, stranger, queued),
            partial(protections.delete, session, stranger, queued),
            partial(datasets.get, session, stranger, ready),
            partial(datasets.delete, session, stranger, ready),
            partial(protections.create, session, stranger, request(ready), None),
        ):
            with pytest.raises(AppError) as refused:
                call()
            assert refused.value.status == 404
    assert protection(queued).state is ProtectionState.QUEUED
