"""What a step has stored is made again where it is lost, to the same bytes."""

from functools import lru_cache
from uuid import UUID

import pytest
from sqlalchemy import select, update

from api import adoption, protections, steps, storage
from api.db import reading, transaction
from api.models import Event, ProtectionState, Step, StepKind, StepState
from api.plans import workload
from api.scheduling.moves import MADE_AGAIN
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import resident
from worker.data import checkpoint_key, patterns_key

pytestmark = pytest.mark.usefixtures("environment")

TRAIN, PERTURB, ENCODE = StepKind.TRAIN, StepKind.PERTURB, StepKind.ENCODE
PACKAGE, EVALUATE = StepKind.PACKAGE, StepKind.EVALUATE
ARCHIVE = pictures.zipped(pictures.class_folders(7, 2))
IN_A_ROW = "This was attempt 3 in a row that kept nothing."


@pytest.fixture(autouse=True)
def _in_parts(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001  before it
    """Every shard takes a batch of four."""
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 4})
    monkeypatch.setattr(settings(), "shard_seconds", 1e-6)
    adoption.adopt()


def work() -> None:
    """Until nothing is to be done any more, however often a step comes back."""
    while jobs.ready():
        jobs.wait()
        jobs.work()


@lru_cache
def whole() -> bytes:
    """What leaves where nothing is lost: the same every time."""
    return jobs.protect(ARCHIVE)[1]


def archive_of(protection_id: UUID) -> bytes:
    assert jobs.show(protection_id).error is None
    return storage.read(storage.protection_key(protection_id, protections.ARCHIVE))


def done(protection_id: UUID) -> list[tuple[str, int]]:
    """Every step that has ended well, in the order in which they did."""
    told = select(Event.data).where(Event.protection_id == protection_id)
    with reading() as session:
        found = session.scalars(told.where(Event.what == "step.done").order_by(Event.id)).all()
    return [(data["kind"], data["index"]) for data in found]


def again(protection_id: UUID) -> set[tuple[str, int]]:
    """Of those the steps that ended well twice, each of which an event says was taken back."""
    found = done(protection_id)
    told = select(Event.data).where(Event.protection_id == protection_id)
    with reading() as session:
        back = session.scalars(told.where(Event.what == "step.waiting")).all()
    twice = {name for name in found if found.count(name) == 2}
    assert len(found) == len(set(found)) + len(twice)
    assert sorted(twice) == sorted((data["kind"], data["index"]) for data in back)
    assert {(data["error_code"], data["error"]) for data in back} <= {("BLOB_MISSING", MADE_AGAIN)}
    return twice


def ready(kind: StepKind, index: int) -> UUID:
    return next(step.id for step in jobs.ready() if (step.kind, step.index) == (kind, index))


def harm(key: str, damaged: bool) -> None:
    content = storage.read(key)
    if damaged:
        storage.write(key, content[:-1] + bytes([content[-1] ^ 1]))
    else:
        storage.remove_one(key)


@pytest.mark.parametrize("damaged", [False, True], ids=["lost", "damaged"])
def test_what_is_lost_or_damaged_is_made_again(damaged: bool) -> None:
    """And nothing else is: neither what was made beside it nor the training of judges."""
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    harm(checkpoint_key(made, 1) if damaged else patterns_key(made), damaged)
    jobs.run(ready(PERTURB, 0))
    jobs.work(until=ENCODE)
    harm(jobs.shard(made, 2), damaged)
    jobs.run(ready(ENCODE, 2))
    jobs.work(until=PACKAGE)
    files = jobs.encoded(made, 1)
    harm(files.replace(".bin", ".npy") if damaged else files, damaged)
    work()
    assert archive_of(made) == whole()
    assert again(made) == {(TRAIN, 0), (PERTURB, 2), (PERTURB, 1), (ENCODE, 1)}
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


def test_files_that_are_damaged_are_made_again() -> None:
    """Of which the table beside them is whole."""
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PACKAGE)
    harm(jobs.encoded(made, 1), damaged=True)
    work()
    assert archive_of(made) == whole()
    assert again(made) == {(PERTURB, 1), (ENCODE, 1)}


def test_a_lost_archive_takes_all_that_it_was_made_of() -> None:
    """Shards and files are gone by then; the surrogate's checkpoints are not."""
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=EVALUATE)
    parts = {name for name in done(made) if name[0] in {PERTURB, ENCODE, PACKAGE}}
    storage.remove_one(storage.protection_key(made, protections.ARCHIVE))
    work()
    assert archive_of(made) == whole()
    assert again(made) == parts


