"""A worker that messages do not come to any more is seen to be gone, and ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from sqlalchemy import select, update

from api import datasets, queue, storage
from api.db import reading, transaction
from api.models import Dataset, Owner, Protection, Queue, Worker
from api.scheduling import leases, outbox
from api.settings import settings
from tests import pictures
from tests.api.conftest import beat
from tests.servers import wait_for
from tests.worker import jobs
from worker import facts, hearing
from worker.hearing import Ear

pytestmark = pytest.mark.usefixtures("environment")

GPU = "GPU-of-ours"
ARCHIVE = pictures.zipped(pictures.class_folders(3))
IMPATIENT = {"SEPGATE_WORKER_QUEUE": "cpu", "SEPGATE_DRAIN_SECONDS": "1"}
PROGRAM = """
import sys
from celery.__main__ import main
from api import workers
from api.models import Queue
from worker import facts, hearing, tasks
facts.HEARTBEAT_SECONDS, hearing.DEAF_SECONDS, tasks.DEAF_END_SECONDS = 0.3, 1, 5
sys.argv = workers.command(Queue.CPU)
main()
"""


def wait_long(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hearing, "DEAF_SECONDS", 0.2)
    time.sleep(0.3)


def deaf(ear: Ear, device: str = "cpu") -> bool:
    """By as many beats as it takes."""
    return [ear.is_deaf(Queue.GPU, device, facts.name(), GPU) for _ in range(hearing.BEATS)][-1]


@pytest.fixture
def ear() -> Ear:
    """Of this process; a training waits for it, and its message lies in the queue."""
    beat(device="cpu", name=facts.name(), gpu=GPU)
    jobs.ask(jobs.upload(ARCHIVE).id)
    outbox.send_ready()
    made = Ear()
    made.listen()
    return made


def test_who_is_called_for_long_and_hears_nothing_is_deaf(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not deaf(ear)  # it was called just now
    wait_long(monkeypatch)
    for _ in range(hearing.BEATS - 1):
        assert not ear.is_deaf(Queue.GPU, "cpu", facts.name(), GPU)
    assert ear.is_deaf(Queue.GPU, "cpu", facts.name(), GPU)
    assert not Ear().is_deaf(Queue.GPU, "cpu", facts.name(), GPU)
    with ear.heard():
        assert not deaf(ear)
    assert not deaf(ear)  # it has just heard something


def forget() -> None:
    with Redis.from_url(settings().broker) as broker:
        broker.flushall()


def plan_for_a_gpu() -> None:
    with transaction() as session:
        session.execute(update(Protection).values(plan={"device": "cuda"}))


def limit() -> None:
    with transaction() as session:
        session.execute(update(Owner).values(max_running=0))


def lend() -> None:
    """To a step of the same host that runs."""
    with reading() as session:
        dataset_id = session.scalars(select(Dataset.id)).one()
    jobs.ask(dataset_id)
    with transaction() as session:
        claim = leases.claim(session, jobs.ready()[1].id, facts.name() + "1")
        assert claim is not None
        session.execute(update(Worker).values(lent_to=claim.step_id))


@pytest.mark.parametrize("idle_for", [forget, plan_for_a_gpu, limit, lend])
def test_who_has_nothing_to_do_is_not(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, idle_for: Callable[[], None]
) -> None:
    idle_for()
    wait_long(monkeypatch)
    assert not deaf(ear)


def test_a_queue_that_is_away_is_no_fault_of_the_worker_s(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_long(monkeypatch)

    def away(_: Queue) -> int:
        raise OperationalError

    with monkeypatch.context() as patch:
        patch.setattr(queue, "waiting", away)
        assert not deaf(ear)
    assert deaf(ear)


def registered() -> str | None:
    with reading() as session:
        return session.scalar(select(Worker.name))


def resent() -> int:
    """As the sweep does: who hangs may have been sent the first message all the same."""
    outbox.send_lost()
    return queue.waiting(Queue.CPU)


def hang(worker: "subprocess.Popen[bytes]") -> None:
    """Nor does it take signals."""
    worker.send_signal(signal.SIGSTOP)


def stop_consuming(_: "subprocess.Popen[bytes]") -> None:
    queue.app.control.cancel_consumer("cpu")
    time.sleep(1)


@pytest.mark.parametrize(
    ("silence", "status"), [(hang, -signal.SIGKILL), (stop_consuming, 0)], ids=["hung", "silent"]
)
def test_a_worker_that_takes_no_messages_ends(
    environment: dict[str, str],
    tmp_path: Path,
    silence: Callable[["subprocess.Popen[bytes]"], None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings(), "resend_seconds", 0)
    log = tmp_path / "worker.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | environment | IMPATIENT,
            stdout=output,
            stderr=output,
        ) as worker,
    ):
        try:
            wait_for(lambda: registered() is not None, 30, "the worker")
            wait_for(lambda: b" ready." in log.read_bytes(), 30, "its consumer")
            silence(worker)
            storage.write(storage.dataset_key(made := uuid4(), datasets.SOURCE), ARCHIVE)
            who = jobs.owner()
            with transaction() as session:
                datasets.create(session, who, made, "test", "0" * 64, len(ARCHIVE))
            outbox.send_ready()
            wait_for(lambda: resent() > 0, 10, "a message that lies there")
            assert worker.wait(30) == status
        finally:
            worker.kill()
    assert b"there are steps and messages, and none comes to" in log.read_bytes()
