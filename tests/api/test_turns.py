"""Owners take turns; each has its own protections in order of priority; nobody exceeds a limit."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from api import keys, protections, steps
from api.db import now, transaction
from api.models import Owner, Queue, Step, StepKind
from api.scheduling import endings, leases, turns
from api.scheduling.leases import Claim
from tests.api.conftest import together
from tests.api.lives import (
    finish,
    ingested,
    must_claim,
    protection,
    requested,
    step,
    train,
    uploaded,
)
from tests.servers import wait_for


@pytest.fixture
def others(owner_id: UUID) -> list[UUID]:
    """Three owners in all."""
    made = [owner_id]
    with transaction() as session:
        for name in ("second", "third"):
            keys.create(session, name)
            made.append(session.scalars(select(Owner.id).where(Owner.name == name)).one())
    return made


def claim_next(queue: Queue = Queue.GPU, device: str | None = None) -> Claim | None:
    with transaction() as session:
        claim = turns.claim_next(session, queue, "worker", device)
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    return claim


def asked(owner_id: UUID, dataset_id: UUID, priority: int = 0) -> UUID:
    request = protections.Request(dataset_id, "quick", {}, priority=priority)
    with transaction() as session:
        return protections.create(session, owner_id, request, None).id


def owner_of(claim: Claim | None) -> UUID:
    assert claim is not None
    assert claim.protection_id is not None
    return protection(claim.protection_id).owner_id


def limit(name: str, max_running: int | None) -> bool:
    with transaction() as session:
        return keys.limit(session, name, max_running)


def test_owners_take_turns_however_much_one_of_them_asks_for(others: list[UUID]) -> None:
    first, second, third = others
    datasets = {owner_id: ingested(owner_id) for owner_id in others}
    for owner_id, number in ((first, 6), (second, 2), (third, 1)):
        for _ in range(number):
            asked(owner_id, datasets[owner_id])
    served = []
    for _ in range(9):
        claim = claim_next()
        served.append(owner_of(claim))
        assert claim is not None
        # One worker: it is done before the next one begins.
        endings.end(claim, partial(endings.fail, code="OVER", message="It is over."))
    assert set(served[:3]) == set(others)
    assert Counter(served[:5]) == {first: 2, second: 2, third: 1}
    assert served[5:] == [first] * 4
    assert claim_next() is None


def test_who_has_the_fewest_running_steps_comes_first(others: list[UUID]) -> None:
    first, second, _ = others
    busy, idle = ingested(first), ingested(second)
    for _ in range(4):
        asked(first, busy)
    for _ in range(3):
        assert owner_of(claim_next()) == first
    for _ in range(3):
        asked(second, idle)
    assert [owner_of(claim_next()) for _ in range(4)] == [second, second, second, first]


def test_an_owner_s_own_are_done_by_priority_then_in_order(owner_id: UUID, ready: UUID) -> None:
    low, first, second, high = (asked(owner_id, ready, n) for n in (-1, 0, 0, 5))
    found = [claim_next() for _ in range(4)]
    assert [claim and claim.protection_id for claim in found] == [high, first, second, low]


def test_an_upload_comes_before_what_else_its_owner_waits_for(owner_id: UUID, ready: UUID) -> None:
    made = asked(owner_id, ready, 5)
    train(made)
    finish(must_claim(made, StepKind.PERTURB))
    dataset_id = uploaded(owner_id)
    first, second = claim_next(Queue.CPU), claim_next(Queue.CPU)
    assert first is not None
    assert (first.kind, first.dataset_id) == (StepKind.INGEST, dataset_id)
    assert second is not None
    assert (second.kind, second.protection_id) == (StepKind.ENCODE, made)


def test_a_protection_begun_is_finished_before_the_next(owner_id: UUID, ready: UUID) -> None:
    first, second = requested(owner_id, ready), requested(owner_id, ready)
    train(first)
    claims = [claim_next() for _ in range(4)]
    assert [claim and (claim.protection_id, claim.kind, claim.index) for claim in claims] == [
        (first, StepKind.PERTURB, 0),
        (first, StepKind.PERTURB, 1),
        (first, StepKind.EVALUATE, 0),
        (second, StepKind.TRAIN, 0),
    ]


def test_whose_turn_it_is_among_the_new_is_no_matter_of_priority(others: list[UUID]) -> None:
    first, second, _ = others
    calm, urgent = ingested(first), ingested(second)
    asked(first, calm)
    asked(second, urgent, 100)
    assert owner_of(claim_next()) == first


def test_a_plan_is_for_its_device(owner_id: UUID, ready: UUID) -> None:
    planned, new = requested(owner_id, ready), requested(owner_id, ready)
    train(planned)  # on a CPU
    claim = claim_next(device="cuda")
    assert claim is not None
    assert (claim.protection_id, claim.kind) == (new, StepKind.TRAIN)
    assert claim_next(device="cuda") is None
    claim = claim_next(device="cpu")
    assert claim is not None
    assert (claim.protection_id, claim.kind) == (planned, StepKind.PERTURB)


def test_a_limit_holds_however_many_claim_at_once(owner_id: UUID, ready: UUID) -> None:
    for _ in range(6):
        requested(owner_id, ready)
    with transaction() as session:
        name = session.get_one(Owner, owner_id).name
    assert limit(name, 2)
    claims = together(*[claim_next] * 6)
    assert len([claim for claim in claims if claim is not None]) == 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_who_finds_an_owner_full_lets_go_of_it(others: list[UUID], ready: UUID) -> None:
    """Nor has it kept anybody from that owner's row. SQLite has one writer at a time."""
    first, second, _ = others
    for owner, dataset in ((first, ready), (first, ready), (second, ingested(second))):
        asked(owner, dataset)
    with transaction() as session:
        name = session.get_one(Owner, first).name
    limit(name, 1)
    claimed, looked_at = threading.Event(), threading.Event()

    def claim_and_hold() -> UUID:
        with transaction() as session:
            claim = turns.claim_next(session, Queue.GPU, "behind")
            claimed.set()
            assert looked_at.wait(10)
        return owner_of(claim)

    with ThreadPoolExecutor(1) as pool:
        with transaction() as ahead:
            turns.claim_next(ahead, Queue.GPU, "ahead")
            behind = pool.submit(claim_and_hold)
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            wait_for(lambda: ahead.scalar(waiting) == 1, 10, "a claim that waits")
        assert claimed.wait(10)
        with transaction() as session:
            session.get_one(Owner, first, with_for_update={"nowait": True})
        looked_at.set()
        assert behind.result() == second


