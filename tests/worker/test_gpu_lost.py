"""A GPU that fails or is gone: no fault of the step; who had it ends, and takes nothing more.

A process that is to see none has none: a plan for it, and a worker that needs it, are real there.
"""

import errno
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
import torch
from sqlalchemy import select

from api import workers
from api.db import reading, transaction
from api.models import Protection, ProtectionState, Step, StepKind, StepState
from tests import pictures
from tests.acceptance.stack import IMPATIENT
from tests.worker import jobs
from worker import faults

HIDDEN = {workers.VISIBLE: ""}
# For what takes long and does not depend on the kind of database.
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PROGRAM = """
import sys
from sqlalchemy.exc import OperationalError
from api.scheduling import endings
from tests.worker import jobs
def away(*_):
    raise OperationalError("SELECT", {}, Exception("the database is away"))
if "away" in sys.argv:
    endings.end = away
jobs.run(jobs.ready()[0].id)
"""


def planned_for_a_gpu() -> UUID:
    """A protection whose surrogate was trained where there was one."""
    made = jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(4, 2))).id)
    jobs.work(until=StepKind.PERTURB)
    with transaction() as session:
        row = session.get_one(Protection, made)
        assert row.plan is not None
        row.plan = row.plan | {"device": "cuda"}
    return made


def run_without_gpu(*words: str) -> "subprocess.CompletedProcess[str]":
    """`PROGRAM`, in a process that ends as a worker's child would."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | HIDDEN,
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.usefixtures("environment")
def test_the_step_goes_back_uncounted_and_the_process_ends() -> None:
    made = planned_for_a_gpu()
    ran = run_without_gpu()
    assert ran.returncode == faults.EXIT_GPU_LOST, ran.stderr
    with reading() as session:
        shards = select(Step).where(Step.protection_id == made, Step.kind == StepKind.PERTURB)
        (shard,) = session.scalars(shards).all()
    assert (shard.state, shard.attempt, shard.error_code) == (StepState.READY, 0, "GPU_LOST")
    assert shard.error is not None
    assert shard.error.startswith("The GPU of this worker failed: ")
    assert jobs.show(made).state is ProtectionState.RUNNING


@ON_SQLITE
@pytest.mark.usefixtures("environment")
def test_the_process_ends_though_the_database_is_away() -> None:
    """It would take the next step, which can't run either."""
    planned_for_a_gpu()
    ran = run_without_gpu("away")
    assert ran.returncode == faults.EXIT_GPU_LOST, ran.stderr
    assert "the step's end could not be written" in ran.stderr


@ON_SQLITE
def test_a_worker_that_needs_a_gpu_ends_without_one(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        ended = subprocess.run(
            ["sepgate", "worker", "--queue", "gpu"],
            env=os.environ | environment | IMPATIENT | HIDDEN | {"SEPGATE_DEVICE": "cuda"},
            stdout=output,
            stderr=output,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 0
    assert "expected SEPGATE_DEVICE=cuda, got cpu: ends" in log.read_text()


@pytest.mark.parametrize(
    ("error", "lost", "full", "suspect"),
    [
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            True,
            False,
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), False, True, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False, True, True),
        (torch.AcceleratorError("CUDA error: out of memory"), False, True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), False, True, True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True, False, False),
        (RuntimeError("CUDA error: device-side assert triggered"), True, False, True),
        (torch.AcceleratorError("unspecified launch failure"), True, False, False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False, True),
        (ValueError("CUDA error"), False, False, True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), False, True, True),
        (OSError(errno.EIO, "Input/output error"), False, False, False),
    ],
)
def test_what_errors_say(error: Exception, *, lost: bool, full: bool, suspect: bool) -> None:
    assert (faults.is_gpu_lost(error), faults.is_out_of_memory(error)) == (lost, full)
    assert faults.setback(error).suspect is suspect
    assert (faults.setback(error).code == "OUT_OF_MEMORY") is full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_or_a_quota_that_is_used_up_is_full(number: int) -> None:
    setback = faults.setback(OSError(number, "no room", "/data/blobs"))
    assert (setback.code, setback.suspect) == ("STORAGE_FULL", False)
    assert "/data/blobs" in setback.message


def test_a_temporary_database_without_room_is_a_full_disk() -> None:
    with closing(sqlite3.connect("")) as rows:
        rows.execute("PRAGMA max_page_count = 2")
        rows.execute("CREATE TABLE names (name TEXT)")
        with pytest.raises(sqlite3.OperationalError) as full:
            rows.execute("INSERT INTO names VALUES (?)", ("x" * 100_000,))
        with pytest.raises(sqlite3.OperationalError) as other:
            rows.execute("SELECT * FROM nothing")
    assert (faults.setback(full.value).code, faults.setback(full.value).suspect) == (
        "STORAGE_FULL",
        False,
    )
    with pytest.raises(sqlite3.ProgrammingError) as ours:
        rows.execute("SELECT 1")
    assert (faults.setback(ours.value).code, faults.setback(ours.value).suspect) == (
        "INTERNAL",
        True,
    )
    for error in (other.value, sqlite3.DatabaseError("database disk image is malformed")):
        assert faults.setback(error).code == "INFRASTRUCTURE"


# In a process of its own, as it is in a worker: its heartbeat goes on until it ends.
CLAIM = """
from api.models import Queue
from worker import tasks

tasks._adopt()
print(tasks._claim_next(Queue.CPU).kind)
"""


@pytest.mark.parametrize("kind", [StepKind.ENCODE, StepKind.PACKAGE])
def test_the_cpu_queue_takes_what_a_gpu_has_perturbed(
    environment: dict[str, str], kind: StepKind
) -> None:
    made = jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(4, 2))).id)
    jobs.work(until=kind)
    with transaction() as session:
        row = session.get_one(Protection, made)
        assert row.plan is not None
        row.plan = row.plan | {"device": "cuda"}
    variables = os.environ | environment | {"SEPGATE_WORKER_QUEUE": "cpu"}
    words = [sys.executable, "-c", CLAIM]
    ran = subprocess.run(words, env=variables, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == [kind]
