"""Checkpoints of the surrogate among a protection's blobs, and the state of its training."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from api import storage
from sep_core.surrogate import Checkpoint, restore
from sep_core.training import State
from worker.data import Job, checkpoint_key, training_key

Kept = dict[str, Any]
"""What the `train` step tells of a checkpoint: after which epoch, and its digest."""


def keep(job: Job, index: int, checkpoint: Checkpoint) -> Kept:
    """Store the checkpoint."""
    file = io.BytesIO()
    state = {name: value.cpu() for name, value in checkpoint.network.state_dict().items()}
    torch.save({"state": state, "class_means": checkpoint.class_means.cpu()}, file)
    digest = storage.write(checkpoint_key(job.protection_id, index), file)
    return {"epoch": checkpoint.epoch, "sha256": digest}


def restored(job: Job, epochs: Sequence[int]) -> Iterator[Checkpoint]:
    """The first stored checkpoints; `epochs` are theirs."""
    for index, epoch in enumerate(epochs):
        stored = _load(storage.read(checkpoint_key(job.protection_id, index)))
        yield restore(stored["state"], stored["class_means"], epoch, job.config, job.plan)


def save_training(job: Job, training: State, kept: Sequence[Kept]) -> None:
    """Store what the training goes on from, and what it has kept until then."""
    file = io.BytesIO()
    torch.save({"training": training, "kept": list(kept)}, file)
    storage.write(training_key(job.protection_id), file)


def load_training(job: Job) -> tuple[State | None, list[Kept]]:
    """What `save_training` stored last, in an attempt before this one."""
    content = storage.read_if_there(training_key(job.protection_id))
    if content is None:
        return None, []
    stored = _load(content)
    return stored["training"], stored["kept"]


def _load(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)