def test_all_blobs_of_a_protection_may_be_lost_at_once() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PACKAGE)
    everything = set(done(made))
    storage.remove(storage.protection_key(made))
    work()
    assert archive_of(made) == whole()
    assert again(made) == everything


def test_what_others_are_about_to_miss_they_wait_for() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    first, *others = (step for step in jobs.ready() if step.kind is PERTURB)
    assert others
    storage.remove_one(checkpoint_key(made, 0))
    jobs.run(first.id)
    assert [step.kind for step in jobs.ready() if step.kind is not EVALUATE] == [TRAIN]
    (train, *_) = jobs.ready()
    assert (train.attempt, train.progress_kept, train.error) == (0, 0, MADE_AGAIN)
    work()
    with reading() as session:
        attempts = {
            step.index: step.attempt for step in steps.of(session, made) if step.kind is PERTURB
        }
    assert attempts == {step.index: 1 for step in (first, *others)}


@pytest.mark.parametrize("damaged", [False, True], ids=["lost", "damaged"])
def test_what_is_lost_every_time_is_named(damaged: bool) -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    key = checkpoint_key(made, 0)

    def lose(step: Step) -> None:
        if step.kind is PERTURB:
            storage.write(key, b"damaged") if damaged else storage.remove_one(key)

    while jobs.ready():
        jobs.wait()
        jobs.work(lose)
    failed = jobs.show(made)
    code = "BLOB_CHANGED" if damaged else "BLOB_MISSING"
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, code)
    assert key in str(failed.error)
    assert "xpected what an earlier step has stored, " in str(failed.error)
    assert str(failed.error).endswith(IN_A_ROW)
    assert done(made).count((TRAIN, 0)) == 1 + settings().max_attempts
    with transaction() as session:
        protections.retry(session, jobs.owner(), made)
    work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


def test_what_is_lost_by_one_after_the_other_is_named() -> None:
    """Each shard misses it once, and none is held back for what nobody makes again."""
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    for index in range(settings().max_attempts):
        storage.remove_one(checkpoint_key(made, 0))
        jobs.run(ready(PERTURB, index))
        jobs.work(until=PERTURB)
    storage.remove_one(checkpoint_key(made, 0))
    last = ready(PERTURB, settings().max_attempts)
    for _ in range(settings().max_attempts):
        assert jobs.show(made).state is ProtectionState.RUNNING
        jobs.wait()
        jobs.run(last)
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "BLOB_MISSING")


def remembered_otherwise(protection_id: UUID, what: str) -> None:
    """As if the training had found something else of that name: on another kind of GPU, say."""
    of_it = Step.protection_id == protection_id, Step.kind == TRAIN
    output = jobs.output(protection_id, TRAIN) | {what: {}}
    with transaction() as session:
        session.execute(update(Step).where(*of_it).values(output=output))


def test_what_comes_out_otherwise_and_was_used_fails() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    jobs.run(ready(PERTURB, 0))
    resident.forget()
    storage.remove_one(checkpoint_key(made, 0))
    remembered_otherwise(made, "held_out_seen")
    work()
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "BLOB_CHANGED")
    assert failed.error == steps.NOT_THE_SAME


def test_what_comes_out_otherwise_and_was_not_used_will_do() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    storage.remove_one(checkpoint_key(made, 0))
    remembered_otherwise(made, "held_out_seen")
    work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED
    assert again(made) == {(TRAIN, 0)}


def test_another_version_that_comes_to_the_same_is_no_other() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    jobs.run(ready(PERTURB, 0))
    resident.forget()
    storage.remove_one(checkpoint_key(made, 0))
    remembered_otherwise(made, "versions")
    work()
    assert archive_of(made) == whole()
    assert again(made) == {(TRAIN, 0)}


def test_an_archive_that_is_lost_behind_the_first_evaluation_is_made_again() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id, evaluation={"seeds": 2})
    jobs.work(until=EVALUATE)
    jobs.run(ready(EVALUATE, 1))
    storage.remove_one(storage.protection_key(made, protections.ARCHIVE))
    work()
    assert archive_of(made) == whole()
    assert (PACKAGE, 0) in again(made)


def test_three_that_are_damaged_are_made_again_one_after_the_other() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PACKAGE)
    for index in range(settings().max_attempts):
        harm(jobs.encoded(made, index), damaged=True)
    work()
    assert archive_of(made) == whole()


def test_how_long_that_takes_is_no_setback() -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=PERTURB)
    storage.remove_one(checkpoint_key(made, 0))
    jobs.run(ready(PERTURB, 0))
    with reading() as session:
        (first,) = (s for s in steps.of(session, made) if (s.kind, s.index) == (PERTURB, 0))
    assert (first.state, first.setbacks, first.setback_at) == (StepState.WAITING, 0, None)
