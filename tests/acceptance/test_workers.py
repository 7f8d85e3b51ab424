"""`sepgate worker`: a process for each GPU that is there, started again when it dies, and its end.

There is no GPU here: a script says that there are two. What they compute on is the CPU.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import select

from api import datasets, revision, storage, workers
from api.commands import launcher
from api.db import reading, transaction
from api.models import Dataset, DatasetState, Queue, Step, StepState
from api.scheduling import outbox
from api.settings import settings
from tests import pictures
from tests.servers import wait_for
from tests.worker import jobs

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

START_SECONDS = 60
TOOL = """#!/bin/sh
echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)"
echo "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"
"""


@pytest.fixture
def two_gpus(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a host where `nvidia-smi` lists two."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(TOOL)
    tool.chmod(0o755)
    revision.migrate()
    path = os.pathsep.join([str(tool.parent), os.environ["PATH"]])
    given = {k: v for k, v in os.environ.items() if k != workers.VISIBLE}
    return given | {"PATH": path, "SEPGATE_DEVICE": "auto"} | environment


@contextmanager
def serving(
    environment: dict[str, str], log: Path, kind: Queue = Queue.GPU
) -> Iterator["subprocess.Popen[bytes]"]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["sepgate", "worker", "--queue", kind],
            env=environment,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def celery_of(pid: int) -> dict[str, int]:
    """Process ids of the workers below a process, by the GPU that each is to see."""
    found = {}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        with suppress(FileNotFoundError, ProcessLookupError):
            told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            named = dict(line.split(b"=", 1) for line in told if b"=" in line)
            found[named.get(b"CUDA_VISIBLE_DEVICES", b"").decode()] = child
    return found


def test_each_gpu_has_its_worker_which_comes_again(
    two_gpus: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with serving(two_gpus, log) as process:
        wait_for(lambda: log.read_text().count(" ready.") >= 2, START_SECONDS, "two workers")
        first = celery_of(process.pid)
        assert set(first) == {"GPU-0", "GPU-1"}
        killed = first["GPU-1"]
        os.kill(killed, signal.SIGKILL)
        wait_for(
            lambda: celery_of(process.pid).get("GPU-1", killed) != killed, 20, "another worker"
        )
        assert celery_of(process.pid)["GPU-0"] == first["GPU-0"]
        process.terminate()
        process.wait(START_SECONDS)
    assert not any(Path(f"/proc/{pid}").exists() for pid in first.values())


def upload_some(number: int) -> None:
    """Data sets that each take seconds to ingest: what is large and refused takes most of it."""
    transparent = pictures.encoded(np.zeros((3000, 3000, 4), np.uint8))
    refused = {f"train/ant/refused-{n:02d}.png": transparent for n in range(18)}
    archive, who = pictures.zipped(pictures.class_folders(3) | refused), jobs.owner()
    for _ in range(number):
        storage.write(storage.dataset_key(made := uuid4(), datasets.SOURCE), archive)
        with transaction() as session:
            datasets.create(session, who, made, "test", "0" * 64, len(archive))
    outbox.send_ready()


def ingestions(state: StepState) -> list[Step]:
    with reading() as session:
        return list(session.scalars(select(Step).where(Step.state == state)))


def test_who_is_to_end_finishes_what_it_is_at_and_takes_no_other(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Within its grace period. What it has not begun waits for others, and was not touched."""
    upload_some(3)
    log = tmp_path / "worker.log"
    grace = {"SEPGATE_DRAIN_SECONDS": "60"}
    with serving(os.environ | environment | grace, log, Queue.CPU) as process:
        wait_for(
            lambda: any(step.progress_done for step in ingestions(StepState.RUNNING)),
            START_SECONDS,
            "the middle of a step",
        )
        (begun,) = ingestions(StepState.RUNNING)
        assert begun.progress_done < begun.progress_total
        process.terminate()
        assert process.wait(START_SECONDS) == 0
    (done,) = ingestions(StepState.DONE)
    assert (done.id, done.attempt) == (begun.id, begun.attempt)
    with reading() as session:
        read = session.scalars(select(Dataset).where(Dataset.state == DatasetState.READY)).all()
    assert [dataset.id for dataset in read] == [begun.dataset_id]
    left = ingestions(StepState.READY)
    touched = [(step.attempt, step.lease_owner, step.started_at) for step in left]
    assert touched == [(0, None, None)] * 2


@pytest.mark.parametrize(("told", "given"), [(None, "2"), ("30", "30.0")])
def test_who_serves_everything_waits_a_moment_for_steps_unless_told_otherwise(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, told: str | None, given: str
) -> None:
    assert environment
    if told is not None:
        monkeypatch.setenv("SEPGATE_DRAIN_SECONDS", told)
        settings.cache_clear()
    parts = [part for part in launcher._parts("127.0.0.1", 1) if part.name.startswith("worker")]
    assert {part.environment["SEPGATE_DRAIN_SECONDS"] for part in parts} == {given}
    assert {part.environment["SEPGATE_WORKER_QUEUE"] for part in parts} == {"gpu", "cpu"}
    settings.cache_clear()


@pytest.mark.parametrize(
    ("told", "found"), [("1", ["1"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]), ("", []), ("-1", [])]
)
def test_the_environment_says_which(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, told: str, found: list[str]
) -> None:
    assert environment
    monkeypatch.setenv(workers.VISIBLE, told)
    assert workers.gpus() == found
    named = [part.name for part in workers.parts(Queue.GPU)]
    assert len(named) == max(len(found), 1)
    assert [part.name for part in workers.parts(Queue.CPU)] == ["worker-cpu"]
