"""A worker that is told to end gives its step back: that is no attempt, and the step waits."""

import pytest

from api.db import reading
from api.models import ProtectionState, Step, StepKind, StepState
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import tasks
from worker.lease import DrainFlag

pytestmark = pytest.mark.usefixtures("environment")


def test_what_is_broken_off_again_and_again_waits_ever_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a worker that is started and stopped in a loop."""
    protection_id = jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(8, 2))).id)
    jobs.work(until=StepKind.PERTURB)
    shard, *_ = jobs.ready()
    drain = DrainFlag()
    drain.set()
    monkeypatch.setattr(settings(), "drain_seconds", 0)
    monkeypatch.setattr(settings(), "backoff_seconds", 2)
    held = []
    with monkeypatch.context() as ending:
        ending.setattr(tasks, "draining", drain)
        for number in (1, 2, 3):
            jobs.run(shard.id)
            with reading() as session:
                step = session.get_one(Step, shard.id)
                assert (step.state, step.attempt, step.setbacks) == (StepState.READY, 0, number)
                assert step.error_code == "WORKER_DRAINED"
                assert step.not_before is not None
                assert step.ready_at is not None
                held.append((step.not_before - step.ready_at).total_seconds())
            jobs.wait()
    assert held == pytest.approx([2, 4, 8], abs=0.1)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
