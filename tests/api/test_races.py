"""Two at once: one of them comes first, and the rows say so."""

from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import func, select

from api import datasets, steps, storage
from api.db import reading, transaction
from api.errors import AppError
from api.models import Protection, ProtectionState, Step, StepKind, StepState
from api.plans import planning
from api.scheduling.leases import Claim
from tests.api.conftest import blobs, together
from tests.api.lives import (
    accuracy,
    cancel,
    claimed,
    fail,
    finish,
    freeze,
    ingested,
    must_claim,
    perturb,
    protection,
    requested,
    states,
    step,
    train,
)


def test_two_shards_that_finish_at_once_make_package_ready_once(
    owner_id: UUID, ready: UUID
) -> None:
    for _ in range(12):
        protection_id = requested(owner_id, ready)
        train(protection_id)
        claims = [must_claim(protection_id, StepKind.PERTURB, index) for index in (0, 1)]
        assert together(*[partial(finish, claim) for claim in claims]) == [None, None]
        claims = [must_claim(protection_id, StepKind.ENCODE, index) for index in (0, 1)]
        assert together(*[partial(finish, claim) for claim in claims]) == [None, None]
        assert states(protection_id)[1:6] == [
            *[(StepKind.PERTURB, StepState.DONE)] * 2,
            *[(StepKind.ENCODE, StepState.DONE)] * 2,
            (StepKind.PACKAGE, StepState.READY),
        ]
        package = step(protection_id, StepKind.PACKAGE).id
        won = together(partial(claimed, package), partial(claimed, package))
        assert won.count(None) == 1


def test_a_shard_that_is_done_as_another_asks_for_smaller_ones(owner_id: UUID, ready: UUID) -> None:
    """Neither waits for what the other has; what was planned first is gone, done or not."""
    for _ in range(20):
        protection_id = requested(owner_id, ready)
        train(protection_id)
        done, too_large = (must_claim(protection_id, StepKind.PERTURB, index) for index in (0, 1))
        won = together(partial(finish, done), partial(halve, too_large))
        assert won == [None, None]
        assert states(protection_id)[1:6] == [
            (StepKind.PERTURB, StepState.READY),
            (StepKind.ENCODE, StepState.WAITING),
            *[(StepKind.ENCODE, StepState.READY)] * 2,
            (StepKind.PACKAGE, StepState.WAITING),
        ]


def halve(claim: Claim) -> None:
    """By a plan of one shard, and images that leave as they came in two more parts."""
    costs = {StepKind.PERTURB: [4.0], StepKind.ENCODE: [1.0, 1.0, 1.0]}
    with transaction() as session:
        plan = session.get_one(Protection, claim.protection_id).plan
        assert plan is not None
        old = planning.load_plan(plan)
        steps.replan(session, claim, old, replace(old, batch_size=old.batch_size // 2), costs)


def test_evaluations_that_finish_at_once_succeed(owner_id: UUID, ready: UUID) -> None:
    for _ in range(6):
        protection_id = requested(owner_id, ready)
        train(protection_id)
        perturb(protection_id)
        output = {"archive_sha256": "a" * 64, "archive_bytes": 5}
        finish(must_claim(protection_id, StepKind.PACKAGE), output)
        claims = [must_claim(protection_id, StepKind.EVALUATE, index) for index in (0, 1)]
        together(*[partial(finish, claim, accuracy(0.5)) for claim in claims])
        assert protection(protection_id).state is ProtectionState.SUCCEEDED


def test_a_failure_and_a_success_at_once(owner_id: UUID, ready: UUID) -> None:
    for _ in range(6):
        protection_id = requested(owner_id, ready)
        train(protection_id)
        first, second = (must_claim(protection_id, StepKind.PERTURB, index) for index in (0, 1))
        together(partial(fail, first, "BROKEN"), partial(finish, second))
        assert protection(protection_id).state is ProtectionState.FAILED


def test_cancelling_and_finishing_at_once(owner_id: UUID, ready: UUID) -> None:
    """Either it succeeded and the cancel was refused, or it is cancelled and nothing stays."""
    for _ in range(6):
        protection_id = requested(owner_id, ready)
        claim = must_claim(protection_id, StepKind.TRAIN)
        freeze(claim)
        storage.write(storage.protection_key(protection_id, "checkpoints/000.pt"), b"key")
        results = together(partial(cancel, owner_id, protection_id), partial(finish, claim))
        assert not any(isinstance(result, Exception) for result in results)
        assert protection(protection_id).state is ProtectionState.CANCELLED
        assert blobs(f"protections/{protection_id}") == []


def test_the_last_step_against_a_cancel(owner_id: UUID, ready: UUID) -> None:
    for _ in range(6):
        protection_id = requested(owner_id, ready)
        succeed_but_one(protection_id)
        claim = must_claim(protection_id, StepKind.EVALUATE, 1)
        cancelled, _ = together(
            partial(cancel, owner_id, protection_id), partial(finish, claim, accuracy(0.5))
        )
        found = protection(protection_id)
        if isinstance(cancelled, AppError):
            assert (cancelled.status, found.state) == (409, ProtectionState.SUCCEEDED)
            assert not found.cancel_requested
        else:
            assert found.state is ProtectionState.CANCELLED


def succeed_but_one(protection_id: UUID) -> None:
    train(protection_id)
    perturb(protection_id)
    output = {"archive_sha256": "a" * 64, "archive_bytes": 5}
    finish(must_claim(protection_id, StepKind.PACKAGE), output)
    finish(must_claim(protection_id, StepKind.EVALUATE, 0), accuracy(0.5))


def test_a_data_set_can_not_go_while_a_protection_of_it_begins(owner_id: UUID) -> None:
    """Whoever comes first: an active protection always has its originals."""

    def delete(dataset_id: UUID) -> None:
        with transaction() as session:
            gone = datasets.delete(session, owner_id, dataset_id)
        datasets.clean(gone)

    for _ in range(8):
        dataset_id = ingested(owner_id)
        made, deleted = together(
            partial(requested, owner_id, dataset_id), partial(delete, dataset_id)
        )
        if isinstance(made, UUID):
            assert isinstance(deleted, AppError)
            assert deleted.details == {"protections": [str(made)]}
            assert protection(made).dataset_id == dataset_id
        else:
            assert isinstance(made, AppError)
            assert (made.status, deleted) == (404, None)
            assert blobs(f"datasets/{dataset_id}") == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_who_comes_second_to_delete_a_data_set_finds_none(owner_id: UUID) -> None:
    """Though there was one as its transaction looked first. SQLite lets one at a time write."""
    dataset_id = ingested(owner_id)
    with transaction() as second:
        known = datasets.get(second, owner_id, dataset_id)
        with transaction() as first:
            datasets.delete(first, owner_id, dataset_id)
        with pytest.raises(AppError, match=f"no data set {known.id}"):
            datasets.delete(second, owner_id, dataset_id)


def test_one_key_two_requests_at_once(owner_id: UUID, ready: UUID) -> None:
    for number in range(5):
        key = f"key {number}"
        made = together(*[partial(requested, owner_id, ready, key) for _ in range(3)])
        ids = {found for found in made if isinstance(found, UUID)}
        assert len(ids) == 1
        with reading() as session:
            rows = select(func.count()).where(Protection.idempotency_key == key)
            assert session.scalar(rows) == 1
            mine = select(Step).where(Step.protection_id == ids.pop())
            assert len(session.scalars(mine).all()) == 4