def test_owners_have_equal_shares_however_many_claim_at_once(others: list[UUID]) -> None:
    """As when many workers wake up: each counts what those before it have claimed."""
    datasets = {owner_id: ingested(owner_id) for owner_id in others}
    for owner_id in others:
        for _ in range(6):
            asked(owner_id, datasets[owner_id])
    served = Counter(map(owner_of, together(*[claim_next] * 9)))
    assert served == dict.fromkeys(others, 3)


def test_a_limit_holds_and_ends(owner_id: UUID, ready: UUID) -> None:
    for _ in range(3):
        requested(owner_id, ready)
    with transaction() as session:
        name = session.get_one(Owner, owner_id).name
    assert limit(name, 2)
    first, _ = claim_next(), claim_next()
    assert claim_next() is None
    assert first is not None
    assert limit(name, None)
    assert claim_next() is not None
    assert not limit("nobody", 1)


def test_each_queue_has_its_own_turns(owner_id: UUID, ready: UUID) -> None:
    requested(owner_id, ready)
    assert claim_next(Queue.CPU) is None
    claim = claim_next(Queue.GPU)
    assert claim is not None
    assert claim.kind is StepKind.TRAIN


def test_of_workers_at_once_each_claims_another_step(owner_id: UUID, ready: UUID) -> None:
    made = [requested(owner_id, ready) for _ in range(4)]
    claims = together(*[claim_next] * 6)
    found = [claim.protection_id for claim in claims if claim is not None]
    assert sorted(map(str, found)) == sorted(map(str, made))


def test_what_nobody_may_claim_blocks_nobody(owner_id: UUID, ready: UUID) -> None:
    """Cancelled, failed beside a running step, held back: the next one is taken."""
    over, broken, held, last = (requested(owner_id, ready) for _ in range(4))
    with transaction() as session:
        protections.cancel(session, owner_id, over)
    train(broken)
    must_claim(broken, StepKind.PERTURB, 0)
    other = must_claim(broken, StepKind.PERTURB, 1)
    with transaction() as session:
        failing = leases.held(session, other)
        assert failing is not None
        leases.fail(session, failing, "BROKEN", "It broke.")
        waits = step(held, StepKind.TRAIN).id
        later = now(session) + timedelta(minutes=1)
        session.execute(update(Step).where(Step.id == waits).values(not_before=later))
    claim = claim_next()
    assert claim is not None
    assert claim.protection_id == last
