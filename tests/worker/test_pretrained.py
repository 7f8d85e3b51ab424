"""Trainings that begin with a file of the operator's, through the service's own way."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from torch import Tensor

from api import steps
from api.db import reading
from api.errors import AppError
from api.evidence import report
from api.models import Protection, ProtectionState, Step, StepKind, StepState
from api.plans import weights
from sep_core.config import PRETRAINED, Plan, resolve
from sep_core.presets import QUICK
from sep_core.training import Epoch, Recipe, fit
from tests import pictures
from tests.worker import jobs
from worker import pretrained, tensors
from worker.data import load_index, open_source

pytestmark = [
    pytest.mark.usefixtures("environment"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

ARCHIVE = pictures.zipped(pictures.class_folders(12, 6))
ROWS: dict[str, Any] = {"countermeasures": list(PRETRAINED), "networks": ["mlp"]}
SIDE = jobs.CONFIG["input_pixels"]
State = dict[str, Tensor]


def trained(dataset_id: UUID, epochs: int = 20) -> State:
    """Of the same network, on pictures like these: what a good backbone would know."""
    index = load_index(dataset_id)
    with open_source(dataset_id) as reader:
        pixels = torch.stack(list(tensors.at_input_size(reader, index.records, 16)))
    config = resolve(replace(QUICK, input_pixels=16, batch_size=16, seed=jobs.SEED), 3)
    plan = Plan(device="cpu", precision="float32")
    recipe = Recipe("mlp", epochs, "elsewhere")
    labels = tensors.labels(index.records, index)
    *_, last = fit(pixels, labels, 3, recipe, config=config, plan=plan)
    assert isinstance(last, Epoch)
    return last.network.state_dict()


def blind(state: State) -> State:
    """Weights through which every image looks the same."""
    return {k: torch.zeros_like(v) if k.startswith("trunk") else v for k, v in state.items()}


def ran(dataset_id: UUID, **config: Any) -> Protection:
    protection_id = jobs.ask(dataset_id, ROWS, surrogate="linear", **config)
    jobs.work()
    return jobs.show(protection_id)


def parts(protection: Protection) -> list[Step]:
    with reading() as session:
        return steps.of(session, protection.id)


def outputs(protection: Protection) -> list[dict[str, Any]]:
    return [step.output or {} for step in parts(protection) if step.kind is StepKind.EVALUATE]


def test_both_rows_begin_with_the_file_and_name_it() -> None:
    dataset = jobs.upload(ARCHIVE)
    state = trained(dataset.id)
    digest = jobs.give_weights("mlp", state)
    good = ran(dataset.id)
    assert good.error is None
    assert good.evaluation == ROWS | {"seeds": 1, "weights": {"mlp": digest}}
    record = report.build(good, parts(good))
    assert [row["countermeasure"] for row in record["matrix"]] == list(PRETRAINED)
    assert [row["weights_sha256"] for row in record["matrix"]] == [digest] * 2
    assert report.render(record, None).count(digest) == 2

    again = outputs(ran(dataset.id, epsilon_levels=4))
    assert [output["reused"] for output in again] == [True, False, True, False]
    assert [again[at] | {"reused": False} for at in (0, 2)] == [outputs(good)[at] for at in (0, 2)]

    # A frozen backbone that sees nothing leaves guessing; a good one needs a new head alone.
    other = jobs.give_weights("mlp", blind(state))
    bad = ran(dataset.id)
    assert bad.evaluation == ROWS | {"seeds": 1, "weights": {"mlp": other}}
    assert [output["reused"] for output in outputs(bad)] == [False] * 4
    assert outputs(bad)[0]["accuracy_last"] == pytest.approx(1 / 3, abs=1e-6)
    assert outputs(good)[0]["accuracy_last"] > 0.9


def test_weights_that_do_not_fit_fail_the_first_step() -> None:
    dataset = jobs.upload(ARCHIVE)
    jobs.give_weights("mlp", {"conv1.weight": torch.zeros(3)})
    failed = ran(dataset.id)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "PRETRAINED_UNFIT")
    assert str(failed.error).startswith(f"mlp.pt: expected the weights of mlp for images of {SIDE}")
    assert [step.kind for step in parts(failed) if step.state is StepState.FAILED] == [
        StepKind.TRAIN
    ]


def replaced(file: Path) -> None:
    torch.save({"another": torch.zeros(1)}, file)


@pytest.mark.parametrize(
    ("change", "code"), [(replaced, "PRETRAINED_CHANGED"), (os.remove, "PRETRAINED_UNAVAILABLE")]
)
def test_a_file_that_is_not_the_plans_is_not_trained_with(change: Any, code: str) -> None:
    dataset = jobs.upload(ARCHIVE)
    digest = jobs.give_weights("mlp", trained(dataset.id, epochs=1))
    protection_id = jobs.ask(dataset.id, ROWS, surrogate="linear")
    jobs.work(until=StepKind.EVALUATE)
    change(weights.path("mlp"))
    jobs.work()
    failed = jobs.show(protection_id)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, code)
    assert str(failed.error).startswith("mlp.pt: expected")
    assert failed.evaluation is not None
    assert failed.evaluation["weights"] == {"mlp": digest}


class Evil:
    """What a pickle from the internet may hold."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.trace,))


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    digest = jobs.give_weights("mlp", {"conv1.weight": Evil(trace)})
    with pytest.raises(AppError, match="tensors alone") as refused:
        pretrained.load("mlp", 16, digest)
    assert refused.value.code == "PRETRAINED_UNFIT"
    assert not trace.exists()
    torch.load(weights.path("mlp"), weights_only=False)
    assert trace.exists()  # so it would have run


DAMAGED = [b"", b"no pickle", b"PK\x03\x04 no zip", b"\x80\x02}q\x00."]
DAMAGED += [b".", b"\x80\x02.", b"X\x01\x00\x00"]  # of these pickle raises what it happens to meet


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_refused(content: bytes) -> None:
    jobs.give_weights("mlp", {})
    weights.path("mlp").write_bytes(content)
    with pytest.raises(AppError, match=r"^mlp\.pt: expected") as refused:
        pretrained.load("mlp", 16, weights.sha256("mlp"))
    assert refused.value.code == "PRETRAINED_UNFIT"


def test_files_in_the_old_form_are_read(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with file.open("rb") as opened:
        found = pretrained.read(opened)
    assert isinstance(found, dict)
    assert found["a"].tolist() == [1, 1]
