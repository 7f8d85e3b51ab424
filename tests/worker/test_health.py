"""A worker is alive as long as its heartbeat is fresh, whatever its processes say."""

import pytest

from api.models import WORKER_FRESH_SECONDS, Queue
from tests.api.conftest import beat
from worker import facts, health

pytestmark = pytest.mark.usefixtures("environment")


def test_without_a_heartbeat_it_is_not() -> None:
    assert health.main() == 1


def test_with_its_own_fresh_one_it_is() -> None:
    beat(name=facts.name())
    assert health.main() == 0


def test_others_do_not_speak_for_it() -> None:
    beat(name="another/0123abcd:1")
    beat(Queue.CPU, name=f"{facts.name()}0")
    beat(name=f"{facts.name()}1", silent_seconds=WORKER_FRESH_SECONDS + 1)
    assert health.main() == 1
