"""The life of a protection and its steps. The sole writer of their state.

Every change ends in `settle`, which reads the steps and moves the protection on: joins are rows.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api import datasets, leases, planning, storage
from api.db import now
from api.errors import AppError, not_found
from api.leases import Claim
from api.models import (
    ACTIVE,
    Dataset,
    DatasetState,
    Protection,
    ProtectionState,
    Step,
    StepKind,
    StepState,
    move,
)
from sep_core.config import Plan, SEPConfig, as_dict

ARCHIVE = "archive.zip"
RECORD = "record.json"
PREVIEW = "before-after.png"
CHECKPOINTS = "checkpoints"
SHARDS = "shards"

# Joins: a kind of step becomes ready when all steps of the kinds before it are done.
ORDER = (StepKind.TRAIN, StepKind.PERTURB, StepKind.PACKAGE, StepKind.EVALUATE)
CLEAN, PROTECTED = 0, 1
"""Indices of the two `evaluate` steps."""


@dataclass(frozen=True)
class Request:
    """What somebody asks for: a data set, a preset's name and what to change in it."""

    dataset_id: UUID
    preset: str
    config: dict[str, Any]

    def sha256(self) -> str:
        """Tells a repeated request from another one under the same key."""
        whole = [str(self.dataset_id), self.preset, self.config]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def create(session: Session, owner_id: UUID, request: Request, key: str | None) -> Protection:
    """A queued protection with its steps, or the one that the same idempotency key made before.

    Raises:
        AppError: 404, 409 or 422, saying what to change.
    """
    earlier = _earlier(session, owner_id, request, key)
    if earlier is not None:
        return earlier
    dataset = _ready_dataset(session, owner_id, request.dataset_id)
    assert dataset.summary is not None
    train_images = _training_images(dataset.summary["counts"])
    planning.check(request.preset, request.config, len(dataset.summary["classes"]), train_images)
    protection = Protection(
        owner_id=owner_id,
        dataset_id=dataset.id,
        dataset_name=dataset.name,
        dataset_sha256=dataset.sha256,
        state=ProtectionState.QUEUED,
        requested={"preset": request.preset, "config": request.config},
        idempotency_key=key,
        request_sha256=request.sha256(),
        created_at=now(session),
    )
    session.add(protection)
    session.flush()
    _add_steps(session, protection, StepKind.TRAIN, StepState.READY, [0.0])
    _add_steps(session, protection, StepKind.PACKAGE, StepState.WAITING, [0.0])
    _add_steps(session, protection, StepKind.EVALUATE, StepState.WAITING, [0.0, 0.0])
    session.flush()
    return protection


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


def clean_previews(protection_ids: list[UUID]) -> None:
    """Remove the pictures, which show originals, of protections whose data set was deleted."""
    for protection_id in protection_ids:
        storage.remove_one(storage.protection_key(protection_id, PREVIEW))


def steps_of(session: Session, protection_id: UUID) -> list[Step]:
    """All steps, in the order in which they run."""
    steps = session.scalars(select(Step).where(Step.protection_id == protection_id)).all()
    return sorted(steps, key=lambda step: (ORDER.index(step.kind), step.index))


def start(session: Session, claim: Claim) -> Protection:
    """The first claimed step sets the protection running."""
    protection = session.get_one(Protection, claim.protection_id)
    if protection.state is ProtectionState.QUEUED:
        move(session, protection, ProtectionState.RUNNING, started_at=now(session))
    return protection


def freeze(
    session: Session,
    claim: Claim,
    config: SEPConfig,
    plan: Plan,
    costs: dict[StepKind, list[float]],
) -> Protection:
    """Keep configuration and plan on the row, once, and add the `perturb` steps that follow."""
    lost = leases.held(session, claim) is None  # locks step, then protection: as all others do
    protection = session.get_one(Protection, claim.protection_id, with_for_update=True)
    if lost or protection.plan is not None:
        return protection
    protection.config, protection.plan = as_dict(config), as_dict(plan)
    _add_steps(session, protection, StepKind.PERTURB, StepState.WAITING, costs[StepKind.PERTURB])
    for step in steps_of(session, protection.id):
        step.cost = costs[step.kind][step.index]
    return protection


def finish_step(session: Session, claim: Claim, output: dict[str, Any]) -> Protection | None:
    """A step is done; None if its lease was lost, and then nothing is written."""
    step = leases.held(session, claim)
    if step is None:
        return None
    leases.finish(session, step, output)
    return settle(session, step)


def fail_step(session: Session, claim: Claim, code: str, message: str) -> Protection | None:
    """A step failed for good, and with it the protection."""
    step = leases.held(session, claim)
    if step is None:
        return None
    leases.fail(session, step, code, message)
    return settle(session, step)


