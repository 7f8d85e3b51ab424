"""Kept trainings: what tells one from another, and who writes when two are ready at once."""

from dataclasses import fields, replace
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from api import baselines, datasets
from api.db import reading, transaction
from api.models import Baseline
from sep_core.cells import Cell
from sep_core.config import Plan, SEPConfig
from sep_core.presets import QUICK
from tests.api.conftest import accuracy, ingested, together

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


def keep(dataset_id: UUID, last: float) -> None:
    with transaction() as session:
        baselines.keep(session, dataset_id, "key", accuracy(last))


def find(dataset_id: UUID, key: str = "key") -> Any:
    with reading() as session:
        return baselines.find(session, dataset_id, key)


def test_the_first_writer_wins(ready: UUID) -> None:
    assert find(ready) is None
    keep(ready, 0.7)
    keep(ready, 0.8)
    assert find(ready) == accuracy(0.7)
    assert find(ready, "another") is None


def test_writers_at_once_all_end_well(owner_id: UUID) -> None:
    for _ in range(5):
        dataset_id = ingested(owner_id)
        shares = (0.1, 0.2, 0.3, 0.4)
        assert together(*[partial(keep, dataset_id, share) for share in shares]) == [None] * 4
        assert find(dataset_id) in [accuracy(share) for share in shares]


def test_each_data_set_has_its_own_and_takes_them_along(owner_id: UUID, ready: UUID) -> None:
    other = ingested(owner_id)
    keep(ready, 0.7)
    keep(other, 0.6)
    with transaction() as session:
        datasets.delete(session, owner_id, ready)
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Baseline)) == 1
    assert find(other) == accuracy(0.6)
