"""A perturbation that does not fit begins again by smaller batches, which is on record."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import torch
from torch import Tensor

from api import protections, storage
from api.db import reading, transaction
from api.models import Event, Protection, ProtectionState, Step, StepKind, StepState
from api.scheduling import leases
from api.settings import settings
from sep_core.protection import protect
from tests import pictures
from tests.worker import jobs
from worker import facts, siblings
from worker.steps import perturb

pytestmark = pytest.mark.usefixtures("environment")

ARCHIVE = pictures.zipped(pictures.class_folders(12, 2))
FITS = 4


def small_device(room: int, parts: Sequence[Tensor], labels: Tensor, *rest: Any) -> Iterator[Any]:
    """The real thing, on a device that has room for so many images at once."""
    if len(labels) > room:
        torch.empty(2**50, dtype=torch.uint8)
    yield from protect(parts, labels, *rest)


def plans(protection_id: UUID) -> list[int]:
    """Batch sizes, as events tell of them."""
    with reading() as session:
        told = session.query(Event).where(Event.protection_id == protection_id).order_by(Event.id)
        return [e.data["plan"]["batch_size"] for e in told if e.what == "protection.planned"]


def test_it_goes_through_by_halves_and_as_if_so_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = jobs.upload(ARCHIVE)
    with monkeypatch.context() as patch:
        patch.setattr(perturb, "protect", partial(small_device, FITS))
        made = jobs.ask(dataset.id)
        jobs.work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED, jobs.show(made).error
    batches = plans(made)
    assert batches == [batches[0] // 2**n for n in range(len(batches))]
    assert batches[-1] == FITS
    plan = jobs.show(made).plan
    assert plan is not None
    assert plan["batch_size"] == FITS

    again = jobs.ask(dataset.id)
    jobs.work(until=StepKind.PERTURB)
    shard, *_ = jobs.ready()
    with transaction() as session:
        session.get_one(Protection, again).plan = plan  # planned so from the first
    assert shard.index == 0
    jobs.work()
    archives = [
        storage.read(storage.protection_key(each, protections.ARCHIVE)) for each in (made, again)
    ]
    assert archives[0] == archives[1]


def test_one_image_that_does_not_fit_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturb, "protect", partial(small_device, 0))
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    for _ in range(20):
        jobs.work()
        jobs.wait()
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "OUT_OF_MEMORY")
    assert plans(made)[-1] == 1


def die(step_id: UUID) -> None:
    """A process of this worker is killed in the middle of a step, and another follows it."""
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    with transaction() as session:
        assert leases.claim(session, step_id, f"{facts.worker()}:{dead.pid}") is not None
    siblings.set_back_lost()
    jobs.wait()


def test_what_kills_its_process_again_and_again_goes_on_by_halves() -> None:
    """For a lack of memory Linux kills; nobody is told."""
    made = jobs.ask(jobs.upload(ARCHIVE).id, epochs=2)
    jobs.work(until=StepKind.PERTURB)
    batches = plans(made)
    for deaths in range(1, settings().max_attempts + 1):
        assert plans(made) == batches
        shard = jobs.ready()[0]
        assert (shard.kind, shard.attempt) == (StepKind.PERTURB, deaths - 1)
        die(shard.id)
    assert plans(made) == [*batches, batches[0] // 2]
    assert jobs.ready()[0].attempt == 0
    jobs.work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


def test_what_kills_its_process_whatever_the_batch_fails() -> None:
    """A decoder that crashes, say: every plan throws away what was perturbed by the one before."""
    made = jobs.ask(jobs.upload(ARCHIVE).id, epochs=2)
    jobs.work(until=StepKind.PERTURB)
    batches = plans(made)
    assert batches[0] >= 2 ** (siblings.MAX_HALVINGS + 1)
    for _ in range((siblings.MAX_HALVINGS + 1) * settings().max_attempts):
        assert jobs.show(made).state is ProtectionState.RUNNING
        die(jobs.ready()[0].id)
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "PROCESS_DIED")
    assert plans(made) == [batches[0] // 2**halvings for halvings in (0, 1, 2)]


def test_what_kills_its_process_by_single_images_fails() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id, epochs=2)
    jobs.work(until=StepKind.PERTURB)
    with transaction() as session:
        row = session.get_one(Protection, made)
        assert row.plan is not None
        row.plan = row.plan | {"batch_size": 1}
    for _ in range(settings().max_attempts):
        die(jobs.ready()[0].id)
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "PROCESS_DIED")


def test_another_s_shard_of_the_old_plan_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id, batch_size=16)
    jobs.work(until=StepKind.PERTURB)
    with transaction() as session:
        row = session.get_one(Protection, made)
        assert row.plan is not None
        row.plan = row.plan | {"batch_size": 8, "shard_batches": 1}
        steps_before = session.query(Step).where(Step.kind == StepKind.PERTURB).all()
        for index in range(len(steps_before), 4):
            session.add(
                Step(
                    protection_id=made,
                    kind=StepKind.PERTURB,
                    index=index,
                    state=StepState.READY,
                    created_at=row.created_at,
                )
            )
    first, second = jobs.ready()[:2]
    with transaction() as session:
        other = leases.claim(session, second.id, "another/0:1")
    assert other is not None
    monkeypatch.setattr(perturb, "protect", partial(small_device, FITS))
    jobs.run(first.id)
    assert plans(made)[-1] == FITS
    with transaction() as session:
        assert leases.report(session, other, 1, 2) is leases.Word.LOST
    jobs.work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


def test_a_cancel_is_heard_and_nothing_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=StepKind.PERTURB)

    def cancelled(*parts: Any) -> Iterator[Any]:
        with transaction() as session:
            protections.cancel(session, jobs.owner(), made)
        yield from small_device(0, *parts)

    monkeypatch.setattr(perturb, "protect", cancelled)
    jobs.work()
    assert jobs.show(made).state is ProtectionState.CANCELLED
    assert len(plans(made)) == 1
    assert made not in storage.idle_owners("protections", -1)