def stop_step(session: Session, claim: Claim, *, counts: bool) -> Protection | None:
    """A step was broken off: cancelled, drained, or to be tried again."""
    step = leases.held(session, claim)
    if step is None:
        return None
    leases.give_back(session, step, counts=counts)
    return settle(session, step)


def settle(session: Session, step: Step) -> Protection:
    """Move the protection of a step that has just changed on to where its steps say it is."""
    protection = session.scalars(
        select(Protection)
        .where(Protection.id == step.protection_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
    steps = steps_of(session, protection.id)
    if protection.state not in ACTIVE or any(s.state is StepState.RUNNING for s in steps):
        # Whoever is still running settles after us; the row's lock puts us in an order.
        return protection
    failed = next((s for s in steps if s.state is StepState.FAILED), None)
    at = now(session)
    if protection.cancel_requested:
        move(session, protection, ProtectionState.CANCELLED, finished_at=at)
    elif failed is not None:
        move(
            session,
            protection,
            ProtectionState.FAILED,
            finished_at=at,
            error_code=failed.error_code,
            error=failed.error,
        )
    elif all(s.state is StepState.DONE for s in steps):
        _succeed(session, protection, steps)
    else:
        _make_ready(session, steps)
    return protection


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
    protection.cancel_requested = True
    session.flush()
    return settle(session, steps_of(session, protection_id)[0])


def delete(session: Session, owner_id: UUID, protection_id: UUID) -> Protection:
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
    session.delete(protection)
    return protection


def clean(protection: Protection | None) -> None:
    """Remove what a protection that has ended has no more use for; call it after the commit.

    A protection that succeeded keeps its archive, its record and its checkpoints, which are keys.
    """
    if protection is None or protection.state in ACTIVE:
        return
    succeeded = protection.state is ProtectionState.SUCCEEDED
    storage.remove(storage.protection_key(protection.id, SHARDS if succeeded else ""))


def eta_seconds(session: Session, protection: Protection, steps: list[Step]) -> float | None:
    """Seconds to go, from the work done since the start; None before there is any to judge by."""
    if protection.state is not ProtectionState.RUNNING or protection.started_at is None:
        return None
    total = sum(step.cost for step in steps)
    done = sum(step.cost * share_done(step) for step in steps)
    elapsed = (now(session) - protection.started_at).total_seconds()
    return elapsed * (total - done) / done if done > 0 else None


def progress(steps: list[Step]) -> float:
    """Share of the whole work that is done, in [0, 1]; 0 until the costs are known."""
    total = sum(step.cost for step in steps)
    return sum(step.cost * share_done(step) for step in steps) / total if total else 0.0


def share_done(step: Step) -> float:
    """Progress of a step in [0, 1]."""
    if step.state is StepState.DONE:
        return 1.0
    running = step.state is StepState.RUNNING and step.progress_total > 0
    return step.progress_done / step.progress_total if running else 0.0


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


def _ready_dataset(session: Session, owner_id: UUID, dataset_id: UUID) -> Dataset:
    # Locked, so that it can't be deleted before it shows this protection.
    dataset = datasets.get(session, owner_id, dataset_id, lock=True)
    if dataset.state is DatasetState.INGESTING:
        raise AppError(
            409,
            "DATASET_NOT_READY",
            f"Data set {dataset_id} is still being read.",
            retry_after_seconds=datasets.RETRY_AFTER_SECONDS,
        )
    if dataset.state is DatasetState.REJECTED:
        raise AppError(
            409, "DATASET_REJECTED", f"Data set {dataset_id} was rejected: {dataset.error}"
        )
    return dataset


def _training_images(counts: dict[str, dict[str, int]]) -> int:
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


def _add_steps(
    session: Session, protection: Protection, kind: StepKind, state: StepState, costs: list[float]
) -> None:
    for index, cost in enumerate(costs):
        session.add(
            Step(
                protection_id=protection.id,
                kind=kind,
                index=index,
                state=state,
                cost=cost,
                created_at=protection.created_at,
            )
        )
    session.flush()


def _make_ready(session: Session, steps: list[Step]) -> None:
    """The first kind that is not done becomes ready; the rest waits for it."""
    for _, alike in groupby(steps, key=lambda step: step.kind):
        unfinished = [step for step in alike if step.state is not StepState.DONE]
        for step in unfinished:
            if step.state is StepState.WAITING:
                move(session, step, StepState.READY)
        if unfinished:
            return


def _succeed(session: Session, protection: Protection, steps: list[Step]) -> None:
    package = next(step for step in steps if step.kind is StepKind.PACKAGE)
    assert package.output is not None
    session.execute(
        update(Protection)
        .where(Protection.id == protection.id)
        .values(
            archive_sha256=package.output["archive_sha256"],
            archive_bytes=package.output["archive_bytes"],
        )
    )
    move(session, protection, ProtectionState.SUCCEEDED, finished_at=now(session))
