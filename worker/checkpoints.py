"""Checkpoints of the surrogate among a protection's blobs, and the state of its training."""

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from api import storage
from sep_core.surrogate import Checkpoint, restore
from sep_core.training import State
from worker import resident, resume
from worker.data import Job, check_digest, checkpoint_key, training_key
from worker.lease import store

log = logging.getLogger(__name__)

Kept = dict[str, Any]
"""What the `train` step tells of a checkpoint: after which epoch, and its digest."""


def keep(job: Job, index: int, checkpoint: Checkpoint) -> Kept:
    """Store the checkpoint.

    Raises:
        LeaseLost: break off.
    """
    file = io.BytesIO()
    state = {name: value.cpu() for name, value in checkpoint.network.state_dict().items()}
    torch.save({"state": state, "class_means": checkpoint.class_means.cpu()}, file)
    digest = store(job.claim, checkpoint_key(job.protection_id, index), file)
    return {"epoch": checkpoint.epoch, "sha256": digest}


def restored(job: Job, kept: Sequence[Kept]) -> Iterator[Checkpoint]:
    """The first stored checkpoints, of which that is told.

    Raises:
        AppError: BLOB_CHANGED.
    """
    for index, told in enumerate(kept):
        stored = load(checkpoint_key(job.protection_id, index), told["sha256"])
        yield restore(stored["state"], stored["class_means"], told["epoch"], job.config, job.plan)


def ensemble(job: Job, told: Sequence[Kept]) -> Sequence[Checkpoint]:
    """All of them, restored once for the shards that this process takes in a row.

    To restore fifteen large networks may take a tenth of the time that a GPU takes for a shard.

    Raises:
        AppError: BLOB_CHANGED.
    """
    digests = tuple(each["sha256"] for each in told)
    key = job.protection_id, job.plan, digests
    return resident.kept(key, lambda: list(restored(job, told)))


def load_training(job: Job) -> tuple[State | None, list[Kept]]:
    """What the surrogate's training goes on from, and the checkpoints that it had kept until then.

    Nothing where that, or a checkpoint that it counts on, is damaged: the training begins anew.
    """
    stored = resume.load(training_key(job.protection_id))
    if stored is None:
        return None, []
    if not all(_is_whole(job, index, each) for index, each in enumerate(stored["kept"])):
        log.warning("a checkpoint is damaged: the training begins anew")
        return None, []
    return stored["training"], stored["kept"]


def _is_whole(job: Job, index: int, kept: Kept) -> bool:
    content = storage.read_if_there(checkpoint_key(job.protection_id, index))
    return content is not None and hashlib.sha256(content).hexdigest() == kept["sha256"]


def load(key: str, sha256: str) -> Any:
    """What was saved there.

    Raises:
        AppError: BLOB_CHANGED.
    """
    content = storage.read(key)
    check_digest(key, hashlib.sha256(content).hexdigest(), sha256)
    return torch.load(io.BytesIO(content), weights_only=True)
