"""kill -9 in the middle of each kind of step, a flushed Redis: the same archive, to the byte."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import select

from api.db import reading
from api.models import Step, StepKind, StepState
from tests import pictures
from tests.acceptance.stack import Stack, pid_of, running
from tests.servers import wait_for

# Large enough that every step takes long enough to be met in its middle.
DATA = pictures.zipped(pictures.class_folders(150, 30, size=(64, 64)))
KINDS = [StepKind.INGEST, StepKind.TRAIN, StepKind.PERTURB, StepKind.PACKAGE, StepKind.EVALUATE]


@pytest.fixture
def stack(environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    with running(environment, tmp_path) as started:
        yield started


def job(stack: Stack, between: Callable[[str], None] = lambda _: None) -> bytes:
    dataset_id = stack.upload(DATA)
    between("upload")
    assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
    protection_id = stack.ask(dataset_id)
    between("ask")
    protection = stack.finish(f"/v1/protections/{protection_id}")
    assert protection["state"] == "succeeded", protection["error"]
    return stack.archive(protection_id)


def kill_in_the_middle_of(kind: StepKind) -> None:
    """Wait for a running step of this kind, and kill the process that has it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with reading() as session:
            owner = session.scalar(
                select(Step.lease_owner).where(
                    Step.kind == kind, Step.state == StepState.RUNNING, Step.attempt == 1
                )
            )
        if owner is not None:
            os.kill(pid_of(owner), signal.SIGKILL)
            return
        time.sleep(0.01)
    raise AssertionError(f"no {kind} was seen running")


def attempts() -> dict[StepKind, int]:
    with reading() as session:
        steps = session.execute(select(Step.kind, Step.attempt)).all()
    return {kind: max(attempt for k, attempt in steps if k == kind) for kind, _ in steps}


def test_same_archive_whatever_is_killed(stack: Stack, redis_url: str) -> None:
    undisturbed = job(stack)

    def kill_all(when: str) -> None:
        for kind in KINDS[:1] if when == "upload" else KINDS[1:]:
            kill_in_the_middle_of(kind)

    assert job(stack, kill_all) == undisturbed
    assert all(attempts()[kind] >= 2 for kind in KINDS)

    def flush(_: str) -> None:
        with Redis.from_url(redis_url) as client:
            client.flushall()

    assert job(stack, flush) == undisturbed


def test_same_archive_when_whole_workers_and_sweep_are_killed(stack: Stack) -> None:
    undisturbed = job(stack)

    def kill_parents(when: str) -> None:
        if when == "upload":
            return
        wait_for(lambda: running_kind(StepKind.TRAIN), 60, "a training")
        for part in ("worker-gpu", "worker-cpu", "sweep"):
            stack.kill(part)
        for part in ("worker-gpu", "worker-cpu", "sweep"):
            stack.start(part)

    assert job(stack, kill_parents) == undisturbed


def running_kind(kind: StepKind) -> bool:
    with reading() as session:
        query = select(Step.id).where(Step.kind == kind, Step.state == StepState.RUNNING)
        return session.scalar(query.limit(1)) is not None
