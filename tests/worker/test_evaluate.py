"""Every cell a step, and trainings on originals that are done once."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from api import datasets, protections, steps, storage
from api.db import reading, transaction
from api.evidence import baselines, report
from api.evidence.baselines import PERTURBATION
from api.models import Baseline, Protection, ProtectionState, Step, StepKind, StepState
from api.scheduling import endings, leases
from api.scheduling.leases import Claim
from sep_core.cells import Cell
from sep_core.config import COUNTERMEASURES
from sep_core.costs import training_cost
from sep_core.countermeasures.adversarial import RADIUS_LEVELS, STEPS
from tests import pictures
from tests.worker import jobs
from worker import resume
from worker.data import Job, evaluation_key
from worker.steps import Work, evaluate

pytestmark = pytest.mark.usefixtures("environment")

TRAIN_ONLY = pictures.zipped(pictures.class_folders(12))
# Every field that may differ without another baseline, with another value than in `jobs.CONFIG`.
OTHERWISE: dict[str, Any] = {
    "variant": "sep-fa",
    "epsilon_levels": 4,
    "steps": 2,
    "step_levels": 2.0,
    "checkpoints": 1,
    "inner_steps": 3,
    "checkpoints_per_step": 1,
    "perturb_momentum": 0.5,
    "class_steps": 2,
    "normalise_gradients": False,
    "views": "identity",
    "target_map": (2, 0, 1),
    "protected_classes": ("ant", "cat"),
    "protected_fraction": 0.5,
    "surrogate": "linear",
    "epochs": 2,
    "seed": jobs.SEED[::-1],
}


def evaluations(protection_id: UUID) -> list[Step]:
    with reading() as session:
        parts = steps.of(session, protection_id)
    return [step for step in parts if step.kind is StepKind.EVALUATE]


def outputs(protection_id: UUID) -> list[dict[str, Any]]:
    return [step.output or {} for step in evaluations(protection_id)]


def ran(dataset_id: UUID, evaluation: dict[str, Any] | None = None, **config: Any) -> UUID:
    protection_id = jobs.ask(dataset_id, evaluation, **config)
    jobs.work()
    assert jobs.show(protection_id).error is None
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    return protection_id


def test_every_cell_is_a_step() -> None:
    asked = {"countermeasures": ["none", "jpeg-10"], "networks": ["linear", "mlp"], "seeds": 2}
    dataset = jobs.upload(pictures.zipped(pictures.class_folders(6, 3)))
    protection_id = ran(dataset.id, asked)
    found = outputs(protection_id)
    names = [(o["network"], o["countermeasure"], o["seed"]) for o in found]
    assert names == [
        (network, countermeasure, seed)
        for network in ("linear", "mlp")
        for countermeasure in ("none", "jpeg-10")
        for seed in (1, 2)
        for _ in ("clean", "protected")
    ]
    clean = [tuple(o["accuracy_by_epoch"]) for o in found[::2]]
    assert all(len(curve) == 2 for curve in clean)
    assert len(set(clean)) > 1
    protection = jobs.show(protection_id)
    assert protection.evaluation == asked | {"weights": {}}
    with reading() as session:
        record = report.build(protection, steps.of(session, protection_id))
    assert len(record["matrix"]) == 4
    assert record["accuracy"] == {"clean": found[0], "protected": found[1]}
    assert "Of 4 ways" in record["verdict"]["sentence"]
    page = report.render(record, None)
    assert page.count("jpeg-10") >= 2
    for output in found:
        by_class = output["by_class"]
        assert list(by_class) == ["ant", "bee", "cat"]
        assert all(of_class["images"] == 3 for of_class in by_class.values())
        for which in ("last", "peak"):
            recognised = sum(of_class[f"recognised_{which}"] for of_class in by_class.values())
            assert recognised / 9 == pytest.approx(output[f"accuracy_{which}"], abs=1e-6)
    costs = [step.cost for step in evaluations(protection_id)]
    assert len(set(costs[:8])) == 1 < len(set(costs))


def test_another_protection_of_the_data_trains_no_baseline_again() -> None:
    """Whatever it does to the images: and what is kept is what would have been found."""
    assert set(OTHERWISE) == PERTURBATION
    dataset = jobs.upload(TRAIN_ONLY)
    first = outputs(ran(dataset.id))
    second = outputs(ran(dataset.id, **OTHERWISE))
    assert [o["reused"] for o in first + second] == [False, False, True, False]
    assert second[0] | {"reused": False} == first[0]
    anew = outputs(ran(jobs.upload(TRAIN_ONLY).id, **OTHERWISE))
    assert anew[0] == first[0]


@pytest.mark.parametrize(
    "change",
    [
        {"held_out_percent": 40},
        {"appropriator_epochs": 3},
        {"learning_rate": 0.03},
        {"precision": "bfloat16"},
        {"appropriator": "linear"},
    ],
)
def test_another_recipe_is_another_baseline(change: dict[str, Any]) -> None:
    dataset = jobs.upload(TRAIN_ONLY)
    ran(dataset.id, precision="float32")
    assert not outputs(ran(dataset.id, **({"precision": "float32"} | change)))[0]["reused"]


def test_a_baseline_that_was_kept_with_fewer_figures_is_trained_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = jobs.upload(TRAIN_ONLY)
    with monkeypatch.context() as before:
        before.setattr(baselines, "FIGURES", baselines.FIGURES - 1)
        ran(dataset.id)
    clean = outputs(ran(dataset.id))[0]
    assert not clean["reused"]
    assert outputs(ran(dataset.id))[0] == clean | {"reused": True}


def test_a_baseline_that_another_is_at_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step goes back without a lost attempt, and finds what the other one found."""
    monkeypatch.setattr(evaluate, "POSTPONED_MAX_SECONDS", 0)
    dataset = jobs.upload(TRAIN_ONLY)
    first, second = jobs.ask(dataset.id), jobs.ask(dataset.id, epsilon_levels=4)
    while earlier := [step for step in jobs.ready() if step.kind is not StepKind.EVALUATE]:
        jobs.run(earlier[0].id)
    trained = evaluate._train
    met: list[Step] = []

    def in_the_middle(claim: Claim, job: Job, cell: Cell) -> Work:
        output = yield from trained(claim, job, cell)
        if cell.clean:  # as another worker would, while this one is at it
            jobs.run(evaluations(second)[0].id)
            met.append(evaluations(second)[0])
        return output

    monkeypatch.setattr(evaluate, "_train", in_the_middle)
    jobs.work()
    assert [(step.state, step.attempt) for step in met] == [(StepState.READY, 0)]
    assert [output["reused"] for output in outputs(first) + outputs(second)] == [
        *[False, False],
        *[True, False],
    ]
    assert {jobs.show(first).state, jobs.show(second).state} == {ProtectionState.SUCCEEDED}


