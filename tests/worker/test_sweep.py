"""What was lost is found: workers, messages, blobs without a row."""

import subprocess
import sys
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ColumnElement, select, update

from api import datasets, protections, storage
from api.db import now, reading, transaction
from api.errors import AppError
from api.models import (
    ACTIVE,
    Dataset,
    DatasetState,
    Event,
    Protection,
    ProtectionState,
    Step,
)
from api.scheduling import leases, locks
from api.scheduling.leases import Claim
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import facts, siblings, sweep

pytestmark = pytest.mark.usefixtures("environment")

ARCHIVE = pictures.zipped(pictures.class_folders(3))


def removals(of: ColumnElement[bool]) -> list[object]:
    """Why blobs were removed, as events tell."""
    with reading() as session:
        told = session.scalars(select(Event).where(of, Event.what.like("%.blobs_removed")))
        return [event.data["why"] for event in told]


def lose(step_id: UUID) -> Claim:
    """Claim a step as a worker that then dies."""
    with transaction() as session:
        session.get_one(Step, step_id).not_before = None
        claim = leases.claim(session, step_id, "lost:1")
    assert claim is not None
    with transaction() as session:
        past = now(session) - timedelta(seconds=1)
        session.execute(update(Step).where(Step.id == step_id).values(lease_expires_at=past))
    return claim


def test_a_lost_step_is_ready_again_and_its_old_worker_writes_nothing() -> None:
    protection_id = jobs.ask(jobs.upload(ARCHIVE).id)
    (train,) = jobs.ready()
    claim = lose(train.id)
    sweep.free_lost()
    (again,) = jobs.ready()
    assert again.id == train.id
    assert again.sent_at is None
    with transaction() as session:
        assert not leases.renew(session, claim)
        assert leases.report(session, claim, 1, 2) is leases.Word.LOST
    jobs.wait()
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED


def test_a_live_step_is_left_alone() -> None:
    jobs.ask(jobs.upload(ARCHIVE).id)
    (train,) = jobs.ready()
    with transaction() as session:
        claim = leases.claim(session, train.id, "alive:1")
    assert claim is not None
    sweep.free_lost()
    assert jobs.ready() == []
    with transaction() as session:
        assert leases.renew(session, claim)


def test_a_step_lost_for_too_long_fails_with_a_reason_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protection_id = jobs.ask(jobs.upload(ARCHIVE).id)
    (train,) = jobs.ready()
    storage.write(storage.protection_key(protection_id, "checkpoints/000.pt"), b"half a training")
    for _ in range(settings().max_attempts + 1):
        lose(train.id)
        sweep.free_lost()
    assert jobs.show(protection_id).state in ACTIVE
    lose(train.id)
    monkeypatch.setattr(settings(), "give_up_seconds", 0)
    sweep.free_lost()
    protection = jobs.show(protection_id)
    assert protection.state is ProtectionState.FAILED
    assert protection.error_code == "WORKER_LOST"
    assert "lost:1 was lost in the middle of train. It is setback 5 in" in str(protection.error)
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    sweep.collect()
    assert storage.idle_owners("protections", 0) == {protection_id}  # it may be tried again
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 86_400)
    monkeypatch.setattr(settings(), "failed_keep_seconds", 0)
    for _ in range(2):
        sweep.collect()
    assert storage.idle_owners("protections", -1) == set()
    assert removals(Event.protection_id == protection_id) == ["It failed, and was kept for 0 days."]
    with pytest.raises(AppError) as refused, transaction() as session:
        protections.retry(session, jobs.owner(), protection_id)
    assert refused.value.code == "RETRY_TOO_LATE"


def test_an_upload_whose_workers_are_lost_for_too_long_is_kept_to_be_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    dataset_id, who = lost_upload(monkeypatch)
    monkeypatch.setattr(settings(), "give_up_seconds", 86_400)
    sweep.collect()
    with transaction() as session:
        dataset = datasets.retry(session, who, dataset_id)
    assert (dataset.state, dataset.error_code) == (DatasetState.INGESTING, None)
    jobs.work()
    with transaction() as session:
        assert datasets.get(session, who, dataset_id).state is DatasetState.READY
    with pytest.raises(AppError) as refused, transaction() as session:
        datasets.retry(session, who, dataset_id)
    assert refused.value.code == "DATASET_NOT_RETRIABLE"


def test_it_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    dataset_id, who = lost_upload(monkeypatch)
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 86_400)
    monkeypatch.setattr(settings(), "failed_keep_seconds", 0)
    for _ in range(2):
        sweep.collect()
    assert storage.idle_owners("datasets", -1) == set()
    assert removals(Event.dataset_id == dataset_id) == ["It failed, and was kept for 0 days."]
    with pytest.raises(AppError) as refused, transaction() as session:
        datasets.retry(session, who, dataset_id)
    assert refused.value.code == "RETRY_TOO_LATE"


