"""What is left over goes, in time; what may be somebody else's stays."""

import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from api import adoption, datasets, protections, storage
from api.cli import app
from api.db import now, transaction
from api.models import Dataset, DatasetState, Identity, Orphan, Queue, Worker
from api.settings import settings
from tests import pictures
from tests.api.conftest import beat
from tests.worker import jobs
from worker import collection

pytestmark = pytest.mark.usefixtures("environment")

DAY = 86_400.0
UNFLUSHED = [f"source.zip#{'0a' * 16}.part", f"shards/00001.bin#{'0a' * 16}.part#1"]


def orphan(kind: str = "datasets", age_seconds: float = 3 * DAY) -> str:
    """A blob without a row, so old; returns its owner's key."""
    key = f"{kind}/{uuid4()}"
    storage.write(f"{key}/source.zip", b"originals")
    age(key, age_seconds)
    return key


def age(key: str, seconds: float) -> None:
    path = storage.local_path(key)
    assert path is not None
    for each in (path, *path.rglob("*")):
        os.utime(each, (time.time() - seconds,) * 2, follow_symlinks=False)


def path_of(key: str) -> Path:
    path = storage.local_path(key)
    assert path is not None
    return path


def there(key: str) -> bool:
    return path_of(key).exists()


def upload() -> UUID:
    """A row and its blob, as old as the orphans."""
    dataset_id = uuid4()
    key = storage.dataset_key(dataset_id, datasets.SOURCE)
    digest = storage.write(key, b"x")
    age(storage.dataset_key(dataset_id), 3 * DAY)
    with transaction() as session:
        datasets.create(session, jobs.owner(), dataset_id, "kept", digest, 1)
    return dataset_id


def collect_after(seconds: float) -> None:
    """A round, and one so long after it."""
    collection.collect()
    with transaction() as session:
        session.execute(update(Orphan).values(seen_at=now(session) - timedelta(seconds=seconds)))
    collection.collect()


def become_another() -> None:
    """A database that was made anew, or the wrong one: its id is another, its rows are gone."""
    with transaction() as session:
        session.execute(update(Identity).values(id=uuid4()))


def test_an_orphan_goes_a_grace_after_this_database_saw_it() -> None:
    """However old: after a restore, what is younger than the backup has no row."""
    kept, key = upload(), orphan()
    collect_after(DAY - 60)
    assert there(key)
    collect_after(DAY + 60)
    assert not there(key)
    assert there(storage.dataset_key(kept))


def test_what_has_a_row_again_is_no_orphan() -> None:
    collection.collect()
    dataset_id = upload()
    with transaction() as session:
        session.execute(update(Dataset).values(error_code="LOST"))
    collection.collect()
    with transaction() as session:
        session.execute(update(Dataset).values(error_code=None))
    collect_after(9 * DAY)
    with transaction() as session:
        assert session.query(Orphan).count() == 0
    assert there(storage.dataset_key(dataset_id))


def test_another_database_s_blobs_stay(caplog: pytest.LogCaptureFixture) -> None:
    collection.collect()
    keys = [orphan(), orphan("protections")]
    become_another()
    collect_after(9 * DAY)
    assert all(there(key) for key in keys)
    said = "Expected blobs of this database"
    assert any(r.levelname == "ERROR" and r.message.startswith(said) for r in caplog.records)

    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if said in line]
    assert line.startswith("fail  blobs")
    assert "run `sepgate adopt-storage`" in line

    adopted = CliRunner().invoke(app, ["adopt-storage"])
    assert "collected after 1 days" in adopted.output
    collection.collect()
    assert all(there(key) for key in keys)  # a grace is left to think again
    collect_after(DAY + 60)
    assert not any(there(key) for key in keys)


def test_blobs_without_a_marker_of_which_no_row_knows_any_stay() -> None:
    key = orphan()
    collect_after(9 * DAY)
    assert there(key)
    assert storage.read_if_there(adoption.MARKER) is None


def test_blobs_from_before_there_were_markers_are_whose_rows_know_one() -> None:
    dataset_id, key = upload(), orphan()
    collect_after(DAY + 60)
    assert not there(key)
    assert there(storage.dataset_key(dataset_id))
    assert storage.read_if_there(adoption.MARKER)


