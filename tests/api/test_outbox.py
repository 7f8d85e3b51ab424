"""What is sent when: once, again if it was lost, never if nobody would claim it."""

import time
from typing import Never
from uuid import UUID

import httpx2
import pytest
from redis import Redis
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from api import protections, queue
from api.db import transaction
from api.models import Queue, Step, StepKind, StepState
from api.scheduling import endings, outbox
from api.settings import settings
from tests import servers
from tests.api.conftest import Change, beat, protected, queued
from tests.api.lives import claimed, finish, freeze, ingested, must_claim, requested, step, train


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
    assert (queued(Queue.GPU), queued(Queue.CPU)) == (3, 2)  # each shard is encoded by itself
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


def test_as_many_are_sent_again_as_workers_are_there(asked: UUID, change: Change) -> None:
    """Steps that wait for a limit would else be found and left by them all, again and again."""
    train(asked)
    change(RESEND_SECONDS=0)
    outbox.send_ready()
    for alive, silent_seconds in ((1, 3600), (1, 0), (2, 1)):
        beat(silent_seconds=silent_seconds)
        flush()
        outbox.send_lost()
        assert queued(Queue.GPU) == alive


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


def test_who_is_woken_finds_the_row_free(asked: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would pass over it, and idle until that is sent again."""
    claims, send = [], queue.send

    def sent_and_heard(step_id: UUID, name: Queue) -> bool:
        was_sent = send(step_id, name)
        claims.append(claimed(step_id))
        return was_sent

    monkeypatch.setattr(queue, "send", sent_and_heard)
    outbox.send_ready()
    assert len(claims) == 1
    assert claims[0] is not None
    assert step(asked, StepKind.TRAIN).sent_at is not None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_row_that_another_holds_is_not_waited_for(asked: UUID) -> None:
    """Who locks many does so in an order of its own: the two could wait for each other."""
    train(asked)
    shard = select(Step).where(Step.kind == StepKind.PERTURB, Step.index == 0)
    before = queued(Queue.GPU)
    with transaction() as session:
        session.scalars(shard.with_for_update()).one()
        outbox.send_ready()
    sent = [step(asked, StepKind.PERTURB, index).sent_at is not None for index in (0, 1)]
    assert sent == [False, True]
    assert queued(Queue.GPU) == before + 2  # the other shard, and the originals
    outbox.send_ready()
    assert queued(Queue.GPU) == before + 3


def test_what_was_made_is_answered_though_it_can_t_be_sent(
    client: httpx2.Client, ready_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Never:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "reading", away)
        made = protected(client, ready_dataset)  # 202
    assert step(UUID(made["id"]), StepKind.TRAIN).state is StepState.READY
    before = queued(Queue.GPU)
    outbox.send_ready()
    assert queued(Queue.GPU) == before + 1
