"""kill -9 in the middle of each kind of step, each kind's message lost: the same archive, to the
byte."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from redis import Redis
from sqlalchemy import and_, or_, select

from api import queue
from api.db import reading
from api.models import QUEUES, Event, Step, StepKind, StepState
from api.scheduling import turns
from api.scheduling.joins import ORDER
from tests import pictures
from tests.acceptance.stack import Stack, pid_of, running
from tests.servers import wait_for

KINDS = [StepKind.INGEST, *ORDER]
STEP_SECONDS = 120


@pytest.fixture
def stack(environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    with running(environment, tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def data() -> bytes:
    """Progress is written once a second: every step on these lasts some seconds.

    What is large and refused keeps the ingestion busy, and nothing after it.
    """
    transparent = pictures.encoded(np.zeros((3000, 3000, 4), np.uint8))
    refused = {f"train/ant/refused-{n:02d}.png": transparent for n in range(18)}
    return pictures.zipped(pictures.class_folders(150, 30, size=(128, 128)) | refused)


@pytest.fixture(scope="module")
def kept() -> list[bytes]:
    """The archive that an undisturbed job gave, once there is one: on whichever database."""
    return []


@pytest.fixture
def undisturbed(stack: Stack, data: bytes, kept: list[bytes]) -> bytes:
    if not kept:
        kept.append(job(stack, data))
    return kept[0]


def job(stack: Stack, data: bytes, between: Callable[[str], None] = lambda _: None) -> bytes:
    dataset_id = stack.upload(data)
    between("upload")
    assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
    protection_id = stack.ask(dataset_id)
    between("ask")
    return finished(stack, protection_id)


def finished(stack: Stack, protection_id: str) -> bytes:
    protection = stack.finish(f"/v1/protections/{protection_id}")
    assert protection["state"] == "succeeded", protection["error"]
    return stack.archive(protection_id)


def wait_for_the_middle_of(kind: StepKind) -> str:
    """Until a step of this kind, at its first attempt, has done a part; returns who runs it.

    Of `package`, which is over in a second or two, until it has begun.
    """
    owners: list[str] = []

    def found() -> bool:
        with reading() as session:
            query = select(Step.lease_owner).where(
                Step.kind == kind,
                Step.state == StepState.RUNNING,
                Step.attempt == 1,
                or_(
                    Step.kind == StepKind.PACKAGE,
                    and_(Step.progress_done > 0, Step.progress_done < Step.progress_total),
                ),
            )
            owners.extend(owner for owner in session.scalars(query) if owner is not None)
        return bool(owners)

    wait_for(found, STEP_SECONDS, f"the middle of {kind}")
    return owners[0]


def most_begun() -> dict[str, int]:
    """By kind, how often that step was begun which was begun most often."""
    begun: Counter[tuple[UUID | None, UUID | None, str, int]] = Counter()
    with reading() as session:
        for event in session.scalars(select(Event).where(Event.what == "step.running")):
            kind, index = event.data["kind"], event.data["index"]
            begun[event.dataset_id, event.protection_id, kind, index] += 1
    return {step[2]: number for step, number in reversed(begun.most_common())}


def test_same_archive_whatever_is_killed(stack: Stack, data: bytes, undisturbed: bytes) -> None:
    def kill_all(when: str) -> None:
        for kind in KINDS[:1] if when == "upload" else KINDS[1:]:
            os.kill(pid_of(wait_for_the_middle_of(kind)), signal.SIGKILL)

    assert job(stack, data, kill_all) == undisturbed
    begun = most_begun()
    assert all(begun[kind] >= 2 for kind in KINDS), begun


def test_same_archive_when_whole_workers_and_sweep_are_killed(
    stack: Stack, data: bytes, undisturbed: bytes
) -> None:
    def kill_parents(when: str) -> None:
        if when == "upload":
            return
        wait_for_the_middle_of(StepKind.TRAIN)
        for part in ("worker-gpu", "worker-cpu", "sweep"):
            stack.kill(part)
        for part in ("worker-gpu", "worker-cpu", "sweep"):
            stack.start(part)

    assert job(stack, data, kill_parents) == undisturbed


def test_same_archive_whatever_message_is_lost(
    stack: Stack, data: bytes, undisturbed: bytes, redis_url: str
) -> None:
    """Whoever would take the message of a step is away while it lies in the queue."""
    stack.stop("worker-cpu")
    dataset_id = stack.upload(data)
    lose(StepKind.INGEST, redis_url)
    stack.start("worker-cpu")
    stack.finish(f"/v1/datasets/{dataset_id}")

    stack.stop("worker-cpu")  # now: that takes seconds, which a training may not last
    stack.stop("worker-gpu")
    protection_id = stack.ask(dataset_id)
    lose(StepKind.TRAIN, redis_url)
    stack.start("worker-gpu")

    child = pid_of(wait_for_the_middle_of(StepKind.PERTURB))
    stack.pause("worker-gpu")  # nor does it see that its child dies
    os.kill(child, signal.SIGKILL)
    lose(StepKind.PERTURB, redis_url)
    stack.resume("worker-gpu")

    lose(StepKind.ENCODE, redis_url)  # who does that goes on with `package` without a message
    stack.stop("worker-gpu")
    stack.start("worker-cpu")
    lose(StepKind.EVALUATE, redis_url)
    stack.start("worker-gpu")
    assert finished(stack, protection_id) == undisturbed


def lose(kind: StepKind, redis_url: str) -> None:
    """Flush Redis while a message for a step of this kind lies there; wait until it is missed.

    Any message in its queue has a worker look for it.
    """
    wait_for(lambda: bool(sent([kind])) and lying(kind), STEP_SECONDS, f"a message for {kind}")
    kinds = turns.kinds_of(QUEUES[kind])
    before = sent(kinds)
    with Redis.from_url(redis_url) as client:
        client.flushall()
    wait_for(lambda: sent(kinds) > before and lying(kind), 20, f"another message for {kind}")


def sent(kinds: list[StepKind]) -> list[str]:
    """When the ready steps of these kinds were sent, the latest first."""
    with reading() as session:
        query = select(Step.sent_at).where(Step.kind.in_(kinds), Step.state == StepState.READY)
        return sorted((str(at) for at in session.scalars(query) if at is not None), reverse=True)


def lying(kind: StepKind) -> bool:
    return queue.waiting(QUEUES[kind]) > 0
