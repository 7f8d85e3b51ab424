"""A data set as the steps need it: its index, its parts, and pixels decoded from an archive."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from threading import Lock
from typing import IO, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from api import archive, datasets, protections, storage
from api.archive import ImageRecord, IngestResult, Pixels
from api.db import reading
from api.errors import AppError
from api.models import Protection, Step, StepKind
from api.plans import workload
from api.plans.choice import chosen
from api.plans.planning import frozen_evaluation, load_config, load_plan
from api.scheduling.leases import Claim
from sep_core.cells import Evaluation
from sep_core.config import Plan, SEPConfig

PIECE_BYTES = 2**22
"""That are read at once of what is read from end to end."""


@dataclass(frozen=True)
class Job:
    """A protection whose plan is frozen, and the data it is about.

    Attributes:
        claim: of the step that is run; a process that trains along has none.
    """

    protection_id: UUID
    dataset_id: UUID
    config: SEPConfig
    plan: Plan
    evaluation: Evaluation
    index: IngestResult
    dataset_sha256: str
    claim: Claim | None = None

    @property
    def records(self) -> Sequence[ImageRecord]:
        """Accepted images, sorted by name."""
        return self.index.records

    @property
    def shards(self) -> Sequence[Sequence[archive.Numbers]]:
        """Indices of the images that each `perturb` step takes, batch by batch."""
        return _shards(self.dataset_id, self.config, self.plan)

    @property
    def parts(self) -> Sequence[archive.Numbers]:
        """Indices, rising, of the images that each `encode` step takes: first a part a shard."""
        return _parts(self.dataset_id, self.config, self.plan)

    @cached_property
    def is_protected(self) -> npt.NDArray[np.bool_]:
        """(n): of each record whether its image is changed; the others leave as they came."""
        mask = np.zeros(len(self.records), np.bool_)
        mask[chosen(self.records, self.config)] = True
        return mask


# A process takes one step after the other of the same data, or of two owners' in turns.
@lru_cache(maxsize=2)
def load_index(dataset_id: UUID) -> IngestResult:
    """What ingestion found."""
    return datasets.load_index(dataset_id)


@lru_cache(maxsize=2)
def _shards(dataset_id: UUID, config: SEPConfig, plan: Plan) -> list[list[archive.Numbers]]:
    return workload.shards(load_index(dataset_id).records, config, plan)


@lru_cache(maxsize=2)
def _parts(dataset_id: UUID, config: SEPConfig, plan: Plan) -> list[archive.Numbers]:
    records = load_index(dataset_id).records
    return workload.parts(records, _shards(dataset_id, config, plan))


def load_job(claim: Claim) -> Job:
    """The job of a claimed step whose protection has been planned."""
    assert claim.protection_id is not None
    return replace(load_planned(claim.protection_id), claim=claim)


def load_planned(protection_id: UUID) -> Job:
    """The job of a protection that has been planned."""
    with reading() as session:
        protection = session.get_one(Protection, protection_id)
    assert protection.dataset_id is not None
    assert protection.config is not None
    assert protection.plan is not None
    return Job(
        protection.id,
        protection.dataset_id,
        load_config(protection.config),
        load_plan(protection.plan),
        frozen_evaluation(protection),
        load_index(protection.dataset_id),
        protection.dataset_sha256,
    )


def outputs(protection_id: UUID, kind: StepKind) -> list[Any]:
    """What its steps of a kind have found, in the order of their indices."""
    query = select(Step.output).where(Step.protection_id == protection_id, Step.kind == kind)
    with reading() as session:
        return list(session.scalars(query.order_by(Step.index)))


def output(protection_id: UUID, kind: StepKind, index: int) -> Any:
    """What one step has found."""
    query = select(Step.output).where(
        Step.protection_id == protection_id, Step.kind == kind, Step.index == index
    )
    with reading() as session:
        return session.scalars(query).one()


def check_digest(key: str, found: str, sha256: str) -> None:
    """SHA-256 of a blob that another step has left, and of what that step has stored.

    Raises:
        BlobChanged: it is not what that step has stored.
    """
    if found != sha256:
        raise BlobChanged(key, found, sha256)


class BlobChanged(AppError):
    """What lies there is not what an earlier step has stored."""

    def __init__(self, key: str, found: str, sha256: str) -> None:
        super().__init__(
            500,
            "BLOB_CHANGED",
            f"{key}: expected what an earlier step has stored, of SHA-256 {sha256}, got {found}. "
            "Look after the storage.",
        )
        self.key = key


class Reader:
    """Pixels by record, decoded from an archive; by several threads at once, too."""

    def __init__(self, file: IO[bytes], *, released: bool) -> None:
        self._file, self._released = file, released
        self._limits = archive.UNLIMITED if released else archive.Limits()
        self._lock = Lock()
        self._catalog: archive.Catalog | None = None

    def read_directory(self) -> Iterator[None]:
        """Of what leaves, half a minute for a million files; yields now and then.

        Where an upload's files lie its index says; that of an older one is read by names, and its
        directory without signs of life.
        """
        if not self._released:
            return
        catalog = archive.Catalog(self._file, self._limits)
        try:
            yield from catalog.read_directory()
        except BaseException:
            catalog.close()
            raise
        self._catalog = catalog

    def pixels(self, record: ImageRecord) -> Pixels:
        """(h, w, c) uint8. Raises ValueError if they differ in shape from the index."""
        data = self.file(record)
        if self._released:
            pixels = archive.decode_released(data)
        else:
            pixels = archive.read_pixels(data, self._limits).pixels
        expected = (record.height, record.width, record.channels)
        if pixels.shape != expected:
            raise ValueError(
                f"{record.name}: expected pixels of shape {expected}, got {pixels.shape}"
            )
        return pixels

    def file(self, record: ImageRecord) -> bytes:
        """As it lies in the archive.

        Raises:
            AppError: BLOB_CHANGED, it is not what it was.
        """
        name = record.released_name if self._released else record.name
        with self._lock:  # the file has one position
            try:
                return self._read(name, record.place)
            except archive.ImageRefused as error:  # it was read once, when its data set was
                raise AppError(
                    500,
                    "BLOB_CHANGED",
                    f"{name}: expected what was read before, got {error.reason} "
                    "Look after the storage, and upload the data set again.",
                ) from error

    def _read(self, name: str, place: archive.Place | None) -> bytes:
        if not self._released and place is not None:
            return archive.read_placed(self._file, place)
        if self._catalog is None:
            self._catalog = archive.Catalog.of(self._file, self._limits)
        return self._catalog.read(name)

    def close(self) -> None:
        """Let go of what is known of the archive; its file stays open."""
        if self._catalog is not None:
            self._catalog.close()


@contextmanager
def open_source(dataset_id: UUID) -> Iterator[Reader]:
    """The originals, decoded from the upload."""
    yield _source(dataset_id)


@lru_cache(maxsize=1)
def _source(dataset_id: UUID) -> Reader:
    """No blob is held open: every read looks for it again."""
    blob = storage.open_blob(storage.dataset_key(dataset_id, datasets.SOURCE))
    return Reader(blob, released=False)


@contextmanager
def open_released(protection_id: UUID) -> Iterator[Reader]:
    """The protected images, from the finished archive, in whose order they are read mostly."""
    key = storage.protection_key(protection_id, protections.ARCHIVE)
    with (
        storage.open_blob(key, PIECE_BYTES) as blob,
        closing(Reader(blob, released=True)) as reader,
    ):
        yield reader


def shard_key(protection_id: UUID, plan: Plan, index: int) -> str:
    """Where a `perturb` step leaves its pixels: elsewhere by another plan, which may follow it."""
    name = f"{protections.SHARDS}/{plan.batch_size}/{index:05d}.bin"
    return storage.protection_key(protection_id, name)


def encoded_key(protection_id: UUID, plan: Plan, index: int) -> str:
    """Where an `encode` step leaves the files of its images, one after the other."""
    name = f"{protections.ENCODED}/{plan.batch_size}/{index:05d}.bin"
    return storage.protection_key(protection_id, name)


def table_key(protection_id: UUID, plan: Plan, index: int) -> str:
    """Where it leaves what they are: see `worker.encoded`."""
    name = f"{protections.ENCODED}/{plan.batch_size}/{index:05d}.npy"
    return storage.protection_key(protection_id, name)


def remove_used(protection: Protection, claim: Claim) -> None:
    """Remove what only a step that is done by now had use for."""
    if claim.kind is StepKind.ENCODE and protection.plan is not None:
        storage.remove_one(shard_key(protection.id, load_plan(protection.plan), claim.index))
    elif claim.kind is StepKind.PACKAGE:
        storage.remove(storage.protection_key(protection.id, protections.ENCODED))


def training_key(protection_id: UUID) -> str:
    """Where the `train` step leaves what another attempt goes on from."""
    return storage.protection_key(protection_id, protections.TRAINING)


def evaluation_key(protection_id: UUID, index: int) -> str:
    """Where an `evaluate` step leaves what another attempt goes on from."""
    return storage.protection_key(protection_id, f"{protections.TRAININGS}/{index:03d}.pt")


def checkpoint_key(protection_id: UUID, index: int) -> str:
    """Where the `train` step leaves a checkpoint."""
    return storage.protection_key(protection_id, f"{protections.CHECKPOINTS}/{index:03d}.pt")


def decoded_key(protection_id: UUID, source: str, digest: str) -> str:
    """Where the first step that needs them leaves pixels at input size."""
    return storage.protection_key(protection_id, f"{protections.DECODED}/{source}-{digest}.bin")


def patterns_key(protection_id: UUID) -> str:
    """Where the `train` step leaves the classes' patterns."""
    return storage.protection_key(protection_id, f"{protections.CHECKPOINTS}/class-patterns.pt")
