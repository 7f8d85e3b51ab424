"""How what goes wrong ends: a disk or a storage waits for the operator, a defect of ours fails."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from uuid import UUID

import pytest

from api import adoption, archive, datasets, steps, storage
from api.db import reading, transaction
from api.models import Dataset, DatasetState, ProtectionState, Step, StepKind, StepState
from api.scheduling import leases
from api.settings import settings
from sep_core import surrogate
from tests import pictures
from tests.worker import jobs
from worker import collection, facts, metrics
from worker.data import checkpoint_key, load_index
from worker.lease import store
from worker.steps import evaluate, perturb

pytestmark = pytest.mark.usefixtures("environment")

ARCHIVE = pictures.zipped(pictures.class_folders(4, 2, (24, 30)))
IN_A_ROW = "This was attempt 3 in a row that kept nothing."
DEFECT = f"A defect of sepgate (ZeroDivisionError); the worker's log says more. {IN_A_ROW}"


def defect(*_: Any, **__: Any) -> NoReturn:
    raise ZeroDivisionError("what only the log is to tell")


def part(protection_id: UUID, kind: StepKind) -> Step:
    """The first step of a kind."""
    with reading() as session:
        return next(s for s in steps.of(session, protection_id) if s.kind is kind)


def try_again() -> None:
    jobs.wait()
    jobs.work()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for four kilobytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    # Lazily: the log's records of this test hold an index that is mapped from there.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_temporary_folder_is_tried_again_and_then_named(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = jobs.upload(ARCHIVE)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(small_disk))
        waits = jobs.ask(dataset.id)
        jobs.work()
        step, *_ = jobs.ready()
        assert (step.attempt, step.setbacks, step.error_code) == (0, 1, "STORAGE_FULL")
        assert str(small_disk) in str(step.error)
    for kind in (StepKind.ENCODE, StepKind.PACKAGE):
        jobs.wait()
        jobs.work(until=kind)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(small_disk))
            jobs.work()
        assert part(waits, kind).error_code == "STORAGE_FULL"
    jobs.wait()
    jobs.work()
    assert jobs.show(waits).state is ProtectionState.SUCCEEDED

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    monkeypatch.setattr(settings(), "give_up_seconds", 0)
    fails = jobs.ask(dataset.id, seed="1" * 32)
    jobs.work()
    failed = jobs.show(fails)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "STORAGE_FULL")
    assert str(small_disk) in str(failed.error)
    assert waits in storage.idle_owners("protections", -1)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_no_folder_for_temporary_files_is_a_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process finds it that has none yet: Python says then that there is no such file."""
    (small_disk / "filler").write_bytes(bytes(4096))
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    for number in range(1, settings().max_attempts + 2):
        jobs.wait()
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", None)
            patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(small_disk)])
            jobs.work()
        step = part(made, StepKind.TRAIN)
        assert (step.attempt, step.setbacks, step.error_code) == (0, number, "STORAGE_FULL")
    jobs.wait()
    jobs.work()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


@pytest.mark.parametrize(
    ("kind", "where", "name"),
    [
        (StepKind.TRAIN, surrogate, "train"),
        (StepKind.PERTURB, perturb, "protect"),
        (StepKind.ENCODE, metrics, "compare"),
        (StepKind.PACKAGE, metrics, "summarise"),
        (StepKind.EVALUATE, evaluate, "appropriate"),
    ],
)
def test_a_defect_of_ours_is_tried_again_and_fails_the_protection(
    kind: StepKind,
    where: ModuleType,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=kind)
    monkeypatch.setattr(where, name, defect)
    for number in range(1, settings().max_attempts):
        try_again()
        waits = part(made, kind)
        assert (waits.state, waits.attempt) == (StepState.READY, number)
        assert waits.error_code == "INTERNAL"
        assert jobs.show(made).state is ProtectionState.RUNNING
    try_again()
    failed = jobs.show(made)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "INTERNAL")
    assert failed.error == DEFECT
    assert part(made, kind).attempt == settings().max_attempts == 3
    assert "what only the log is to tell" in caplog.text


def test_an_upload_that_met_a_defect_of_ours_may_be_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown() -> Dataset:
        with reading() as session:
            return session.get_one(Dataset, uploaded.id)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "ingest", defect)
        uploaded = jobs.upload(ARCHIVE)
        for _ in range(1, settings().max_attempts):
            assert shown().state is DatasetState.INGESTING
            try_again()
    assert (shown().state, shown().error_code) == (DatasetState.REJECTED, "INTERNAL")
    assert shown().error == DEFECT
    with transaction() as session:
        datasets.retry(session, jobs.owner(), uploaded.id)
    jobs.work()
    assert shown().state is DatasetState.READY


def test_an_upload_that_is_gone_may_be_read_when_it_is_back() -> None:
    adoption.adopt()
    uploaded = jobs.upload(ARCHIVE)
    key = storage.dataset_key(uploaded.id, datasets.SOURCE)
    content = storage.read(key)
    with transaction() as session:
        dataset = session.get_one(Dataset, uploaded.id)
        dataset.state = DatasetState.INGESTING
        datasets.ingest_step(session, dataset.id).state = StepState.READY
    storage.remove_one(key)
    for _ in range(settings().max_attempts):
        try_again()
    with reading() as session:
        shown = session.get_one(Dataset, uploaded.id)
    assert (shown.state, shown.error_code) == (DatasetState.REJECTED, "BLOB_MISSING")
    collection.collect()  # which keeps what may be tried again
    storage.write(key, content)
    with transaction() as session:
        datasets.retry(session, jobs.owner(), uploaded.id)
    jobs.work()
    with reading() as session:
        assert session.get_one(Dataset, uploaded.id).state is DatasetState.READY


@contextmanager
def out_of_reach(instead: Callable[[Path], None]) -> Iterator[None]:
    """For a while there is something else where the storage's folder was."""
    folder = storage.local_path("")
    assert folder is not None
    away = folder.rename(folder.with_name("away"))
    instead(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        away.rename(folder)


@pytest.mark.parametrize("instead", [Path.touch, Path.mkdir], ids=["a file", "nothing mounted"])
@pytest.mark.parametrize("kind", [StepKind.TRAIN, StepKind.ENCODE, StepKind.PACKAGE])
def test_a_storage_that_is_not_there_is_waited_for(
    kind: StepKind, instead: Callable[[Path], None]
) -> None:
    adoption.adopt()
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    jobs.work(until=kind)
    for number in range(1, settings().max_attempts + 2):
        load_index.cache_clear()
        with out_of_reach(instead):
            try_again()
        waits = part(made, kind)
        assert (waits.attempt, waits.setbacks) == (0, number)
        assert waits.error_code == "INFRASTRUCTURE"
        assert str(waits.error).startswith("Expected ")
    try_again()
    assert jobs.show(made).state is ProtectionState.SUCCEEDED


def test_nothing_is_stored_where_a_volume_should_be() -> None:
    """It would be hidden by the volume, and be missed when that is back."""
    adoption.adopt()
    made = jobs.ask(jobs.upload(ARCHIVE).id)
    (step,) = jobs.ready()
    with transaction() as session:
        claim = leases.claim(session, step.id, facts.name())
    assert claim is not None
    with out_of_reach(Path.mkdir):
        with pytest.raises(OSError, match="a volume may not be mounted"):
            store(claim, checkpoint_key(made, 0), b"")
        collection.collect()
        assert not storage.idle_owners("protections", -1)
        assert storage.read_if_there(adoption.MARKER) is None  # however young the database is
    store(claim, checkpoint_key(made, 0), b"")