def lost_upload(monkeypatch: pytest.MonkeyPatch) -> tuple[UUID, UUID]:
    dataset_id = uuid4()
    key = storage.dataset_key(dataset_id, "source.zip")
    digest = storage.write(key, ARCHIVE)
    who = jobs.owner()
    with transaction() as session:
        datasets.create(session, who, dataset_id, "killer", digest, len(ARCHIVE))
    (ingest,) = jobs.ready()
    lose(ingest.id)
    monkeypatch.setattr(settings(), "give_up_seconds", 0)
    sweep.free_lost()
    with transaction() as session:
        dataset = datasets.get(session, who, dataset_id)
    assert dataset.state is DatasetState.REJECTED
    assert dataset.error_code == "WORKER_LOST"
    assert storage.idle_owners("datasets", 0) == {dataset_id}
    return dataset_id, who


def test_a_dead_sibling_s_step_is_given_back_at_once_and_counts() -> None:
    """Not that of another worker, nor of a process that lives."""
    dataset_id = jobs.upload(ARCHIVE).id
    for _ in range(3):
        jobs.ask(dataset_id)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    steps = jobs.ready()
    owners = [f"{facts.worker()}:{dead.pid}", f"another/0123abcd:{dead.pid}", facts.name()]
    with transaction() as session:
        for step, owner in zip(steps, owners, strict=True):
            assert leases.claim(session, step.id, owner) is not None
    siblings.set_back_lost()
    (given_back,) = jobs.ready()
    assert given_back.id == steps[0].id
    assert (given_back.attempt, given_back.error_code) == (1, "PROCESS_DIED")


def test_a_lost_worker_of_a_cancelled_protection_ends_it() -> None:
    protection_id = jobs.ask(jobs.upload(ARCHIVE).id)
    (train,) = jobs.ready()
    lose(train.id)
    with transaction() as session:
        protections.cancel(session, jobs.owner(), protection_id)
    assert jobs.show(protection_id).state is ProtectionState.QUEUED
    sweep.free_lost()
    assert jobs.show(protection_id).state is ProtectionState.CANCELLED
    assert jobs.ready() == []  # it is in the way of nobody's claims
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.CANCELLED


def test_blobs_without_a_row_are_collected_after_the_grace_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protection, _ = jobs.protect(ARCHIVE)
    orphan = uuid4()
    storage.write(storage.dataset_key(orphan, "source.zip"), b"an upload that broke off")
    storage.write(storage.protection_key(orphan, "shards/00000.bin"), b"a zombie's last words")
    kept = storage.idle_owners("datasets", 0) | storage.idle_owners("protections", 0)
    sweep.collect()
    assert storage.idle_owners("datasets", 0) | storage.idle_owners("protections", 0) == kept
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    sweep.collect()
    assert storage.idle_owners("datasets", 0) == {protection.dataset_id}
    assert storage.idle_owners("protections", 0) == {protection.id}


def test_pictures_of_originals_go_though_who_deleted_the_data_set_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protection, archive = jobs.protect(ARCHIVE)
    pictures_of = [
        storage.protection_key(protection.id, name)
        for name in (protections.PREVIEW, protections.WORST)
    ]
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    sweep.collect()
    assert all(storage.size_if_there(key) for key in pictures_of)
    with transaction() as session:  # and here the API is killed
        datasets.delete(session, protection.owner_id, dataset_of(protection))
    sweep.collect()
    assert [storage.size_if_there(key) for key in pictures_of] == [None, None]
    assert storage.read(storage.protection_key(protection.id, protections.ARCHIVE)) == archive


def test_a_step_that_can_not_be_freed_keeps_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is broken: that of a data set that is ready."""
    protection_id = jobs.ask(jobs.upload(ARCHIVE).id)
    who, dataset_id = jobs.owner(), uuid4()
    with transaction() as session:
        datasets.create(session, who, dataset_id, "broken", "0", 1)
    for step in jobs.ready():
        lose(step.id)
    jobs.ask(dataset_of(jobs.show(protection_id)))
    with transaction() as session:
        session.execute(update(Dataset).values(state=DatasetState.READY))
    monkeypatch.setattr(settings(), "give_up_seconds", 0)
    sweep.sweep()
    assert jobs.show(protection_id).error_code == "WORKER_LOST"
    assert any("was not freed" in message for message in caplog.messages)
    (waiting,) = jobs.ready()
    assert waiting.sent_at is not None  # the rest of the round was done


def test_one_of_many_sweeps() -> None:
    with transaction() as session:
        assert locks.hold(session, locks.SWEEP, "another", 60)
    assert not sweep.may_sweep()
    with transaction() as session:
        locks.release(session, locks.SWEEP, "another")
    assert sweep.may_sweep()


def dataset_of(protection: Protection) -> UUID:
    assert protection.dataset_id is not None
    return protection.dataset_id
