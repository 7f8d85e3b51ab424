"""Whose GPU is lent to whom: rows of workers and steps, on both databases."""

from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import select

from api import endings, leases, lending
from api.db import now, transaction
from api.leases import Claim
from api.models import WORKER_FRESH_SECONDS, Queue, StepKind, Worker
from tests.api.conftest import must_claim, requested, step, together, train

US = "host/a:1"


def add(name: str, *, queue: Queue = Queue.GPU, gpu: str | None = "", age: float = 0) -> None:
    with transaction() as session:
        at = now(session) - timedelta(seconds=age)
        session.add(
            Worker(
                name=name,
                queue=queue,
                device="cuda",
                device_name="a card",
                memory_bytes=1,
                bfloat16=True,
                threads=1,
                versions={},
                gpu=f"GPU-{name}" if gpu == "" else gpu,
                started_at=at,
                heartbeat_at=at,
            )
        )


@pytest.fixture
def training(owner_id: UUID, ready: UUID) -> Claim:
    """Of our worker, which has two idle ones beside it."""
    for name in (US, "host/b:2", "host/c:3"):
        add(name)
    return must_claim(requested(owner_id, ready), StepKind.TRAIN)


def lend(claim: Claim, wanted: int = 7, borrower: str = US) -> list[str]:
    with transaction() as session:
        return lending.lend(session, claim, borrower, wanted)


def is_lent(worker: str) -> bool:
    with transaction() as session:
        return lending.is_lent(session, worker)


def test_idle_ones_of_the_host_are_lent_until_the_step_ends(training: Claim) -> None:
    assert lend(training) == ["GPU-host/b:2", "GPU-host/c:3"]
    assert [is_lent(name) for name in (US, "host/b:2", "host/c:3")] == [False, True, True]
    endings.end(training, endings.stop)
    assert not is_lent("host/b:2")


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
    add("host/f:6", age=WORKER_FRESH_SECONDS + 5)
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
    other = must_claim(requested(owner_id, ready), StepKind.TRAIN)
    assert lend(other, borrower="host/z:9") == [f"GPU-{US}"]  # ours is idle, as far as rows say
    endings.end(training, endings.stop)
    assert lend(other, borrower="host/z:9") == ["GPU-host/a:1", "GPU-host/b:2", "GPU-host/c:3"]


def test_who_claims_and_who_borrows_at_once_do_not_both_have_it(
    training: Claim, owner_id: UUID, ready: UUID
) -> None:
    """As `worker.tasks` claims: having looked whether its GPU is lent, in one transaction."""
    made = requested(owner_id, ready)
    train(made)

    def claim(index: int) -> bool:
        with transaction() as session:
            if lending.is_lent(session, "host/b:2"):
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