def test_baselines_go_with_the_data_set() -> None:
    dataset = jobs.upload(TRAIN_ONLY)
    protection_id = ran(dataset.id)
    with transaction() as session:
        datasets.delete(session, jobs.owner(), dataset.id)
    with reading() as session:
        assert session.scalars(select(Baseline)).all() == []
    assert outputs(protection_id)[0]["accuracy_last"]
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE))


@pytest.mark.parametrize("planned", [False, True])
def test_a_protection_from_before_evaluations_could_be_asked_for(planned: bool) -> None:
    """As the migration finds it, before its plan is frozen or after."""
    protection_id = jobs.ask(jobs.upload(TRAIN_ONLY).id)
    if planned:
        jobs.work(until=StepKind.PERTURB)
    with transaction() as session:
        row = session.get_one(Protection, protection_id)
        row.requested = {name: row.requested[name] for name in ("preset", "config")}
        row.evaluation = None
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    with reading() as session:
        row = session.get_one(Protection, protection_id)
        record = report.build(row, steps.of(session, protection_id))
    assert [row["countermeasure"] for row in record["matrix"]] == ["crop-flip"]


def test_a_training_costs_its_passes() -> None:
    """A training image is three forward passes, each of an attack's gradients two more.

    Through a frozen backbone there is no way back, and a short schedule is a seventh of one.
    """
    fewer: dict[str, float] = {"pretrained-frozen": 1, "short": 3 / 7}
    for countermeasure in COUNTERMEASURES:
        passes = fewer.get(countermeasure, 3) + 2 * STEPS * (countermeasure in RADIUS_LEVELS)
        assert training_cost(countermeasure) == pytest.approx(passes / 3)


def kept_curve(protection_id: UUID, index: int) -> list[Any]:
    """Accuracies of the epochs that the next attempt need not do again."""
    stored = resume.load(evaluation_key(protection_id, index))
    return stored["curve"] if stored is not None else []


@pytest.mark.parametrize("countermeasure", ["crop-flip", "grey"])
@pytest.mark.parametrize("index", [steps.CLEAN, steps.PROTECTED])
def test_a_training_that_was_broken_off_goes_on_to_the_same_accuracies(
    monkeypatch: pytest.MonkeyPatch, countermeasure: str, index: int
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    asked: dict[str, Any] = {"countermeasures": [countermeasure]}
    undisturbed = outputs(ran(jobs.upload(TRAIN_ONLY).id, asked, appropriator_epochs=4))
    protection_id = jobs.ask(jobs.upload(TRAIN_ONLY).id, asked, appropriator_epochs=4)
    jobs.work(until=StepKind.EVALUATE)
    begun, kept = [], []
    for epochs in (1, 2):
        with transaction() as session:
            claim = leases.claim(session, evaluations(protection_id)[index].id, "a test")
            assert claim is not None
        work = evaluate.run(claim)
        while (
            len((resume.load(evaluation_key(protection_id, index)) or {"curve": ()})["curve"])
            < epochs
        ):
            next(work)
        step = evaluations(protection_id)[index]
        begun.append(step.progress_begun)
        kept.append(step.progress_kept)
        endings.end(claim, endings.stop)
    assert 0 < kept[0] < kept[1]
    assert begun == [0, kept[0]]
    jobs.work()
    assert outputs(protection_id) == undisturbed
    assert storage.read_if_there(evaluation_key(protection_id, index)) is None
