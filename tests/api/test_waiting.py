"""A protection says which worker it has to wait for, and only while it has to."""

from uuid import UUID

import httpx2
import pytest

from api import progress, protections, steps
from api.db import reading, transaction
from api.models import Protection, Queue, StepKind
from api.scheduling import waiting
from tests.api.conftest import beat
from tests.api.lives import finish, must_claim, requested, train


def told(protection_id: UUID) -> str:
    with reading() as session:
        protection = session.get_one(Protection, protection_id)
        found = progress.of(session, [protection_id])[protection_id]
        return waiting.waits_for(session, protection, found) or ""


@pytest.fixture
def queued(owner_id: UUID, ready: UUID) -> UUID:
    return requested(owner_id, ready)


def test_before_there_is_a_plan_any_worker_of_the_queue_will_do(queued: UUID) -> None:
    silence = "Expected a worker that serves the gpu queue, got no sign of life"
    assert told(queued).startswith(silence)
    beat(Queue.CPU, "cpu")
    beat(Queue.GPU, "cuda", silent_seconds=61)
    assert told(queued).startswith(silence)
    beat(Queue.GPU, "cuda")
    assert told(queued) == ""


def test_a_plan_is_for_a_device(queued: UUID) -> None:
    beat(Queue.GPU, "cuda")
    train(queued)  # on a CPU
    assert "serves the gpu queue on cpu, as it was planned, got" in told(queued)
    beat(Queue.GPU, "cpu")
    assert told(queued) == ""


def test_the_other_queue_needs_no_device(queued: UUID) -> None:
    train(queued)
    for index in (0, 1):
        claim = must_claim(queued, StepKind.PERTURB, index)
        assert told(queued) == ""  # it runs
        finish(claim, {"sha256": "0" * 64})
    finish(must_claim(queued, StepKind.EVALUATE, steps.CLEAN), {"accuracy": 1.0})
    assert told(queued).startswith("Expected a worker that serves the cpu queue, got")
    beat(Queue.CPU, "cpu")
    assert told(queued) == ""


def test_what_is_over_waits_for_nothing(owner_id: UUID, queued: UUID) -> None:
    with transaction() as session:
        protections.cancel(session, owner_id, queued)
    assert told(queued) == ""


def test_it_is_shown(client: httpx2.Client, queued: UUID) -> None:
    assert client.get(f"/v1/protections/{queued}").json()["waits_for"] == told(queued) != ""
    beat(Queue.GPU, "cpu")
    assert client.get(f"/v1/protections/{queued}").json()["waits_for"] is None
