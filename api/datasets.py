"""The life of a data set: ingesting -> ready | rejected. The sole writer of its state.

One that was rejected for no fault of its upload may be read again: rejected -> ingesting.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import archive, events, storage
from api.db import now, reading
from api.errors import AppError, not_found
from api.models import (
    ACTIVE,
    Dataset,
    DatasetState,
    Protection,
    Step,
    StepKind,
    StepState,
)
from api.scheduling import leases
from api.scheduling.leases import Claim
from api.scheduling.moves import move
from api.settings import settings

SOURCE = "source.zip"
INDEX = "index.npz"
OLDER_INDEX = "index.json"
OURS = (
    *("PROCESS_DIED", "WORKER_LOST", "WORKER_DRAINED", "STALLED", "OUT_OF_MEMORY", "GPU_LOST"),
    *("STORAGE_FULL", "INFRASTRUCTURE", "BLOB_MISSING", "INTERNAL"),
)
"""Codes of what is no fault of an upload: see `endings.Setback`."""
RETRY_AFTER_SECONDS = 2


def create(
    session: Session, owner_id: UUID, dataset_id: UUID, name: str, sha256: str, size_bytes: int
) -> Dataset:
    """A row for an upload that is already stored, and its ingest step."""
    at = now(session)
    dataset = Dataset(
        id=dataset_id,
        owner_id=owner_id,
        name=name,
        state=DatasetState.INGESTING,
        sha256=sha256,
        size_bytes=size_bytes,
        created_at=at,
        refused=[],
    )
    session.add(dataset)
    session.flush()
    session.add(
        Step(
            dataset_id=dataset_id,
            kind=StepKind.INGEST,
            state=StepState.READY,
            created_at=at,
            ready_at=at,
        )
    )
    session.flush()
    events.record(session, "dataset.ingesting", dataset, name=name, sha256=sha256)
    return dataset


def get(session: Session, owner_id: UUID, dataset_id: UUID, *, lock: bool = False) -> Dataset:
    """The caller's data set; with `lock`, as it stays until the transaction ends.

    Raises:
        AppError: 404, also for somebody else's.
    """
    dataset = session.get(Dataset, dataset_id, with_for_update=lock or None, populate_existing=lock)
    if dataset is None or dataset.owner_id != owner_id:
        raise not_found("data set", dataset_id)
    return dataset


def ingest_step(session: Session, dataset_id: UUID) -> Step:
    """The step that reads the archive."""
    return session.scalars(select(Step).where(Step.dataset_id == dataset_id)).one()


def ingest_steps(session: Session, dataset_ids: Sequence[UUID]) -> dict[UUID, Step]:
    """The same of several, by data set."""
    steps = session.scalars(select(Step).where(Step.dataset_id.in_(dataset_ids)))
    return {step.dataset_id: step for step in steps if step.dataset_id is not None}


def ready(session: Session, claim: Claim, output: dict[str, Any]) -> None:
    """The archive is read: counts and refused files go to the row."""
    step = leases.held(session, claim)
    if step is None:
        return
    dataset = session.get_one(Dataset, claim.dataset_id)
    leases.finish(session, step, {}, dataset.sha256)
    move(session, dataset, DatasetState.READY, finished_at=now(session), **output)


def may_be_retried(dataset: Dataset) -> bool:
    """Whether it was rejected for no fault of its upload, which is kept for a while then."""
    return dataset.error_code in OURS


def retry(session: Session, owner_id: UUID, dataset_id: UUID) -> Dataset:
    """Read an upload again that was rejected for no fault of its own.

    Raises:
        AppError: 409, it was not, or the upload is gone.
    """
    dataset = _locked(session, owner_id, dataset_id)
    if not may_be_retried(dataset):
        expected = "Expected a data set that was rejected for a fault of the service's"
        state = dataset.error_code or dataset.state
        raise AppError(409, "DATASET_NOT_RETRIABLE", f"{expected}, {dataset_id} is {state}.")
    assert dataset.finished_at is not None
    kept_until = dataset.finished_at + timedelta(seconds=settings().failed_keep_seconds)
    upload = storage.size_if_there(storage.dataset_key(dataset_id, SOURCE))
    if now(session) > kept_until or upload is None:
        until = f"{kept_until:%Y-%m-%d %H:%M} UTC"
        gone = f"The upload of data set {dataset_id} was kept until {until}; send it again."
        raise AppError(409, "RETRY_TOO_LATE", gone)
    values = {"error_code": None, "error": None, "finished_at": None}
    if move(session, dataset, DatasetState.INGESTING, **values):
        leases.revive(session, Step.dataset_id == dataset_id)
    return dataset


def reject(session: Session, step: Step, code: str, message: str) -> Dataset:
    """The archive can't become a data set; `clean` removes its blobs after the commit."""
    leases.fail(session, step, code, message)
    dataset = session.get_one(Dataset, step.dataset_id)
    move(
        session,
        dataset,
        DatasetState.REJECTED,
        error_code=code,
        error=message,
        finished_at=now(session),
    )
    return dataset


def delete(session: Session, owner_id: UUID, dataset_id: UUID, why: str | None = None) -> Dataset:
    """Forget a data set; `clean` removes its blobs after the commit.

    Whoever reads it meanwhile loses the step with it, and can write nothing more.

    Raises:
        AppError: 409 while it is protected.
    """
    dataset = _locked(session, owner_id, dataset_id)
    active = session.scalars(
        select(Protection.id).where(
            Protection.dataset_id == dataset_id, Protection.state.in_(ACTIVE)
        )
    ).all()
    if active:
        raise AppError(
            409,
            "DATASET_BUSY",
            f"Data set {dataset_id} is being protected; cancel these protections first.",
            details={"protections": [str(i) for i in active]},
        )
    told = {"why": why} if why else {}
    events.record(session, "dataset.deleted", dataset, sha256=dataset.sha256, **told)
    session.delete(dataset)
    return dataset


def lock(session: Session, dataset_id: UUID) -> None:
    """Let nobody else change a data set until the transaction ends, or see it deleted.

    The step first, as by whoever reads it: so nobody waits for each other.
    """
    session.execute(select(Step.id).where(Step.dataset_id == dataset_id).with_for_update())
    session.get(Dataset, dataset_id, with_for_update=True, populate_existing=True)


def _locked(session: Session, owner_id: UUID, dataset_id: UUID) -> Dataset:
    """Looked at again once it is locked: it may have gone meanwhile."""
    get(session, owner_id, dataset_id)
    lock(session, dataset_id)
    return get(session, owner_id, dataset_id, lock=True)


def clean(dataset: Dataset) -> None:
    """Remove every blob of a data set that was rejected or deleted."""
    storage.remove(storage.dataset_key(dataset.id))


def clean_deleted(dataset_id: UUID) -> None:
    """Remove what whoever read it has stored after all, if it was deleted meanwhile."""
    with reading() as session:
        gone = session.get(Dataset, dataset_id) is None
    if gone:
        storage.remove(storage.dataset_key(dataset_id))


def load_index(dataset_id: UUID) -> archive.IngestResult:
    """What ingestion found, mapped from a copy in the temporary folder.

    Raises:
        FileNotFoundError: the data set was deleted.
    """
    key, older = (storage.dataset_key(dataset_id, name) for name in (INDEX, OLDER_INDEX))
    if storage.size_if_there(key) is None and storage.size_if_there(older) is not None:
        key = older
    with storage.copied(key) as file:
        return archive.load_index(file)
