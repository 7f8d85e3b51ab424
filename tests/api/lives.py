"""The lives of data sets and protections in steps, without HTTP and without computing."""

from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select

from api import datasets, db, keys, protections, steps, storage
from api.db import transaction
from api.models import Dataset, Protection, Step, StepKind, StepState
from api.plans import planning
from api.plans.speeds import Device
from api.scheduling import endings, leases
from api.scheduling.leases import Claim
from sep_core.cells import named
from tests.api.archives import two_classes, zip_bytes
from worker import tasks

JSON = dict[str, Any]

ARCHIVE_BYTES = bytes(range(256)) * 40
CPU = Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)
COSTS = {
    StepKind.TRAIN: [4.0],
    StepKind.PERTURB: [2.0, 2.0],
    StepKind.ENCODE: [0.25, 0.25],
    StepKind.PACKAGE: [0.5],
    StepKind.EVALUATE: [3.0, 3.0],
}


def owner(name: str) -> UUID:
    with db.transaction() as session:
        return keys.authenticate(session, keys.create(session, name)).owner_id


def small_zip(**more: bytes) -> bytes:
    return zip_bytes(two_classes(**more))


def uploaded(owner_id: UUID, name: str = "pets") -> UUID:
    """A data set without HTTP, to be read."""
    dataset_id = uuid4()
    data = small_zip()
    digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), data)
    with db.transaction() as session:
        datasets.create(session, owner_id, dataset_id, name, digest, len(data))
    return dataset_id


def ingested(owner_id: UUID, name: str = "pets") -> UUID:
    """One that is read."""
    dataset_id = uploaded(owner_id, name)
    work()
    return dataset_id


def work() -> None:
    """Run what the `cpu` workers would run, here: the real task on the real database."""
    with db.reading() as session:
        waiting = select(Step.id).where(Step.state == StepState.READY, Step.kind == StepKind.INGEST)
        ready = session.scalars(waiting).all()
    for step_id in ready:
        tasks.run_step(str(step_id))


def requested(
    owner_id: UUID, dataset_id: UUID, key: str | None = None, **evaluation: object
) -> UUID:
    """A queued protection."""
    request = protections.Request(dataset_id, "quick", {}, evaluation)
    with db.transaction() as session:
        return protections.create(session, owner_id, request, key).id


def steps_of(protection_id: UUID) -> list[Step]:
    with db.reading() as session:
        return steps.of(session, protection_id)


def step(protection_id: UUID, kind: StepKind, index: int = 0) -> Step:
    return next(s for s in steps_of(protection_id) if (s.kind, s.index) == (kind, index))


def states(protection_id: UUID) -> list[tuple[StepKind, StepState]]:
    return [(each.kind, each.state) for each in steps_of(protection_id)]


def protection(protection_id: UUID) -> Protection:
    with db.reading() as session:
        return session.get_one(Protection, protection_id)


def dataset(dataset_id: UUID) -> Dataset:
    with db.reading() as session:
        return session.get_one(Dataset, dataset_id)


def claimed(step_id: UUID, worker: str = "worker") -> Claim | None:
    with db.transaction() as session:
        claim = leases.claim(session, step_id, worker)
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    return claim


def must_claim(protection_id: UUID, kind: StepKind, index: int = 0) -> Claim:
    claim = claimed(step(protection_id, kind, index).id)
    assert claim is not None
    return claim


def half_done_in_a_minute(claim: Claim) -> None:
    with db.transaction() as session:
        session.get_one(Step, claim.step_id).started_at = db.now(session) - timedelta(minutes=1)
        leases.report(session, claim, 5, 10)


def freeze(claim: Claim) -> None:
    """As the `train` step does: a plan with two shards."""
    with db.transaction() as session:
        requested = session.get_one(Protection, claim.protection_id).requested
        config, plan = planning.freeze(requested, 2, 5_000, 32, CPU)
        evaluation = named(planning.load_evaluation(requested["evaluation"]), config)
        costs = COSTS | {StepKind.EVALUATE: [3.0] * evaluation.trainings}
        steps.freeze(session, claim, config, plan, evaluation, costs)
        steps.release(session, claim)


