"""What is sent when: once, again if it was lost, never if nobody would claim it."""

import time
from uuid import UUID

import pytest
from redis import Redis

from api import endings, outbox, protections, queue
from api.db import transaction
from api.models import Queue, StepKind
from api.settings import settings
from tests import servers
from tests.api.conftest import (
    Change,
    finish,
    freeze,
    ingested,
    must_claim,
    queued,
    requested,
    step,
    train,
)


def flush() -> None:
    with Redis.from_url(settings().broker) as broker:
        broker.flushall()


@pytest.fixture
def asked(owner_id: UUID, ready: UUID) -> UUID:
    return requested(owner_id, ready)


def cancel(owner_id: UUID, protection_id: UUID) -> None:
    with transaction() as session:
        protections.cancel(session, owner_id, protection_id)


def test_what_is_ready_is_sent_once(asked: UUID) -> None:
    assert step(asked, StepKind.TRAIN).sent_at is None
    outbox.send_ready()
    assert queued(Queue.GPU) == 1
    assert step(asked, StepKind.TRAIN).sent_at is not None
    assert step(asked, StepKind.PACKAGE).sent_at is None  # it waits for others
    outbox.send_ready()
    assert queued(Queue.GPU) == 1


def test_each_kind_goes_to_its_queue(owner_id: UUID, asked: UUID) -> None:
    flush()
    train(asked)
    outbox.send_ready()
    assert (queued(Queue.GPU), queued(Queue.CPU)) == (3, 0)  # two shards, and the originals
    for index in (0, 1):
        finish(must_claim(asked, StepKind.PERTURB, index))
    outbox.send_ready()
    assert (queued(Queue.GPU), queued(Queue.CPU)) == (3, 1)
    assert owner_id


def test_what_is_given_back_is_sent_again(asked: UUID) -> None:
    claim = must_claim(asked, StepKind.TRAIN)
    freeze(claim)
    outbox.send_ready()
    sent = queued(Queue.GPU)
    endings.end(claim, endings.stop)
    outbox.send_ready()
    assert queued(Queue.GPU) == sent + 1


def test_what_was_lost_is_sent_again(asked: UUID, change: Change) -> None:
    change(RESEND_SECONDS=0.2)
    outbox.send_ready()
    time.sleep(0.3)
    outbox.send_lost()
    assert queued(Queue.GPU) == 1  # its message lies in the queue: it waits its turn
    flush()
    assert queued(Queue.GPU) == 0
    outbox.send_ready()
    assert queued(Queue.GPU) == 0
    outbox.send_lost()
    assert queued(Queue.GPU) == 1
    flush()
    change(RESEND_SECONDS=60)
    outbox.send_lost()
    assert queued(Queue.GPU) == 0  # it has just been sent
    assert step(asked, StepKind.TRAIN).sent_at is not None


def test_a_queue_that_is_busy_does_not_keep_another_from_being_sent_again(
    owner_id: UUID, asked: UUID, change: Change
) -> None:
    change(RESEND_SECONDS=0)
    outbox.send_ready()
    flush()
    queue.send("somebody", Queue.CPU)
    outbox.send_lost()
    assert (queued(Queue.GPU), queued(Queue.CPU)) == (1, 1)
    assert owner_id
    assert asked


def test_nobody_knocks_for_what_is_over(owner_id: UUID, ready: UUID, change: Change) -> None:
    """Or the sweep would knock for every protection that was ever cancelled, for ever."""
    change(RESEND_SECONDS=0)
    never_sent, sent = requested(owner_id, ready), requested(owner_id, ready)
    cancel(owner_id, never_sent)
    outbox.send_ready()
    assert queued(Queue.GPU) == 1
    cancel(owner_id, sent)
    flush()
    outbox.send_ready()
    outbox.send_lost()
    assert queued(Queue.GPU) == 0


def test_what_could_not_be_sent_stays_unsent(owner_id: UUID, change: Change) -> None:
    broker = settings().broker
    dataset_ids = [ingested(owner_id) for _ in range(3)]
    change(REDIS_URL=f"redis://127.0.0.1:{servers.free_port()}/0")
    asked = [requested(owner_id, dataset_id) for dataset_id in dataset_ids]
    began = time.monotonic()
    outbox.send_ready()
    outbox.send_lost()
    assert time.monotonic() - began < 5
    assert all(step(each, StepKind.TRAIN).sent_at is None for each in asked)
    change(REDIS_URL=broker)
    outbox.send_ready()
    assert queued(Queue.GPU) == 3
