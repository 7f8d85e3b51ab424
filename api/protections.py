"""The life of a protection: asked for, cancelled, deleted. With `steps`, which moves it on while it
runs, the sole writer of its state.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import datasets, digests, events, progress, steps, storage
from api.db import now, reading
from api.errors import AppError, not_found
from api.models import (
    ACTIVE,
    Dataset,
    DatasetState,
    Protection,
    ProtectionState,
    StepKind,
    StepState,
)
from api.plans import planning, sides, weights
from api.settings import settings

ARCHIVE = "archive.zip"
RECORD = "record.json"
REFUSED = "refused.json"
PREVIEW = "before-after.png"
WORST = "worst.png"
CHECKPOINTS = "checkpoints"
SHARDS = "shards"
ENCODED = "encoded"
TRAINING = "training.pt"
TRAININGS = "trainings"
DECODED = "decoded"
"""Pixels at the networks' input size, of originals too: see `worker.decoded`."""
OF_STEPS = frozenset({SHARDS, ENCODED, DECODED, TRAININGS, TRAINING})
"""Blobs, and folders of them, that nothing but steps has use for."""
OF_ORIGINALS = frozenset({PREVIEW, WORST, DECODED})
"""What shows originals."""


@dataclass(frozen=True)
class Request:
    """What somebody asks for: a data set, a preset and what to change in it, how to judge it."""

    dataset_id: UUID
    preset: str
    config: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=dict)
    priority: int = 0

    @property
    def kept(self) -> dict[str, Any]:
        """As it stands in the row."""
        return {"preset": self.preset, "config": self.config, "evaluation": self.evaluation}

    def sha256(self) -> str:
        """Tells a repeated request from another one under the same key."""
        whole: list[object] = [str(self.dataset_id), self.preset, self.config]
        # Without one it is what it was when there was no evaluation to ask for, and no priority.
        whole += [self.evaluation] if self.evaluation or self.priority else []
        whole += [self.priority] if self.priority else []
        return digests.of(whole)


def create(session: Session, owner_id: UUID, request: Request, key: str | None) -> Protection:
    """A queued protection with its steps, or the one that the same idempotency key made before.

    Raises:
        AppError: 404, 409 or 422, saying what to change.
    """
    earlier = _earlier(session, owner_id, request, key)
    if earlier is not None:
        return earlier
    # Locked, so that it can't be deleted before it shows this protection.
    dataset = check(session, owner_id, request, lock=True)
    evaluation = planning.load_evaluation(request.evaluation)
    protection = Protection(
        owner_id=owner_id,
        dataset_id=dataset.id,
        dataset_name=dataset.name,
        dataset_sha256=dataset.sha256,
        state=ProtectionState.QUEUED,
        priority=request.priority,
        requested=request.kept,
        idempotency_key=key,
        request_sha256=request.sha256(),
        created_at=now(session),
    )
    session.add(protection)
    session.flush()
    steps.add(session, protection, StepKind.TRAIN, StepState.READY, [0.0])
    steps.add(session, protection, StepKind.PACKAGE, StepState.WAITING, [0.0])
    steps.add(
        session, protection, StepKind.EVALUATE, StepState.WAITING, [0.0] * evaluation.trainings
    )
    session.flush()
    known = {"dataset_sha256": dataset.sha256, "priority": request.priority}
    events.record(session, "protection.queued", protection, preset=request.preset, **known)
    return protection


def released(session: Session, owner_id: UUID, dataset_sha256: str) -> list[UUID]:
    """An owner's protections of an upload that have succeeded, oldest first."""
    query = select(Protection.id).where(
        Protection.owner_id == owner_id,
        Protection.dataset_sha256 == dataset_sha256,
        Protection.state == ProtectionState.SUCCEEDED,
    )
    return list(session.scalars(query.order_by(Protection.created_at)))


def check(session: Session, owner_id: UUID, request: Request, *, lock: bool = False) -> Dataset:
    """The data set that a request is about, if the request could be carried out.

    Raises:
        AppError: 404, 409 or 422, saying what to change.
    """
    dataset = datasets.get(session, owner_id, request.dataset_id, lock=lock)
    _check_ready(dataset)
    assert dataset.summary is not None
    train_images = training_images(dataset.summary["counts"])
    evaluation = planning.load_evaluation(request.evaluation)
    classes, side = dataset.summary["classes"], sides.summary_side(dataset.summary)
    planning.check(request.preset, request.config, classes, train_images, side)
    asked = request.preset, request.config, train_images, side
    weights.check(evaluation, planning.judges(evaluation, *asked))
    return dataset


def get(session: Session, owner_id: UUID, protection_id: UUID, *, lock: bool = False) -> Protection:
    """The caller's protection; with `lock`, as it stays until the transaction ends.

    Raises:
        AppError: 404, also for somebody else's.
    """
    protection = session.get(Protection, protection_id, with_for_update=lock or None)
    if protection is None or protection.owner_id != owner_id:
        raise not_found("protection", protection_id)
    return protection


def made_of(session: Session, dataset_id: UUID) -> list[UUID]:
    """Protections of a data set."""
    return list(session.scalars(select(Protection.id).where(Protection.dataset_id == dataset_id)))


def clean_originals(protection_ids: list[UUID]) -> None:
    """Remove what shows originals (`OF_ORIGINALS`) from protections whose data set was deleted; and
    all that is left of those that have not succeeded, which nobody can try again."""
    succeeded = Protection.state == ProtectionState.SUCCEEDED
    with reading() as session:
        wanted = select(Protection.id).where(Protection.id.in_(protection_ids), succeeded)
        kept = set(session.scalars(wanted))
    for protection_id in protection_ids:
        if protection_id not in kept:
            storage.remove(storage.protection_key(protection_id))
            continue
        _remove(protection_id, OF_ORIGINALS)


