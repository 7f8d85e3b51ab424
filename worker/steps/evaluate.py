"""`evaluate`: what an appropriator learns from the originals or from what leaves: one cell."""

import logging
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from api import progress, protections, storage
from api.archive import ImageRecord, words
from api.db import AWAY, now, reading, transaction
from api.evidence import baselines
from api.models import Queue
from api.scheduling.leases import Claim
from sep_core.arithmetic import prepare
from sep_core.cells import Cell, cell_config, cells, weights_sha256
from sep_core.evaluation import Accuracy, appropriate
from sep_core.training import Progress
from worker import decoded, facts, pretrained, resume, tensors
from worker.data import Job, evaluation_key, load_job
from worker.lease import StepPostponed, check_held
from worker.resume import Keeper
from worker.steps import Output, Work

log = logging.getLogger(__name__)

POSTPONED_SECONDS, POSTPONED_MAX_SECONDS = 5, 300


def run(claim: Claim) -> Work:
    """Output: accuracy on clean held-out images after every epoch, the last and the peak.

    The same once the network's answers are renamed (`renamed_...`, see `sep_core.renaming`). Of
    each class how many images there were, and how many were recognised after the last epoch and
    after the one of the peak accuracy; of the classes to protect, where they are named, both
    accuracies on them (`named`).

    On the originals it is the one that another protection found, where there is one. A training
    that diverged has `diverged`, a sentence, in place of accuracies: the first of each kind apart,
    without which nothing can be said of the protection.

    Raises:
        StepPostponed: another protection's step is at the same training.
        FloatingPointError: the first training on these images diverged.
    """
    job = load_job(claim)
    cell = cells(job.evaluation)[claim.index]
    if not cell.clean:
        _check_archive(job)
        output = yield from _train(claim, job, cell)
        _check_archive(job)
        return output | {"reused": False}
    begun = weights_sha256(job.evaluation, cell.network, cell.countermeasure)
    versions = facts.measure(Queue.GPU).versions
    key = baselines.digest(job.dataset_sha256, job.config, job.plan, cell, versions, begun)
    with transaction() as session:
        kept = baselines.find(session, job.dataset_id, key)
        ours = kept is None and baselines.take(session, job.dataset_id, key, claim)
    if kept is not None and "diverged" in kept and cell in cells(job.evaluation)[:2]:
        raise FloatingPointError(kept["diverged"])
    if kept is not None:
        return kept | {"reused": True}
    if not ours:
        check_held(claim)
        raise StepPostponed(_wait_seconds(job, key))
    output = yield from _train(claim, job, cell)
    try:
        with transaction() as session:
            baselines.keep(session, job.dataset_id, key, claim, output)
    except AWAY:  # what took hours is not lost with it: the step's end is retried
        log.exception("the baseline was not kept")
    return output | {"reused": False}


def _check_archive(job: Job) -> None:
    """It is what leaves, though of evaluations only the first may read it.

    Raises:
        FileNotFoundError: it is lost.
    """
    key = storage.protection_key(job.protection_id, protections.ARCHIVE)
    if storage.size_if_there(key) is None:
        raise FileNotFoundError(key)


def _wait_seconds(job: Job, key: str) -> float:
    """Half of what the other training will still take, as far as can be told."""
    with reading() as session:
        other = baselines.trainer(session, job.dataset_id, key)
        eta = progress.step_eta_seconds(other, now(session)) if other is not None else None
    return min(max((eta or 0) / 2, POSTPONED_SECONDS), POSTPONED_MAX_SECONDS)


def _train(claim: Claim, job: Job, cell: Cell) -> Work:
    try:
        return (yield from _appropriate(claim, job, cell))
    except FloatingPointError as error:
        images = "originals" if cell.clean else "what leaves"
        sentence = f"{error} It was on {images}, seed {cell.seed}."
        if cell in cells(job.evaluation)[:2]:
            raise FloatingPointError(sentence) from error
        log.warning("%s", sentence)
        return _described(cell) | {"diverged": sentence}


