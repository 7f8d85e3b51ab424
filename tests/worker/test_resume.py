"""When the state of a training is kept: now and then, and once more when the worker is to end."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from api import storage
from api.db import transaction
from api.models import Step
from api.scheduling import leases
from tests import pictures
from tests.worker import jobs
from tests.worker.test_failures import out_of_reach
from worker import resume
from worker.data import training_key
from worker.lease import DrainFlag, WorkerDraining
from worker.resume import REFUSED_SECONDS, SAVE_SECONDS, Keeper

pytestmark = pytest.mark.usefixtures("environment")


class Clock:
    """Seconds, as the test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> DrainFlag:
    flag = DrainFlag()
    monkeypatch.setattr(resume, "draining", flag)
    return flag


@pytest.fixture
def claim() -> leases.Claim:
    jobs.ask(jobs.upload(pictures.zipped(pictures.class_folders(4, 2))).id)
    return jobs.begin()


def keeper_of(claim: leases.Claim) -> tuple[Keeper, str]:
    assert claim.protection_id is not None
    key = training_key(claim.protection_id)
    return Keeper(claim, key), key


def test_a_state_is_kept_once_a_minute_from_the_first_batch_on(
    clock: Clock, draining: DrainFlag, claim: leases.Claim
) -> None:
    assert not draining.is_set()
    keeper, key = keeper_of(claim)
    clock.now += 10 * SAVE_SECONDS  # decoding, say
    assert not keeper.is_due()
    clock.now += SAVE_SECONDS - 1
    assert not keeper.is_due()
    clock.now += 1
    assert keeper.is_due()
    keeper.save({"training": 1}, 7)
    assert resume.load(key) == {"training": 1, "done": 7}
    with transaction() as session:
        assert session.get_one(Step, claim.step_id).progress_kept == 7
    clock.now += SAVE_SECONDS - 1
    assert not keeper.is_due()
    clock.now += 1
    assert keeper.is_due()


def test_one_that_is_to_end_keeps_a_state_as_soon_as_storage_takes_it(
    clock: Clock, draining: DrainFlag, claim: leases.Claim
) -> None:
    keeper, key = keeper_of(claim)
    assert not keeper.is_due()
    draining.set()
    assert keeper.is_due()
    with out_of_reach(Path.touch):
        keeper.save({"training": 1}, 7)
    assert storage.read_if_there(key) is None
    assert not keeper.is_due()
    clock.now += REFUSED_SECONDS
    assert keeper.is_due()
    with pytest.raises(WorkerDraining):
        keeper.save({"training": 2}, 8)
    assert resume.load(key) == {"training": 2, "done": 8}
