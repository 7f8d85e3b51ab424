"""Kept trainings: what tells one from another, and who does it when two would at once."""

from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from api import datasets, protections
from api.db import reading, transaction
from api.evidence import baselines
from api.models import Baseline, Step, StepKind
from api.scheduling import endings, leases
from api.scheduling.leases import Claim
from sep_core.cells import Cell
from sep_core.config import Plan, SEPConfig
from sep_core.presets import QUICK
from tests.api.conftest import together
from tests.api.lives import accuracy, ingested, must_claim, requested

PLAN = Plan(device="cpu", precision="float32")
CELL = Cell("small", "crop-flip", 1, clean=True)
OTHERWISE: dict[str, Any] = {
    "input_pixels": 64,
    "appropriator_epochs": 31,
    "batch_size": 64,
    "learning_rate": 0.2,
    "momentum": 0.8,
    "weight_decay": 1e-3,
    "warmup_epochs": 2.0,
    "warmup_learning_rate": 0.002,
    "schedule": "step",
    "milestones": (0.5,),
    "crop_padding": 2,
    "flip": False,
    "held_out_percent": 11,
}


def digest(config: SEPConfig = QUICK, plan: Plan = PLAN, cell: Cell = CELL, data: str = "a") -> str:
    return baselines.digest(data, config, plan, cell, {"torch": "2"})


def test_every_field_of_a_training_tells_baselines_apart() -> None:
    counted = {field.name for field in fields(SEPConfig)} - baselines.PERTURBATION
    assert counted - baselines.OF_THE_CELL == set(OTHERWISE)
    found = [digest(replace(QUICK, **{name: value})) for name, value in OTHERWISE.items()]
    found += [digest(plan=replace(PLAN, **change)) for change in CHANGED_PLANS]
    found += [digest(cell=replace(CELL, **change)) for change in CHANGED_CELLS]
    found += [digest(), digest(data="b")]
    found += [baselines.digest("a", QUICK, PLAN, CELL, {"torch": "3"})]
    found += [baselines.digest("a", QUICK, PLAN, CELL, {"torch": "2"}, file) for file in "bc"]
    assert len(set(found)) == len(found) == len(OTHERWISE) + 11


CHANGED_PLANS: list[dict[str, Any]] = [
    {"device": "cuda"},
    {"precision": "bfloat16"},
    {"threads": 2},
]
CHANGED_CELLS: list[dict[str, Any]] = [
    {"network": "mlp"},
    {"countermeasure": "grey"},
    {"seed": 2},
]


def test_how_images_were_changed_does_not() -> None:
    other = replace(QUICK, epsilon_levels=2, seed="f" * 32, surrogate="mlp", precision="float32")
    assert digest(other) == digest()
    assert digest(plan=replace(PLAN, batch_size=7, shard_batches=9)) == digest()
    stored = replace(QUICK, milestones=tuple(QUICK.milestones))
    assert digest(stored) == digest()


@pytest.fixture
def claims(owner_id: UUID, ready: UUID) -> list[Claim]:
    """Running steps of four protections of the same data."""
    return [must_claim(requested(owner_id, ready), StepKind.TRAIN) for _ in range(4)]


def take(dataset_id: UUID, claim: Claim) -> bool:
    with transaction() as session:
        return baselines.take(session, dataset_id, "key", claim)


def keep(dataset_id: UUID, claim: Claim, last: float) -> None:
    with transaction() as session:
        baselines.keep(session, dataset_id, "key", claim, accuracy(last))


def find(dataset_id: UUID, key: str = "key") -> Any:
    with reading() as session:
        return baselines.find(session, dataset_id, key)


def test_one_begins_and_what_it_finds_is_kept(ready: UUID, claims: list[Claim]) -> None:
    first, second, *_ = claims
    assert take(ready, first)
    assert not take(ready, second)
    keep(ready, second, 0.8)
    assert find(ready) is None
    keep(ready, first, 0.7)
    assert find(ready) == accuracy(0.7)
    assert find(ready, "another") is None
    assert not take(ready, second)


def test_what_a_step_gave_up_another_begins(ready: UUID, claims: list[Claim]) -> None:
    first, second, third, _ = claims
    assert take(ready, first)
    endings.end(first, endings.stop)
    assert take(ready, second)
    assert not take(ready, third)
    keep(ready, first, 0.8)
    assert find(ready) is None
    keep(ready, second, 0.7)
    assert find(ready) == accuracy(0.7)


def test_what_is_kept_of_it_is_gone_on_from(owner_id: UUID, ready: UUID) -> None:
    """An upgrade drains who has done hours of it: nobody else begins anew meanwhile."""
    made = requested(owner_id, ready)
    first, other = (
        must_claim(made, StepKind.TRAIN),
        must_claim(requested(owner_id, ready), StepKind.TRAIN),
    )
    assert take(ready, first)
    with transaction() as session:
        leases.report(session, first, 11, 12)
        leases.keep(session, first, 11)
    endings.end(first, endings.stop)
    assert not take(ready, other)
    again = must_claim(made, StepKind.TRAIN)
    assert take(ready, again)
    endings.end(again, endings.stop)
    with transaction() as session:  # no worker has come for it
        row = session.get_one(Step, first.step_id)
        assert row.ready_at is not None
        row.ready_at -= timedelta(seconds=baselines.LEFT_SECONDS)
    assert take(ready, other)


def test_nobody_waits_for_a_training_that_was_cancelled(owner_id: UUID, ready: UUID) -> None:
    made = requested(owner_id, ready)
    first, other = (
        must_claim(made, StepKind.TRAIN),
        must_claim(requested(owner_id, ready), StepKind.TRAIN),
    )
    assert take(ready, first)
    with transaction() as session:
        leases.keep(session, first, 11)
    endings.end(first, endings.stop)
    with transaction() as session:
        protections.cancel(session, owner_id, made)
    assert take(ready, other)


def test_who_has_lost_its_step_takes_none(ready: UUID, claims: list[Claim]) -> None:
    first, second, *_ = claims
    endings.end(first, endings.stop)
    assert not take(ready, first)
    assert take(ready, second)


@pytest.mark.parametrize("given_up", [False, True])
def test_of_those_at_once_one_begins(given_up: bool, ready: UUID, claims: list[Claim]) -> None:
    if given_up:
        first = claims.pop()
        assert take(ready, first)
        endings.end(first, endings.stop)
    begun = together(*[partial(take, ready, claim) for claim in claims])
    assert sorted(begun) == [*[False] * (len(claims) - 1), True]


def test_each_data_set_has_its_own_and_takes_them_along(
    owner_id: UUID, ready: UUID, claims: list[Claim]
) -> None:
    other = ingested(owner_id)
    for dataset_id, last in ((ready, 0.7), (other, 0.6)):
        assert take(dataset_id, claims[0])
        keep(dataset_id, claims[0], last)
    for claim in claims:
        assert claim.protection_id
        with transaction() as session:
            protections.cancel(session, owner_id, claim.protection_id)
        endings.end(claim, endings.stop)
    with transaction() as session:
        datasets.delete(session, owner_id, ready)
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Baseline)) == 1
    assert find(other) == accuracy(0.6)