def _appropriate(claim: Claim, job: Job, cell: Cell) -> Work:
    prepare(job.plan)
    backbone = pretrained.of_cell(job.evaluation, cell, job.config.input_pixels)
    train, held_out, *_ = tensors.split(job.index, job.config.held_out_percent, job.dataset_sha256)
    test_pixels = yield from decoded.originals(job, held_out)
    pixels = yield from (decoded.originals if cell.clean else decoded.released)(job, train)
    key = evaluation_key(job.protection_id, claim.index)
    stored, keeper = resume.load(key), Keeper(claim, key)
    judging = [held_out.sha256(), baselines.FIGURES]
    if stored is None or stored.get("judging") != judging:  # of a version that judged otherwise
        stored = {"training": None, "curve": []}
    if stored["training"]:  # before images are changed again, which is progress of no training
        keeper.begin(stored["done"])
    curve = [Accuracy(*point) for point in stored["curve"]]
    for event in appropriate(
        (pixels, tensors.labels(train, job.index)),
        (test_pixels, tensors.labels(held_out, job.index)),
        len(job.index.classes),
        cell_config(job.config, cell),
        job.plan,
        countermeasure=cell.countermeasure,
        pretrained=backbone,
        room=tensors.room,
        resumed=stored["training"],
    ):
        match event:
            case Progress(done, total, point):
                keeper.begin(done - 1)
                if point is not None and keeper.is_due():
                    points = [astuple(accuracy) for accuracy in curve]
                    state = {"training": point.state(), "curve": points, "judging": judging}
                    keeper.save(state, done)
                yield done, total
            case Accuracy():
                curve.append(event)
    by_class = _by_class(curve, held_out, job.index.classes)
    named = {} if cell.clean else _named(job, curve, by_class)
    return _output(cell, curve, len(held_out)) | {"by_class": by_class} | named


def _output(cell: Cell, curve: Sequence[Accuracy], images: int) -> Output:
    renamed = [sum(point.renamed) / images for point in curve]
    return (
        _described(cell)
        | _figures("accuracy", [point.accuracy for point in curve])
        | _figures("renamed", renamed)
    )


def _figures(name: str, by_epoch: Sequence[float]) -> Output:
    rounded = [round(value, 6) for value in by_epoch]
    return {
        f"{name}_by_epoch": rounded,
        f"{name}_last": rounded[-1],
        f"{name}_peak": max(rounded),
    }


def _by_class(
    curve: Sequence[Accuracy], held_out: Sequence[ImageRecord], classes: Sequence[str]
) -> dict[str, Any]:
    names, numbers = words(held_out, "class_name")
    tested = dict(zip(names, np.bincount(numbers, minlength=len(names)).tolist(), strict=True))
    last, peak = curve[-1], max(curve, key=lambda point: point.accuracy)
    return {
        name: {
            "images": tested.get(name, 0),
            "recognised_last": last.recognised[label],
            "recognised_peak": peak.recognised[label],
        }
        for label, name in enumerate(classes)
    }


def _named(job: Job, curve: Sequence[Accuracy], by_class: dict[str, Any]) -> dict[str, Any]:
    """What early stopping gets of the classes to protect, where they are named.

    Not on the originals: these trainings are kept, whatever is named.
    """
    names = job.config.protected_classes or ()
    images = sum(by_class[name]["images"] for name in names)
    if not images:
        return {}
    labels = [job.index.classes.index(name) for name in names]

    def of_these(right: tuple[int, ...]) -> float:
        return sum(right[label] for label in labels) / float(images)

    accuracy = [of_these(point.recognised) for point in curve]
    renamed = [of_these(point.renamed) for point in curve]
    return {"named": _figures("accuracy", accuracy) | _figures("renamed", renamed)}


def _described(cell: Cell) -> dict[str, Any]:
    return {"network": cell.network, "countermeasure": cell.countermeasure, "seed": cell.seed}
