"""`evaluate`: what an appropriator learns from the originals or from what leaves: one cell."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from api import baselines
from api.db import reading, transaction
from api.leases import Claim, held
from sep_core.cells import Cell, cell_config, cells
from sep_core.evaluation import Accuracy, appropriate
from sep_core.training import Progress
from worker import decoded, tensors
from worker.data import Job, load_job
from worker.steps import Output, Work


def run(claim: Claim) -> Work:
    """Output: accuracy on clean held-out images after every epoch, the last and the peak.

    On the originals it is the one that an earlier protection found, where there is one.
    """
    job = load_job(claim)
    cell = cells(job.evaluation)[claim.index]
    if not cell.clean:
        return (yield from _train(job, cell)) | {"reused": False}
    key = baselines.digest(job.dataset_sha256, job.config, job.plan, cell, _versions())
    with reading() as session:
        kept = baselines.find(session, job.dataset_id, key)
    if kept is not None:
        return kept | {"reused": True}
    output = yield from _train(job, cell)
    with transaction() as session:
        if held(session, claim) is not None:
            baselines.keep(session, job.dataset_id, key, output)
    return output | {"reused": False}


def _train(job: Job, cell: Cell) -> Work:
    tensors.prepare(job.plan)
    train, held_out = tensors.split(job.index, job.config.held_out_percent, job.dataset_sha256)
    test_pixels = yield from decoded.originals(job, held_out)
    pixels = yield from (decoded.originals if cell.clean else decoded.released)(job, train)
    curve: list[float] = []
    for event in appropriate(
        (pixels, tensors.labels(train, job.index)),
        (test_pixels, tensors.labels(held_out, job.index)),
        len(job.index.classes),
        cell_config(job.config, cell),
        job.plan,
        countermeasure=cell.countermeasure,
        room=tensors.room,
    ):
        match event:
            case Progress(done, total):
                yield done, total
            case Accuracy(_, accuracy):
                curve.append(round(accuracy, 6))
    return _output(cell, curve)


def _output(cell: Cell, curve: list[float]) -> Output:
    return _described(cell) | {
        "accuracy_by_epoch": curve,
        "accuracy_last": curve[-1],
        "accuracy_peak": max(curve),
    }


def _described(cell: Cell) -> dict[str, Any]:
    return {"network": cell.network, "countermeasure": cell.countermeasure, "seed": cell.seed}


def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in ("sepgate", "torch", "torchvision")}