def _remove(protection_id: UUID, names: Iterable[str]) -> None:
    for name in names:
        key = storage.protection_key(protection_id, name)
        storage.remove(key)
        storage.remove_one(key)


def cancel(session: Session, owner_id: UUID, protection_id: UUID) -> Protection:
    """Ask for an end; at once if no worker is at it, else within seconds by that worker.

    Raises:
        AppError: 409, it is over already.
    """
    protection = get(session, owner_id, protection_id, lock=True)
    if protection.state is ProtectionState.CANCELLED:
        return protection
    if protection.state not in ACTIVE:
        raise AppError(
            409,
            "PROTECTION_FINISHED",
            f"Expected a queued or running protection, {protection_id} is {protection.state}.",
        )
    if not protection.cancel_requested:
        protection.cancel_requested = True
        session.flush()
        events.record(session, "protection.cancel_requested", protection)
    return steps.settle(session, protection_id)


def retry(session: Session, owner_id: UUID, protection_id: UUID) -> Protection:
    """Let a protection that failed go on where it did: by the same plan, to the same bytes.

    Raises:
        AppError: 409, it has not failed, or what it would go on from is gone.
    """
    # As `create` does: it can't be deleted before it shows this one going on.
    of_it = select(Protection.dataset_id).where(Protection.id == protection_id).scalar_subquery()
    locked = select(Dataset.id).where(Dataset.id == of_it)
    # Key shares pass: who moves a protection on, and has it, asks for one of its data set.
    session.execute(locked.with_for_update(key_share=True))
    protection = get(session, owner_id, protection_id, lock=True)
    if protection.state is not ProtectionState.FAILED:
        expected = f"Expected a protection that failed, {protection_id} is {protection.state}."
        raise AppError(409, "PROTECTION_NOT_FAILED", expected)
    if protection.dataset_id is None:
        gone = f"The data set of protection {protection_id} was deleted."
        raise AppError(409, "DATASET_DELETED", gone)
    assert protection.finished_at is not None
    kept_until = protection.finished_at + timedelta(seconds=settings().failed_keep_seconds)
    if now(session) > kept_until:
        raise AppError(
            409,
            "RETRY_TOO_LATE",
            f"What protection {protection_id} would go on from was kept until "
            f"{kept_until:%Y-%m-%d %H:%M} UTC; ask for a new one.",
        )
    kept = progress.of(session, [protection_id])[protection_id].share_kept
    # Not rounded: the ETA subtracts it.
    events.record(session, events.RETRY_REQUESTED, protection, share_kept=kept)
    steps.revive(session, protection)
    return protection


def delete(
    session: Session, owner_id: UUID, protection_id: UUID, why: str | None = None
) -> Protection:
    """Forget a protection; `clean` removes its blobs after the commit.

    Raises:
        AppError: 409 while it runs.
    """
    protection = get(session, owner_id, protection_id, lock=True)
    if protection.state in ACTIVE:
        raise AppError(
            409,
            "PROTECTION_ACTIVE",
            f"Protection {protection_id} is {protection.state}; cancel it first.",
        )
    archive = protection.archive_sha256
    told = {"why": why} if why else {}
    events.record(session, "protection.deleted", protection, archive_sha256=archive, **told)
    session.delete(protection)
    return protection


def clean(protection: Protection | None) -> None:
    """Remove what a protection that has ended has no more use for; call it after the commit.

    A protection that succeeded keeps its archive, its record and its checkpoints, which are keys;
    one that failed keeps all of it for a while, so that it can be tried again.
    """
    if protection is None:
        return
    if protection.state is ProtectionState.SUCCEEDED:
        clean_succeeded(protection.id)
    elif protection.state is ProtectionState.CANCELLED:
        storage.remove(storage.protection_key(protection.id))


def clean_succeeded(protection_id: UUID) -> None:
    """Remove what only the steps of a protection that has succeeded had use for (`OF_STEPS`)."""
    _remove(protection_id, OF_STEPS)


def _earlier(
    session: Session, owner_id: UUID, request: Request, key: str | None
) -> Protection | None:
    if key is None:
        return None
    earlier = session.scalar(
        select(Protection).where(Protection.owner_id == owner_id, Protection.idempotency_key == key)
    )
    if earlier is not None and earlier.request_sha256 != request.sha256():
        raise AppError(
            422,
            "IDEMPOTENCY_KEY_REUSED",
            f"Idempotency-Key {key!r} was used for another request, which made {earlier.id}.",
        )
    return earlier


def _check_ready(dataset: Dataset) -> None:
    if dataset.state is DatasetState.INGESTING:
        raise AppError(
            409,
            "DATASET_NOT_READY",
            f"Data set {dataset.id} is still being read.",
            retry_after_seconds=datasets.RETRY_AFTER_SECONDS,
        )
    if dataset.state is DatasetState.REJECTED:
        raise AppError(
            409, "DATASET_REJECTED", f"Data set {dataset.id} was rejected: {dataset.error}"
        )


def training_images(counts: dict[str, dict[str, int]]) -> int:
    """How many there are.

    Raises:
        AppError: 422, nothing could be set aside to test on.
    """
    if set(counts) == {"train"} and max(counts["train"].values()) < 2:
        raise AppError(
            422,
            "NOTHING_TO_TEST_ON",
            "Expected images in test/ or val/, or a class with two training images, got neither.",
        )
    return sum(counts["train"].values())
