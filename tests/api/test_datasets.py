"""The life of a data set below HTTP."""

from functools import partial
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from api import datasets, protections, storage
from api.db import reading, transaction
from api.errors import AppError
from api.models import Dataset, DatasetState, Step, StepState
from api.scheduling import leases
from api.scheduling.leases import Claim
from api.scheduling.moves import move
from tests.api.archives import png, zip_bytes
from tests.api.conftest import blobs, together
from tests.api.lives import (
    claimed,
    dataset,
    ingested,
    protection,
    requested,
    small_zip,
    succeed,
    work,
)


def create(owner_id: UUID, data: bytes) -> UUID:
    dataset_id = uuid4()
    digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), data)
    with transaction() as session:
        datasets.create(session, owner_id, dataset_id, "pets", digest, len(data))
    return dataset_id


def delete(owner_id: UUID, dataset_id: UUID) -> None:
    with transaction() as session:
        gone = datasets.delete(session, owner_id, dataset_id)
    datasets.clean(gone)


def step_of(dataset_id: UUID) -> Step:
    with reading() as session:
        return datasets.ingest_step(session, dataset_id)


def test_ingestion_makes_it_ready(owner_id: UUID) -> None:
    dataset_id = create(owner_id, small_zip(notes__a=b"x.txt"))
    assert dataset(dataset_id).state is DatasetState.INGESTING
    assert step_of(dataset_id).state is StepState.READY
    work()
    found = dataset(dataset_id)
    assert found.state is DatasetState.READY
    assert found.summary is not None
    assert found.summary["classes"] == ["cat", "dog"]
    assert found.summary["images"] == 4
    assert found.finished_at is not None
    assert step_of(dataset_id).state is StepState.DONE
    assert blobs() == [f"datasets/{dataset_id}/{name}" for name in ("index.npz", "source.zip")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"not a zip at all", "NOT_A_ZIP"),
        (b"", "NOT_A_ZIP"),
        (zip_bytes({"../cat/a.png": png(1)}), "ARCHIVE_UNSAFE_PATH"),
    ],
)
def test_what_can_not_be_read_is_rejected(owner_id: UUID, data: bytes, code: str) -> None:
    dataset_id = create(owner_id, data)
    work()
    found = dataset(dataset_id)
    assert (found.state, found.error_code) == (DatasetState.REJECTED, code)
    assert found.error
    assert found.error.endswith(".")
    assert step_of(dataset_id).state is StepState.FAILED
    assert blobs() == []


def test_names_that_a_database_refuses(owner_id: UUID) -> None:
    """NUL and the like in a name, in refused files and in the sentence of a refusal."""
    odd = ("cat/\x01\x7f\N{RIGHT-TO-LEFT OVERRIDE}.txt", b"no image")
    good = [(f"{name}/{number}.png", png(number)) for name in ("a", "b") for number in (0, 1)]
    data = zip_bytes([odd, *good]).replace(b"\x01\x7f", b"\x00\x7f")
    dataset_id = create(owner_id, data)
    work()
    assert dataset(dataset_id).state is not DatasetState.INGESTING
    unsafe = create(owner_id, zip_bytes({"../\x01.png": png(1)}).replace(b"\x01.png", b"\x00.png"))
    work()
    assert dataset(unsafe).state is DatasetState.REJECTED


def test_it_goes_with_its_blobs_and_its_step(owner_id: UUID) -> None:
    dataset_id = ingested(owner_id)
    delete(owner_id, dataset_id)
    assert blobs() == []
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Dataset)) == 0
        assert session.scalar(select(func.count()).select_from(Step)) == 0


def test_it_goes_while_it_waits_to_be_read(owner_id: UUID) -> None:
    """For a worker, or for a disk that the upload itself has filled."""
    dataset_id = create(owner_id, small_zip())
    delete(owner_id, dataset_id)
    assert blobs() == []
    work()
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Step)) == 0


def test_a_protection_outlives_it(owner_id: UUID) -> None:
    dataset_id = ingested(owner_id)
    protection_id = requested(owner_id, dataset_id)
    with pytest.raises(AppError) as refused:
        delete(owner_id, dataset_id)
    assert refused.value.details == {"protections": [str(protection_id)]}
    succeed(protection_id)
    kept = blobs("protections")
    delete(owner_id, dataset_id)
    assert protection(protection_id).dataset_id is None
    assert blobs() == kept
    assert f"protections/{protection_id}/archive.zip" in kept


def test_rejected_ones_can_be_deleted(owner_id: UUID) -> None:
    dataset_id = create(owner_id, b"no zip")
    work()
    delete(owner_id, dataset_id)
    with reading() as session:
        assert session.get(Dataset, dataset_id) is None


def test_two_deletions_at_once(owner_id: UUID) -> None:
    for _ in range(5):
        dataset_id = ingested(owner_id)
        results = together(*[partial(delete, owner_id, dataset_id) for _ in range(2)])
        assert results.count(None) == 1
        (refused,) = [result for result in results if result is not None]
        assert isinstance(refused, AppError)
        assert refused.status == 404


def test_ready_and_rejected_are_final(owner_id: UUID) -> None:
    dataset_id = ingested(owner_id)
    with transaction() as session, pytest.raises(ValueError, match="from ready, got rejected"):
        move(session, session.get_one(Dataset, dataset_id), DatasetState.REJECTED)


def test_draining_gives_an_ingestion_back(owner_id: UUID) -> None:
    dataset_id = create(owner_id, small_zip())
    claim = claimed(step_of(dataset_id).id)
    assert isinstance(claim, Claim)
    with transaction() as session:
        held = leases.held(session, claim)
        assert held is not None
        leases.give_back(session, held, counts=False)
    assert step_of(dataset_id).attempt == 0
    work()
    assert dataset(dataset_id).state is DatasetState.READY


def test_somebody_elses_protection_of_it_does_not_exist(owner_id: UUID) -> None:
    dataset_id = ingested(owner_id)
    with transaction() as session, pytest.raises(AppError) as refused:
        protections.create(session, uuid4(), protections.Request(dataset_id, "quick", {}), None)
    assert refused.value.status == 404
