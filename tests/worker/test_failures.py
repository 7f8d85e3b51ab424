"""What is no defect of a job: a disk that is full, and room that is made again."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import storage
from api.models import ProtectionState
from api.settings import settings
from tests import pictures
from tests.worker import jobs

pytestmark = [
    pytest.mark.usefixtures("environment"),
    # Nothing here depends on the kind of database.
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

ARCHIVE = pictures.zipped(pictures.class_folders(4, 2, (24, 30)))


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
