"""Tables and states. The row is the truth; a message is a knock on the door."""

import enum
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, UniqueConstraint, Uuid
from sqlalchemy import Enum as SQLEnum
from sqlalchemy.orm import Mapped, mapped_column
from structlog.contextvars import get_contextvars

from api.db import Base, UTCDateTime

JSONObject = dict[str, Any]


class DatasetState(enum.StrEnum):
    """Of a data set. There is no row, and so no state, before the upload is whole."""

    INGESTING = "ingesting"
    READY = "ready"
    REJECTED = "rejected"


class ProtectionState(enum.StrEnum):
    """Of a protection."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(enum.StrEnum):
    """Of a step. `waiting` is for others to be done, `ready` for a worker."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class StepKind(enum.StrEnum):
    """What a step does, in the order in which a protection's steps come."""

    INGEST = "ingest"
    TRAIN = "train"
    PERTURB = "perturb"
    ENCODE = "encode"
    PACKAGE = "package"
    EVALUATE = "evaluate"


class Queue(enum.StrEnum):
    """Where a step's message goes."""

    GPU = "gpu"
    CPU = "cpu"


QUEUES: Mapping[StepKind, Queue] = MappingProxyType(
    {
        StepKind.INGEST: Queue.CPU,
        StepKind.TRAIN: Queue.GPU,
        StepKind.PERTURB: Queue.GPU,
        StepKind.ENCODE: Queue.CPU,
        StepKind.PACKAGE: Queue.CPU,
        StepKind.EVALUATE: Queue.GPU,
    }
)

State = DatasetState | ProtectionState | StepState

ACTIVE = (ProtectionState.QUEUED, ProtectionState.RUNNING)


def _state(kind: type[enum.StrEnum]) -> SQLEnum:
    return SQLEnum(
        kind, native_enum=False, length=16, values_callable=lambda e: [member.value for member in e]
    )


class Owner(Base):
    """Who owns data sets and protections: a tenant."""

    __tablename__ = "owners"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    # Steps in one queue at once; None is as many as there are workers.
    max_running: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Turn(Base):
    """When a queue last served an owner: whose turn it is."""

    __tablename__ = "turns"

    owner_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("owners.id", ondelete="CASCADE"), primary_key=True
    )
    queue: Mapped[Queue] = mapped_column(_state(Queue), primary_key=True)
    served_at: Mapped[datetime] = mapped_column(UTCDateTime)


