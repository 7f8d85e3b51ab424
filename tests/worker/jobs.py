"""Jobs in this process: the worker's own code on real rows and blobs, without Celery between."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import torch
from sqlalchemy import select, update

from api import datasets, keys, protections, steps, storage
from api.db import reading, transaction
from api.evidence import report
from api.models import Dataset, Owner, Protection, Step, StepKind, StepState
from api.plans import weights
from api.plans.planning import load_plan
from api.scheduling import leases
from api.scheduling.joins import ORDER
from sep_core.config import NetworkName
from worker import facts, tasks
from worker.data import encoded_key, shard_key

SEED = "0123456789abcdef0123456789abcdef"
KINDS = (StepKind.INGEST, *ORDER)
CONFIG = {
    "seed": SEED,
    "epochs": 3,
    "checkpoints": 2,
    "appropriator_epochs": 2,
    "input_pixels": 16,
    "crop_padding": 2,
    "batch_size": 16,
    "steps": 3,
    "class_steps": 4,
    "learning_rate": 0.02,
    "step_levels": 3.0,
}


def owner() -> UUID:
    """The tester, made at the first call."""
    with transaction() as session:
        found = session.scalar(select(Owner.id).where(Owner.name == "tester"))
        if found is None:
            keys.create(session, "tester")
            found = session.scalars(select(Owner.id).where(Owner.name == "tester")).one()
        return found


def upload(archive: bytes) -> Dataset:
    """Store and ingest an archive."""
    dataset_id, who = uuid4(), owner()
    digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), archive)
    with transaction() as session:
        datasets.create(session, who, dataset_id, "test", digest, len(archive))
    work()
    with reading() as session:
        return session.get_one(Dataset, dataset_id)


def ask(dataset_id: UUID, evaluation: dict[str, Any] | None = None, **config: Any) -> UUID:
    """A queued protection."""
    request = protections.Request(dataset_id, "quick", CONFIG | config, evaluation or {})
    with transaction() as session:
        return protections.create(session, owner(), request, None).id


def give_weights(network: NetworkName, content: object) -> str:
    """Put a file of weights where the operator would; its digest."""
    file = weights.path(network)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ready() -> list[Step]:
    """Steps that a worker may take, in the order of their kinds."""
    with reading() as session:
        found = session.scalars(select(Step).where(Step.state == StepState.READY)).all()
    return sorted(found, key=lambda step: (KINDS.index(step.kind), step.created_at, step.index))


def work(before: Callable[[Step], None] = lambda _: None, until: StepKind | None = None) -> None:
    """Run ready steps until there are none, or one of kind `until` is next."""
    skipped: set[UUID] = set()
    while steps := [step for step in ready() if step.id not in skipped]:
        if steps[0].kind is until:
            return
        before(steps[0])
        run(steps[0].id)
        skipped.add(steps[0].id)


def run(step_id: UUID) -> None:
    """Run this step, whoever's turn it is, if it may be claimed."""
    with transaction() as session:
        claim = leases.claim(session, step_id, facts.name())
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    if claim is not None:
        tasks.run_claimed(claim)


def wait() -> None:
    """Until no step is held back: here, at once."""
    with transaction() as session:
        session.execute(update(Step).values(not_before=None))


def shard(protection_id: UUID, index: int = 0) -> str:
    """Key of a shard's pixels, by the protection's plan as it is now."""
    plan = show(protection_id).plan
    assert plan is not None
    return shard_key(protection_id, load_plan(plan), index)


def encoded(protection_id: UUID, index: int = 0) -> str:
    """Key of a part's files, by the same."""
    plan = show(protection_id).plan
    assert plan is not None
    return encoded_key(protection_id, load_plan(plan), index)


def show(protection_id: UUID) -> Protection:
    """The row as it is now."""
    with reading() as session:
        return session.get_one(Protection, protection_id)


def output(protection_id: UUID, kind: StepKind) -> Any:
    """Of the first step of a kind."""
    with reading() as session:
        parts = steps.of(session, protection_id)
    return next(step.output for step in parts if step.kind is kind)


def protect(archive: bytes, **config: Any) -> tuple[Protection, bytes]:
    """A whole job; returns its row and the archive that leaves."""
    protection_id = ask(upload(archive).id, **config)
    work()
    protection = show(protection_id)
    assert protection.error is None
    return protection, storage.read(storage.protection_key(protection_id, protections.ARCHIVE))


def members(archive: bytes) -> dict[str, bytes]:
    """Names and contents of an archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


def claim() -> leases.Claim:
    """The first step that is ready."""
    with transaction() as session:
        claimed = leases.claim(session, ready()[0].id, "a test")
    assert claimed is not None
    return claimed


def begin() -> leases.Claim:
    """Claim the first step that is ready, and start its protection."""
    claimed = claim()
    with transaction() as session:
        steps.start(session, claimed)
    return claimed


def made_at(key: str) -> int:
    """When a blob was stored, in nanoseconds."""
    path = storage.local_path(key)
    assert path is not None
    return path.stat().st_mtime_ns


def record_of(protection: Protection) -> dict[str, Any]:
    """The owner's record."""
    with reading() as session:
        parts = steps.of(session, protection.id)
    record: report.Record = json.loads(b"".join(report.write(protection, parts)))
    return record
