"""A worker's speed is measured once a process, by its first child, and registered."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api import protections, steps
from api.db import now, reading, transaction
from api.models import Queue, StepKind, Worker
from api.plans import estimate, speeds
from api.plans.speeds import Device
from sep_core.config import as_dict
from tests import pictures
from tests.worker import jobs
from worker import calibration, facts
from worker.lease import DrainFlag, WorkerDraining

ONE_THREAD = Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)


@pytest.fixture(autouse=True)
def _nothing_measured() -> Any:
    nothing = [0.0] * len(facts._speeds)
    facts._speeds[:] = nothing
    yield
    facts._speeds[:] = nothing


def test_speeds_are_those_of_this_machine() -> None:
    calibration.measure(ONE_THREAD, DrainFlag())  # imports, caches
    began = time.monotonic()
    speeds = calibration.measure(ONE_THREAD, DrainFlag())
    assert time.monotonic() - began < 30  # two seconds or so, where others do not want the cores
    assert [speed.input_pixels for speed in speeds] == [32, 64]
    for speed in speeds:
        assert 0.1 < speed.training_gflops < 1e5
        assert 0.1 < speed.gradient_gflops < 1e5
        assert 1 / 20 < speed.gradient_gflops / speed.training_gflops < 20
        assert speed.walked_pixels is not None
        assert 1e5 < speed.walked_pixels < 1e11


def test_a_gpu_is_measured_through_a_large_network_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown on this processor, where PyTorch is as fast through any: by other figures."""
    both = {"cpu": ("mlp", "small")}
    monkeypatch.setattr(calibration, "MEASURED_NETWORKS", both)
    monkeypatch.setattr(facts, "MEASURED_NETWORKS", both)
    here = facts.Facts("cpu", "this one", 2**33, bfloat16=False, threads=1, versions={})
    speeds = facts.calibrated(here, DrainFlag()).speeds
    assert speeds is not None
    asked = [("mlp", 32), ("mlp", 64), ("small", 32), ("small", 64)]
    assert [(speed.network, speed.input_pixels) for speed in speeds] == asked
    assert len({speed.training_gflops for speed in speeds}) == len(speeds)
    assert facts.calibrated(here, DrainFlag()).speeds == speeds


# As Celery's prefork pool does it: a parent without PyTorch, and one child after the other.
PREFORK = """
import multiprocessing, sys, time
from api.db import reading
from api.models import Worker
from worker import facts, tasks

def registered():
    with reading() as session:
        return session.get(Worker, facts.name())

def live():
    tasks._adopt()
    deadline = time.monotonic() + 30
    while registered() is None and time.monotonic() < deadline:
        time.sleep(0.05)

for _ in range(2):
    child = multiprocessing.get_context("fork").Process(target=live)
    child.start()
    child.join()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_child_that_follows_another_measures_nothing(environment: dict[str, str]) -> None:
    variables = {**os.environ, **environment, "SEPGATE_WORKER_QUEUE": "gpu"}
    subprocess.run([sys.executable, "-c", PREFORK], env=variables, check=True, timeout=120)
    with reading() as session:
        first, second = session.scalars(select(Worker).order_by(Worker.started_at)).all()
    assert first.speeds
    assert all(all(speed.values()) for speed in first.speeds)
    # Measured again, they would differ by the last digits at least.
    assert second.speeds == first.speeds


def test_what_can_not_be_measured_is_left_open() -> None:
    nowhere = facts.Facts("tpu", "none of ours", 0, bfloat16=False, threads=1, versions={})
    assert facts.calibrated(nowhere, DrainFlag()).speeds is None


def test_a_worker_that_is_to_end_does_not_measure_to_the_end() -> None:
    drain = DrainFlag()
    drain.set()
    with pytest.raises(WorkerDraining):
        calibration.measure(ONE_THREAD, drain)
    here = facts.Facts("cpu", "this one", 2**33, bfloat16=False, threads=1, versions={})
    assert facts.calibrated(here, drain) == here


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("test_images", [0, 3])
def test_an_estimate_is_what_is_planned_then(test_images: int) -> None:
    """Same configuration, plan, steps and costs as the `train` step freezes on this worker."""
    dataset = jobs.upload(pictures.zipped(pictures.class_folders(9, test_images)))
    asked = {"countermeasures": ["none", "adversarial-2"]}
    config = jobs.CONFIG | {"held_out_percent": 30, "precision": "float32"}
    request = protections.Request(dataset.id, "quick", config, asked)
    with reading() as session:
        foreseen = estimate.estimate(session, dataset, request)
    protection_id = jobs.ask(dataset.id, asked, **config)
    jobs.work()
    protection = jobs.show(protection_id)
    assert json.dumps(protection.config) == json.dumps(as_dict(foreseen.config))
    assert protection.plan is not None
    assert as_dict(foreseen.plan) == protection.plan
    with reading() as session:
        parts = steps.of(session, protection_id)
    by_kind = speeds.costs(foreseen.loads, foreseen.config.input_pixels, ONE_THREAD)
    costs = [cost for of_kind in by_kind.values() for cost in of_kind]
    assert [step.cost for step in parts] == pytest.approx(costs)
    assert [step.kind for step in parts] == [k for k, v in foreseen.loads.items() for _ in v]


@pytest.mark.usefixtures("environment")
def test_a_baseline_that_is_kept_is_no_work() -> None:
    dataset = jobs.upload(pictures.zipped(pictures.class_folders(9)))
    asked = {"countermeasures": ["crop-flip", "none"]}
    here = facts.measure(Queue.GPU)
    with transaction() as session:
        columns = {name: getattr(here, name) for name in here.__dataclass_fields__}
        at = now(session)
        row = Worker(name="one", queue=Queue.GPU, started_at=at, heartbeat_at=at, **columns)
        session.add(row)

    def evaluations(**config: Any) -> list[bool]:
        request = protections.Request(dataset.id, "quick", jobs.CONFIG | config, asked)
        with reading() as session:
            loads = estimate.estimate(session, dataset, request).loads
        return [load.gflop > 0 for load in loads[StepKind.EVALUATE]]

    assert evaluations() == [True] * 4
    jobs.ask(dataset.id, {"countermeasures": ["none"]})
    jobs.work()
    assert evaluations(epsilon_levels=4) == [True, True, False, True]
    assert evaluations(appropriator_epochs=7) == [True] * 4


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    here = facts._memory_bytes([])
    limits = [tmp_path / name for name in ("none", "low", "high", "missing")]
    for path, text in zip(limits, ("max\n", "1073741824\n", f"{2 * here}\n"), strict=False):
        path.write_text(text)
    assert facts._memory_bytes(limits) == min(2**30, here)
    assert facts._memory_bytes([limits[0], limits[2], limits[3]]) == here