def test_no_blobs_at_all_are_not_those_of_rows_that_have_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An empty folder, where a volume should be: workers would take everything to be lost there."""
    dataset_id = upload()
    with transaction() as session:
        read = {"state": DatasetState.READY, "finished_at": now(session) - timedelta(days=2)}
        session.execute(update(Dataset).values(read))
    away = path_of("").rename(path_of("").with_name("away"))
    collection.collect()
    assert storage.read_if_there(adoption.MARKER) is None
    assert any("got none" in r.message for r in caplog.records if r.levelname == "ERROR")
    shutil.rmtree(path_of(""), ignore_errors=True)
    away.rename(path_of(""))
    collection.collect()
    assert storage.read_if_there(adoption.MARKER)
    assert there(storage.dataset_key(dataset_id))


def test_what_was_never_whole_goes_and_what_it_lies_beside_stays() -> None:
    dataset_id = upload()
    folder = path_of(storage.dataset_key(dataset_id))
    for name in ("source.zip#1", "shards/00000.bin#12", *UNFLUSHED, "a#b.zip", "writing.zip#1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"half")
    age(storage.dataset_key(dataset_id), DAY + 60)
    (folder / "writing.zip#1").write_bytes(b"half, and more")
    collection.collect()
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {"source.zip", "a#b.zip", "writing.zip#1"}


def test_the_marker_that_was_never_whole_goes() -> None:
    half = path_of("").joinpath(f"{adoption.MARKER}#{'0a' * 16}.part")
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    os.utime(half, (time.time() - 2 * DAY,) * 2)
    collection.collect()
    assert not half.exists()
    assert storage.read_if_there(adoption.MARKER)


def test_probes_of_processes_that_died_go() -> None:
    for half in ("", "#1"):
        probe = storage.probe_key(uuid4(), "probe")
        storage.write(probe, b"")
        path_of(probe).rename(path_of(probe).with_name(f"probe{half}"))
    age("probes", 3 * DAY)
    living = storage.probe_key(uuid4(), "probe")
    storage.write(living, b"")
    collect_after(DAY + 60)
    left = [path for path in path_of("probes").rglob("*") if path.is_file()]
    assert left == [path_of(living)]


def test_one_that_can_not_be_removed_keeps_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    collection.collect()
    bad = [f"{kind}/{UUID(int=0)}" for kind in ("datasets", "protections")]
    for key in bad:
        path_of(key).mkdir(parents=True)
        (path_of(key) / "loop").symlink_to("..")
    good = [orphan("datasets"), orphan("protections"), f"datasets/{upload()}"]
    path_of(f"{good[2]}/source.zip#1").write_bytes(b"half")
    beat(Queue.GPU, silent_seconds=2 * DAY)
    collection.collect()
    assert [there(key) for key in good] == [False, False, True]
    assert not there(f"{good[2]}/source.zip#1")
    assert {f"{key} was not removed" for key in bad} <= set(caplog.messages)
    with transaction() as session:
        assert session.query(Worker).count() == 0


def test_what_only_steps_had_use_for_goes_and_no_more_is_asked_of_the_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a process was killed between the last commit and its clean-up."""
    protection, archive = jobs.protect(pictures.zipped(pictures.class_folders(6, 4)))
    key = storage.protection_key(protection.id)
    kept = names_below(key)
    for name in ("shards/00000.bin", "training.pt", "decoded/x"):
        storage.write(f"{key}/{name}", b"x")
    age(key, 3 * DAY)
    collection.collect()
    assert names_below(key) == kept
    assert storage.read(f"{key}/{protections.ARCHIVE}") == archive
    asked: list[str] = []
    for remove in (storage.remove, storage.remove_one):

        def asking(key: str, remove: Callable[[str], None] = remove) -> None:
            asked.append(key)
            remove(key)

        monkeypatch.setattr(storage, remove.__name__, asking)
    age(key, 3 * DAY)
    collection.collect()
    assert [each for each in asked if each.startswith(key)] == []
    # Nor are originals to be seen once they are deleted.
    assert protection.dataset_id is not None
    with transaction() as session:
        session.delete(session.get_one(Dataset, protection.dataset_id))
    age(key, 3 * DAY)
    collection.collect()
    assert kept - names_below(key) == {protections.PREVIEW, protections.WORST}


def names_below(key: str) -> set[str]:
    folder = path_of(key)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
