"""A protection of thousands of steps: of all together much is said and done by few statements."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import event, select

from api import progress, steps
from api.db import engine, reading, transaction
from api.models import Event, Protection, Step, StepKind, StepState
from api.plans import planning
from api.scheduling import leases
from sep_core.cells import named
from tests.api.conftest import protected, uploaded
from tests.api.lives import CPU, fail, finish, ingested, must_claim, requested, step
from tests.api.test_retry import retry

SHARDS = 60


@contextmanager
def statements() -> Iterator[list[str]]:
    """Sent to the database meanwhile."""
    sent: list[str] = []

    def note(*told: object) -> None:
        sent.append(str(told[2]))

    event.listen(engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine(), "before_cursor_execute", note)


@pytest.fixture
def made(owner_id: UUID, ready: UUID) -> UUID:
    """Its surrogate is being trained."""
    made = requested(owner_id, ready)
    claim = must_claim(made, StepKind.TRAIN)
    with transaction() as session:
        asked = session.get_one(Protection, made).requested
        config, plan = planning.freeze(asked, 2, 5_000, 32, CPU)
        evaluation = named(planning.load_evaluation(asked["evaluation"]), config)
        shards = dict.fromkeys((StepKind.PERTURB, StepKind.ENCODE), [1.0] * SHARDS)
        once = {StepKind.TRAIN: [4.0], StepKind.PACKAGE: [1.0]}
        judging = {StepKind.EVALUATE: [3.0] * evaluation.trainings}
        steps.freeze(session, claim, config, plan, evaluation, once | shards | judging)
    return made


def test_they_become_ready_together(made: UUID) -> None:
    claim = leases.claim_of(step(made, StepKind.TRAIN))
    with statements() as sent:
        finish(claim)
    assert len(sent) < SHARDS / 2
    with reading() as session:
        of_it = Step.protection_id == made, Step.kind == StepKind.PERTURB
        shards = session.scalars(select(Step).where(*of_it)).all()
        told = select(Event).where(Event.protection_id == made, Event.what == "step.ready")
        events = session.scalars(told.order_by(Event.id)).all()
    assert {shard.state for shard in shards} == {StepState.READY}
    assert all(shard.ready_at is not None for shard in shards)
    of_shards = [found.data for found in events if found.data["kind"] == StepKind.PERTURB]
    assert of_shards == [{"kind": "perturb", "index": index} for index in range(SHARDS)]
    assert len({(found.owner_id, found.dataset_id) for found in events}) == 1


def test_they_are_revived_together(owner_id: UUID, made: UUID) -> None:
    finish(leases.claim_of(step(made, StepKind.TRAIN)))
    fail(must_claim(made, StepKind.PERTURB, 3), "BROKEN")
    with statements() as sent:
        retry(owner_id, made)
    assert len(sent) < SHARDS / 2
    for index in range(SHARDS):
        shard = step(made, StepKind.PERTURB, index)
        assert (shard.state, shard.attempt, shard.error_code) == (StepState.READY, 0, None)


def test_a_list_reads_no_steps(client: httpx2.Client) -> None:
    dataset = uploaded(client)["id"]
    counted = []
    for _ in range(2):
        protected(client, dataset)
        with statements() as sent:
            assert client.get("/v1/protections").status_code == 200
        counted.append(len(sent))
        assert not [sql for sql in sent if "steps.attempt" in sql]
    assert counted[1] <= counted[0] + 2  # whether anybody serves what waits


def test_the_database_adds_up_what_each_step_says(made: UUID) -> None:
    """In every state, with progress that is kept and not."""
    train = leases.claim_of(step(made, StepKind.TRAIN))
    with transaction() as session:
        leases.report(session, train, 3, 7)
        leases.keep(session, train, 2)
    check(made)
    finish(train)
    check(made)
    first, second, third = (must_claim(made, StepKind.PERTURB, index) for index in range(3))
    with transaction() as session:
        leases.report(session, first, 5, 9)
        leases.report(session, second, 0, 9)
        leases.keep(session, second, 4)
        session.get_one(Step, third.step_id).progress_kept = 1
    check(made)
    finish(first)
    fail(second, "BROKEN")
    check(made)


def check(protection_id: UUID) -> None:
    with reading() as session:
        found = progress.of(session, [protection_id])[protection_id]
        each = steps.of(session, protection_id)
    total = sum(step.cost for step in each)
    done = sum(step.cost * progress.share_done(step) for step in each)
    kept = sum(step.cost * progress.share_kept(step) for step in each)
    assert found.share == pytest.approx(done / total)
    assert found.share_kept == pytest.approx(kept / total)
    assert found.there == {(step.kind, step.state) for step in each}
    assert 0 < found.share < 1


def test_data_sets_are_listed_together(client: httpx2.Client, owner_id: UUID) -> None:
    for _ in range(10):
        ingested(owner_id)
    with statements() as sent:
        assert len(client.get("/v1/datasets").json()["items"]) == 10
    assert len(sent) < 10