class APIKey(Base):
    """A key of an owner; the key itself is not kept, only its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("owners.id", ondelete="CASCADE"))
    prefix: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Dataset(Base):
    """An uploaded archive after ingestion: immutable, known by its digest."""

    __tablename__ = "datasets"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("owners.id"), index=True)
    name: Mapped[str]
    state: Mapped[DatasetState] = mapped_column(_state(DatasetState))
    sha256: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    summary: Mapped[JSONObject | None] = mapped_column(JSON)
    refused: Mapped[list[JSONObject]] = mapped_column(JSON, default=list, deferred=True)
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Protection(Base):
    """One request to protect a data set. It is the job."""

    __tablename__ = "protections"
    __table_args__ = (UniqueConstraint("owner_id", "idempotency_key"),)

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("owners.id"), index=True)
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="SET NULL"), index=True
    )
    dataset_name: Mapped[str]
    dataset_sha256: Mapped[str]
    state: Mapped[ProtectionState] = mapped_column(_state(ProtectionState))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    # Among its owner's: a higher one first.
    priority: Mapped[int] = mapped_column(default=0)
    requested: Mapped[JSONObject] = mapped_column(JSON)
    config: Mapped[JSONObject | None] = mapped_column(JSON)
    plan: Mapped[JSONObject | None] = mapped_column(JSON)
    evaluation: Mapped[JSONObject | None] = mapped_column(JSON)
    archive_sha256: Mapped[str | None]
    archive_bytes: Mapped[int | None] = mapped_column(BigInteger)
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    request_sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Baseline(Base):
    """A training on a data set's originals: what it found holds for every protection.

    Without an output it was begun by the step with this lease, and is being done while that holds.
    """

    __tablename__ = "baselines"

    dataset_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True
    )
    digest: Mapped[str] = mapped_column(primary_key=True)
    output: Mapped[JSONObject | None] = mapped_column(JSON(none_as_null=True))
    lease_token: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    # Outlives its lease, and the step itself: no key.
    step_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


def _request_id() -> str | None:
    """Of the request, or of the step, that a process is at: what its log lines are bound to."""
    return get_contextvars().get("request_id")


class Step(Base):
    """One unit of queued work, of a data set or of a protection, held by a lease while it runs."""

    __tablename__ = "steps"
    __table_args__ = (
        UniqueConstraint("protection_id", "kind", "index"),
        Index(None, "state", "lease_expires_at"),
        Index(None, "state", "finished_at"),
    )

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("datasets.id", ondelete="CASCADE"), index=True
    )
    protection_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("protections.id", ondelete="CASCADE"), index=True
    )
    kind: Mapped[StepKind] = mapped_column(_state(StepKind))
    index: Mapped[int] = mapped_column(default=0)
    state: Mapped[StepState] = mapped_column(_state(StepState))
    # Seconds that whoever planned it expects of it.
    cost: Mapped[float] = mapped_column(default=0.0)
    progress_done: Mapped[int] = mapped_column(BigInteger, default=0)
    progress_total: Mapped[int] = mapped_column(BigInteger, default=0)
    # Where this attempt began, and what the next one would begin with.
    progress_begun: Mapped[int] = mapped_column(BigInteger, default=0)
    progress_kept: Mapped[int] = mapped_column(BigInteger, default=0)
    output: Mapped[JSONObject | None] = mapped_column(JSON)
    # Of all that it was given, and of its output: see `api.digests`.
    input_sha256: Mapped[str | None]
    output_sha256: Mapped[str | None]
    # Why it failed or, as long as it is tried again, why the last attempt was broken off.
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=0)
    # Attempts in a row that were broken off and kept nothing, and when the first of them was.
    setbacks: Mapped[int] = mapped_column(default=0)
    setback_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    not_before: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ready_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    lease_owner: Mapped[str | None]
    lease_token: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    lease_expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    request_id: Mapped[str | None] = mapped_column(default=_request_id)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


WORKER_FRESH_SECONDS = 60
"""A worker whose heartbeat is older is taken to be gone."""


def fresh_since(at: datetime) -> datetime:
    """What the heartbeat of a worker is later than that is alive at `at`."""
    return at - timedelta(seconds=WORKER_FRESH_SECONDS)


class Worker(Base):
    """A process that runs steps, as it registered itself; alive while its heartbeat is fresh."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[Queue] = mapped_column(_state(Queue))
    device: Mapped[str]
    device_name: Mapped[str]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    bfloat16: Mapped[bool]
    threads: Mapped[int]
    versions: Mapped[JSONObject] = mapped_column(JSON)
    speeds: Mapped[list[JSONObject] | None] = mapped_column(JSON)
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    load: Mapped[float | None]
    # What CUDA is to see of it, and the step that computes there instead.
    gpu: Mapped[str | None]
    lent_to: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Lock(Base):
    """What one process at a time may do, and which one that is."""

    __tablename__ = "locks"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    taken_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Identity(Base):
    """Which database this is: one row, made with the tables, the same in every backup."""

    __tablename__ = "identity"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)


class Orphan(Base):
    """Blobs that no row keeps, and since when this database has seen that."""

    __tablename__ = "orphans"

    key: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Event(Base):
    """Something that has happened. No foreign keys: it outlives what it is about."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    owner_id: Mapped[uuid.UUID] = mapped_column(Uuid)
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(Uuid, index=True)
    protection_id: Mapped[uuid.UUID | None] = mapped_column(Uuid, index=True)
    what: Mapped[str]
    data: Mapped[JSONObject] = mapped_column(JSON)
