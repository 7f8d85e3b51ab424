"""A worker is alive as long as its heartbeat is fresh, whatever its processes say."""

from datetime import timedelta

import pytest

from api.db import now, transaction
from api.models import WORKER_FRESH_SECONDS, Queue, Worker
from worker import facts, health

pytestmark = pytest.mark.usefixtures("environment")


def beat(name: str, queue: Queue = Queue.GPU, seconds_ago: float = 0) -> None:
    with transaction() as session:
        at = now(session) - timedelta(seconds=seconds_ago)
        session.add(
            Worker(
                name=name,
                queue=queue,
                device="cpu",
                device_name="",
                memory_bytes=1,
                bfloat16=False,
                threads=1,
                versions={},
                started_at=at,
                heartbeat_at=at,
            )
        )


def test_without_a_heartbeat_it_is_not() -> None:
    assert health.main() == 1


def test_with_its_own_fresh_one_it_is() -> None:
    beat(facts.name())
    assert health.main() == 0


def test_others_do_not_speak_for_it() -> None:
    beat("another/0123abcd:1")
    beat(f"{facts.name()}0", Queue.CPU)
    beat(f"{facts.name()}1", seconds_ago=WORKER_FRESH_SECONDS + 1)
    assert health.main() == 1
