"""What is taken of an upload, and what is refused."""

import io
from typing import IO

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from api import datasets, storage
from api.db import reading, transaction
from api.errors import AppError
from api.models import Dataset, DatasetState, Step, StepState
from tests import pictures
from tests.worker import jobs
from worker import tasks
from worker.lease import LeaseLost
from worker.steps import ingest

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(8, 3)


def test_an_archive_that_is_none_is_rejected_and_goes() -> None:
    dataset = jobs.upload(b"PK but not really a zip")
    assert dataset.state is DatasetState.REJECTED
    assert dataset.error_code == "NOT_A_ZIP"
    assert storage.idle_owners("datasets", 0) == set()


def test_deleted_while_it_is_read_it_is_gone_for_good() -> None:
    """As by a call of the API, between two images."""
    dataset_id = jobs.upload(pictures.zipped(FILES)).id
    with transaction() as session:  # as if it had just come
        session.execute(update(Dataset).values(state=DatasetState.INGESTING))
        session.execute(update(Step).values(state=StepState.READY))
    claim = jobs.claim()
    work = ingest.run(claim)
    next(work)
    with transaction() as session:
        dataset = datasets.delete(session, jobs.owner(), dataset_id)
    datasets.clean(dataset)
    with pytest.raises((LeaseLost, FileNotFoundError)):
        list(work)
    tasks.run_claimed(claim)  # which tells nobody of a step that is gone, and leaves nothing
    assert jobs.ready() == []
    assert storage.idle_owners("datasets", 0) == set()


def test_deleted_as_its_index_is_stored_it_is_gone_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the reader has asked whether it still has the step."""
    dataset_id = jobs.upload(pictures.zipped(FILES)).id
    with transaction() as session:
        session.execute(update(Dataset).values(state=DatasetState.INGESTING))
        session.execute(update(Step).values(state=StepState.READY))
    write = storage.write

    def deleted(key: str, data: bytes | IO[bytes]) -> str:
        with transaction() as session:
            dataset = datasets.delete(session, jobs.owner(), dataset_id)
        datasets.clean(dataset)
        return write(key, data)

    monkeypatch.setattr(storage, "write", deleted)
    jobs.work()
    assert storage.idle_owners("datasets", -1) == set()


def test_one_tenth_of_bad_files_gives_a_ready_data_set_and_a_list() -> None:
    good = pictures.class_folders(15)
    bad = {
        "train/ant/half.jpg": pictures.encoded(pictures.image(0, 7, (64, 64)), "JPEG")[:900],
        "train/ant/sixteen.png": _sixteen_bit(),
        "train/bee/notes.txt": b"not an image",
        "train/bee/tiny.png": pictures.encoded(pictures.image(1, 8, (4, 4))),
        "train/cat/see-through.png": _transparent(),
    }
    dataset = jobs.upload(pictures.zipped(good | bad))
    assert dataset.state is DatasetState.READY
    assert dataset.summary is not None
    assert dataset.summary["images"] == len(good)
    with reading() as session:
        session.add(dataset)
        refused = {item["name"]: item["code"] for item in dataset.refused}
    assert refused == {
        "train/ant/half.jpg": "BROKEN_IMAGE",
        "train/ant/sixteen.png": "UNSUPPORTED_MODE",
        "train/bee/notes.txt": "NOT_AN_IMAGE",
        "train/bee/tiny.png": "IMAGE_TOO_SMALL",
        "train/cat/see-through.png": "TRANSPARENT",
    }


def _sixteen_bit() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(file, "PNG")
    return file.getvalue()


def _transparent() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (32, 32), (1, 2, 3, 128)).save(file, "PNG")
    return file.getvalue()


def test_nothing_to_test_on_is_refused_before_any_training() -> None:
    files = {
        f"train/{c}/0.png": pictures.encoded(pictures.image(i, 0)) for i, c in enumerate("abc")
    }
    dataset = jobs.upload(pictures.zipped(files))
    with pytest.raises(AppError, match="two training images"):
        jobs.ask(dataset.id)