def finish(claim: Claim, output: JSON | None = None) -> None:
    with db.transaction() as session:
        ended = steps.finish(session, claim, output or {})
    protections.clean(ended)


def train(protection_id: UUID) -> None:
    """Run the `train` step: what follows are two ready shards."""
    claim = must_claim(protection_id, StepKind.TRAIN)
    freeze(claim)
    storage.write(storage.protection_key(protection_id, "checkpoints/000.pt"), b"key")
    finish(claim, TRAINED)


def perturb(protection_id: UUID) -> None:
    """Run both shards: what follows is a ready `package`."""
    for index in (0, 1):
        name = f"shards/{index:05d}.bin"
        digest = storage.write(storage.protection_key(protection_id, name), b"pixels")
        finish(must_claim(protection_id, StepKind.PERTURB, index), {"sha256": digest})
        finish(must_claim(protection_id, StepKind.ENCODE, index), {"sha256": digest})


def succeed(protection_id: UUID, data: bytes = ARCHIVE_BYTES) -> None:
    """Run every step to its end, with outputs and blobs like real ones."""
    train(protection_id)
    perturb(protection_id)
    digest = storage.write(storage.protection_key(protection_id, protections.ARCHIVE), data)
    record = b'{"files": [], "refused": [{"name": "a.txt", "code": "C", "reason": "no image"}]}'
    storage.write(storage.protection_key(protection_id, protections.RECORD), record)
    for name in (protections.PREVIEW, protections.WORST):
        storage.write(storage.protection_key(protection_id, name), b"\x89PNG")
    packaged = {"archive_sha256": digest, "archive_bytes": len(data), **CHANGE}
    finish(must_claim(protection_id, StepKind.PACKAGE), packaged)
    for each in steps_of(protection_id):
        if each.kind is StepKind.EVALUATE:
            last = 0.3 if each.index % 2 else 0.9
            finish(must_claim(protection_id, each.kind, each.index), accuracy(last))


def accuracy(
    last: float, peak: float | None = None, renamed: float | None = None, **by_class: float
) -> JSON:
    """Of an `evaluate` step; of each class the last accuracy where another is given.

    Renaming gains nothing, or leads to `renamed` in every epoch.
    """
    curve = [0.5, last if peak is None else peak, last]
    read = curve if renamed is None else [renamed] * 3
    return {
        "accuracy_by_epoch": curve,
        "accuracy_last": last,
        "accuracy_peak": max(curve),
        "renamed_by_epoch": read,
        "renamed_last": read[-1],
        "renamed_peak": max(read),
        "by_class": {
            name: {
                "images": images,
                "recognised_last": round(images * by_class.get(name, last)),
                "recognised_peak": round(images * max(curve)),
            }
            for name, images in (("cat", 4000), ("dog", 4000))
        },
    }


TRAINED = {
    "checkpoints": [{"epoch": 20, "sha256": "1" * 64}],
    "train_images": 4,
    "held_out_images": 2,
    "held_out_from": "test",
}
CHANGE = {
    "images": 4,
    "largest_change_levels": 8,
    "changed_share": 0.97,
    "unchanged_images": 0,
    "ssim_mean": 0.95,
    "ssim_p5": 0.9,
    "psnr_db": 32.1,
    "histogram": [3, 0, 0, 0, 0, 0, 0, 0, 97] + [0] * 56,
    "shows": {"ssim_below": 0.92, "images": 1, "share": 0.25},
    "may_show": {"ssim_below": 0.95, "images": 3, "share": 0.75},
    "worst": [{"name": "a.png", "ssim": 0.9, "psnr_db": None, "changed_share": 0.0}],
}


def fail(claim: Claim, code: str) -> None:
    endings.end(claim, partial(endings.fail, code=code, message=f"{code} happened."))


def cancel(owner_id: UUID, protection_id: UUID) -> Protection:
    with transaction() as session:
        ended = protections.cancel(session, owner_id, protection_id)
    protections.clean(ended)
    return ended


def request(dataset_id: UUID) -> protections.Request:
    return protections.Request(dataset_id, "quick", {})
