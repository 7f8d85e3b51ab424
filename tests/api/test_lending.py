"""Whose GPU is lent to whom: rows of workers and steps, on both databases."""

from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from api.db import transaction
from api.models import WORKER_FRESH_SECONDS, Queue, Step, StepKind, Worker
from api.scheduling import endings, leases, lending
from api.scheduling.leases import Claim
from tests.api.conftest import beat, together
from tests.api.lives import claimed, requested, step, train

US = "host/a:1"


def add(name: str, **fields: Any) -> None:
    beat(name=name, **{"gpu": f"GPU-{name}"} | fields)


@pytest.fixture
def training(owner_id: UUID, ready: UUID) -> Claim:
    """Of our worker, which has two idle ones beside it."""
    for name in (US, "host/b:2", "host/c:3"):
        add(name)
    return begun(requested(owner_id, ready), US)


def begun(protection_id: UUID, worker: str) -> Claim:
    claim = claimed(step(protection_id, StepKind.TRAIN).id, worker)
    assert claim is not None
    return claim


def lend(claim: Claim, wanted: int = 7, borrower: str = US) -> list[str]:
    with transaction() as session:
        return lending.lend(session, claim, borrower, wanted)


def is_lent(worker: str, gpu: str = "") -> bool:
    with transaction() as session:
        return lending.is_lent(session, worker, gpu or f"GPU-{worker}")


def lent() -> list[bool]:
    return [is_lent(name) for name in (US, "host/b:2", "host/c:3")]


def fail(claim: Claim) -> None:
    endings.end(claim, partial(endings.fail, code="BROKEN", message="It broke."))


def later(seconds: float) -> None:
    """All that has happened to steps was so long ago."""
    with transaction() as session:
        for row in session.scalars(select(Step).where(Step.ready_at.is_not(None))):
            assert row.ready_at is not None
            row.ready_at -= timedelta(seconds=seconds)


def test_idle_ones_of_the_host_are_lent_until_the_step_ends(training: Claim) -> None:
    assert lend(training) == ["GPU-host/b:2", "GPU-host/c:3"]
    assert lent() == [False, True, True]
    fail(training)
    assert lent() == [False] * 3


def test_given_back_they_are_free_while_the_step_goes_on(training: Claim) -> None:
    lend(training)
    with transaction() as session:
        lending.give_back(session, training)
    assert lent() == [False] * 3


def test_who_has_lost_the_step_borrows_and_gives_back_nothing(training: Claim) -> None:
    with transaction() as session:
        protection_id = session.get_one(Step, training.step_id).protection_id
        leases.give_back(session, session.get_one(Step, training.step_id), counts=True)
    assert lend(training) == []
    assert protection_id is not None
    now_its = begun(protection_id, US)
    assert lend(now_its) == ["GPU-host/b:2", "GPU-host/c:3"]
    assert lend(training) == []
    with transaction() as session:
        lending.give_back(session, training)
    assert lent() == [False, True, True]


def test_a_training_that_is_broken_off_finds_its_cards_again_for_a_while(training: Claim) -> None:
    lend(training)
    endings.end(training, endings.stop)
    assert lent() == [False, True, True]
    later(lending.HELD_SECONDS + 1)
    assert lent() == [False] * 3
    assert training.protection_id is not None
    elsewhere = claimed(training.step_id, "other/z:9")
    assert elsewhere is not None
    assert lent() == [False] * 3


def test_a_card_is_lent_once_whichever_process_serves_it(training: Claim) -> None:
    """One that was killed leaves a row that looks alive and idle for a while."""
    add("host/b:1", gpu="GPU-host/b:2", silent_seconds=20)
    add("host/a:0", gpu=f"GPU-{US}", silent_seconds=20)
    assert lend(training) == ["GPU-host/b:2", "GPU-host/c:3"]
    add("host/b:3", gpu="GPU-host/b:2")
    assert is_lent("host/b:3", "GPU-host/b:2")  # as its predecessor's was
    assert lend(training) == ["GPU-host/b:2", "GPU-host/c:3"]


def test_what_runs_on_a_card_keeps_it_from_being_lent(
    training: Claim, owner_id: UUID, ready: UUID
) -> None:
    add("host/b:1", gpu="GPU-host/b:2", silent_seconds=20)
    made = requested(owner_id, ready)
    assert claimed(step(made, StepKind.TRAIN).id, "host/b:1") is not None
    assert lend(training) == ["GPU-host/c:3"]


def test_who_has_no_row_yet_waits(training: Claim) -> None:
    assert training
    assert is_lent("host/d:4")
    add("host/d:4")
    assert not is_lent("host/d:4")


def test_another_kind_of_card_is_not_lent(training: Claim) -> None:
    add("host/d:4", device_name="a smaller card")
    assert lend(training) == ["GPU-host/b:2", "GPU-host/c:3"]


def test_no_more_than_wanted_and_the_same_again(training: Claim) -> None:
    assert lend(training, 1) == ["GPU-host/b:2"]
    assert lend(training, 1) == ["GPU-host/b:2"]
    assert lend(training, 2) == ["GPU-host/b:2", "GPU-host/c:3"]
    assert lend(training, 0) == []


def test_whoever_is_no_idle_gpu_of_the_host_is_not(
    training: Claim, owner_id: UUID, ready: UUID
) -> None:
    add("host/d:4", queue=Queue.CPU)
    add("host/e:5", gpu=None)  # which one it has is not known
    add("host/f:6", silent_seconds=WORKER_FRESH_SECONDS + 5)
    add("other/g:7")
    with transaction() as session:
        busy = requested(owner_id, ready)
        assert leases.claim(session, step(busy, StepKind.TRAIN).id, "host/b:2") is not None
    assert lend(training) == ["GPU-host/c:3"]


def test_what_is_lent_to_one_is_not_lent_to_another(
    training: Claim, owner_id: UUID, ready: UUID
) -> None:
    add("host/z:9")
    lend(training)
    other = begun(requested(owner_id, ready), "host/z:9")
    assert lend(other, borrower="host/z:9") == []
    fail(training)
    assert lend(other, borrower="host/z:9") == ["GPU-host/a:1", "GPU-host/b:2", "GPU-host/c:3"]


def test_who_claims_and_who_borrows_at_once_do_not_both_have_it(
    training: Claim, owner_id: UUID, ready: UUID
) -> None:
    """As `worker.tasks` claims: having looked whether its GPU is lent, in one transaction."""
    made = requested(owner_id, ready)
    train(made)

    def claim(index: int) -> bool:
        with transaction() as session:
            if lending.is_lent(session, "host/b:2", "GPU-host/b:2"):
                return False
            shard = step(made, StepKind.PERTURB, index).id
            return leases.claim(session, shard, "host/b:2") is not None

    for index in (0, 1):
        claimed, lent = together(partial(claim, index), partial(lend, training))
        assert claimed != ("GPU-host/b:2" in lent)
        with transaction() as session:
            for worker in session.scalars(select(Worker)):
                worker.lent_to = None
        if claimed:
            endings.end(must_be_held(made, index), endings.stop)


def must_be_held(protection_id: UUID, index: int) -> Claim:
    row = step(protection_id, StepKind.PERTURB, index)
    assert row.lease_token is not None
    return Claim(row.id, row.lease_token, row.kind, index, row.attempt, None, protection_id)
