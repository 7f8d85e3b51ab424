"""The surrogate's training by two processes, as the `train` step does it, on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from structlog.contextvars import bound_contextvars

from api import logs, protections, steps, storage
from api.db import transaction
from api.models import Protection, ProtectionState, StepKind
from api.scheduling import endings, leases
from api.scheduling.leases import Claim
from tests import pictures
from tests.servers import wait_for
from tests.worker import jobs
from worker import facts, resume, tasks
from worker.data import checkpoint_key, load_job
from worker.faults import (
    EXIT_GPU_LOST,
    EXIT_INFRASTRUCTURE,
    EXIT_OUT_OF_MEMORY,
    EXIT_RANK_LOST,
    EXIT_STORAGE_FULL,
    RankLost,
)
from worker.steps import Work, train
from worker.together import Followers

pytestmark = pytest.mark.usefixtures("environment")
# For what takes long and does not depend on the kind of database.
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ARCHIVE = pictures.zipped(pictures.class_folders(16, 2))
PROGRAM = """
import time
from tests.worker import test_together
work = test_together.progressed(test_together.claim(), 1)
print("in the middle", flush=True)
time.sleep(60)
"""
# Says that it is ready, and ends before it has met anybody.
ENDS = f"""#!{sys.executable}
import sys
from torch.distributed import FileStore
FileStore(sys.argv[5], 2).set("1 is ready", "")
sys.exit({{status}})
"""
WAITS = """
import sys
from structlog.contextvars import bound_contextvars
from api import logs
from tests.worker import test_together
from worker import together
sys.executable, together.NOTICE_SECONDS = sys.argv[1], 0.5
logs.configure()
claimed = test_together.claim()
with bound_contextvars(**logs.about(claimed)):
    list(test_together.train.run(claimed))
"""
CHANGES: dict[str, Any] = {"batch_size": 32, "epochs": 4, "checkpoints": 4}


def claim() -> Claim:
    with transaction() as session:
        found = leases.claim(session, jobs.ready()[0].id, facts.name())
        assert found is not None
        steps.start(session, found)
    return found


def planned(dataset_id: UUID) -> Claim:
    """A `train` step that is planned for two processes, and runs."""
    protection_id = jobs.ask(dataset_id, **CHANGES)
    found = claim()
    train.freeze_plan(found)
    with transaction() as session:
        row = session.get_one(Protection, protection_id)
        assert row.plan is not None
        assert row.plan["world_size"] == 1  # a CPU has no others to borrow
        row.plan = row.plan | {"world_size": 2}
    return found


def followers(leader: int = 0) -> list[int]:
    """Processes that train along with that one, or with this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"worker.together" in words and str(leader or os.getpid()).encode() in words:
            found.append(int(folder.name))
    return found


def archive(claim: Claim) -> bytes:
    assert claim.protection_id is not None
    shown = jobs.show(claim.protection_id)
    assert shown.state is ProtectionState.SUCCEEDED, shown.error
    return storage.read(storage.protection_key(claim.protection_id, protections.ARCHIVE))


def progressed(claim: Claim, kept: int) -> Work:
    """The training, until it has kept so many checkpoints."""
    assert claim.protection_id is not None
    work = train.run(claim)
    while not storage.read_if_there(checkpoint_key(claim.protection_id, kept - 1)):
        next(work)
    return work


@ON_SQLITE
def test_the_same_bytes_whoever_dies_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    dataset = jobs.upload(ARCHIVE)
    undisturbed = planned(dataset.id)
    tasks.run_claimed(undisturbed)
    assert followers() == []
    jobs.work()
    whole = archive(undisturbed)

    disturbed = planned(dataset.id)
    work = progressed(disturbed, 2)
    assert len(followers()) == 1
    work.close()  # as when the worker drains
    assert followers() == []
    endings.end(disturbed, endings.stop)

    again = claim()
    work = progressed(again, 3)
    (follower,) = followers()
    os.kill(follower, signal.SIGKILL)
    with pytest.raises(Exception, match="ended with status -9") as lost:
        list(work)
    tasks._set_back(again, lost.value)
    (ready,) = (step for step in jobs.ready() if step.kind is StepKind.TRAIN)
    assert (ready.attempt, ready.error_code) == (0, "PROCESS_DIED")  # it has kept something
    assert followers() == []
    jobs.wait()
    jobs.work()
    assert archive(disturbed) == whole


@ON_SQLITE
def test_who_trains_along_does_not_outlive_its_leader() -> None:
    endings.end(planned(jobs.upload(ARCHIVE).id), endings.stop)
    leader = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
    assert leader.stdout is not None
    assert leader.stdout.readline() == b"in the middle\n"
    assert len(followers(leader.pid)) == 1
    leader.kill()
    leader.communicate()
    wait_for(lambda: not followers(leader.pid), 20, "the end of who trained along")


@pytest.mark.parametrize(
    ("status", "code", "database_url"),
    [
        (1, "PROCESS_DIED", "postgresql"),
        (EXIT_GPU_LOST, "GPU_LOST", "sqlite"),
        (EXIT_OUT_OF_MEMORY, "OUT_OF_MEMORY", "sqlite"),
        (EXIT_STORAGE_FULL, "STORAGE_FULL", "sqlite"),
        (EXIT_INFRASTRUCTURE, "INFRASTRUCTURE", "sqlite"),
    ],
    indirect=["database_url"],
)
def test_nobody_waits_for_one_that_died_before_they_met(
    status: int, code: str, tmp_path: Path
) -> None:
    endings.end(planned(jobs.upload(ARCHIVE).id), endings.stop)
    program = tmp_path / "ends"
    program.write_text(ENDS.format(status=status))
    program.chmod(0o755)
    words = [sys.executable, "-c", WAITS, str(program)]
    leader = subprocess.run(words, check=False, timeout=120, capture_output=True, text=True)
    assert leader.returncode == EXIT_RANK_LOST, leader.stderr
    (ready,) = (step for step in jobs.ready() if step.kind is StepKind.TRAIN)
    assert ready.error_code == code
    assert ready.attempt == (1 if code in {"PROCESS_DIED", "OUT_OF_MEMORY"} else 0)
    (line,) = (text for text in leader.stderr.splitlines() if "This process ends" in text)
    assert f"step_id={ready.id}" in line


@ON_SQLITE
@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: uncorrectable ECC error"), torch.OutOfMemoryError("full")]
)
def test_the_leader_s_own_error_is_not_taken_for_the_others_death(error: RuntimeError) -> None:
    job = load_job(planned(jobs.upload(ARCHIVE).id))

    def training() -> None:
        with Followers(job, [], print) as others:
            list(others.start())
            with others.join():
                raise error

    with pytest.raises(type(error)) as raised:
        training()
    assert raised.value is error
    assert followers() == []


def test_lines_of_who_trains_along_name_the_step_and_its_request(
    capfd: pytest.CaptureFixture[str],
) -> None:
    claimed = planned(jobs.upload(ARCHIVE).id)
    job = load_job(claimed)
    storage.remove(storage.dataset_key(job.dataset_id))  # so that it has something to say
    about = logs.about(claimed) | {"request_id": "theirs"}
    with bound_contextvars(**about):  # noqa: SIM117  first of all
        with Followers(job, [], print) as others, pytest.raises(RankLost) as lost:
            list(others.start())
    assert lost.value.code == EXIT_INFRASTRUCTURE  # nothing says whose the storage is
    (line,) = (text for text in capfd.readouterr().err.splitlines() if "broken off" in text)
    assert "request_id=theirs" in line
    assert f"step_id={claimed.step_id}" in line
    assert "rank=1" in line
