"""`train`: freeze the plan, train the surrogate, keep its checkpoints."""

import io
import logging
import os
from collections.abc import Generator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, UInt8
from sqlalchemy.orm import Session
from torch import Tensor

from api import steps
from api.archive import Numbers
from api.db import AWAY, reading, transaction
from api.models import Dataset, Protection, Queue
from api.plans import planning, sides, speeds, weights, workload
from api.scheduling import endings, lending, outbox
from api.scheduling.leases import Claim
from sep_core import surrogate
from sep_core.arithmetic import prepare
from sep_core.cells import named
from sep_core.config import Plan, SEPConfig
from sep_core.patterns import class_patterns
from sep_core.protection import is_grey
from sep_core.surrogate import Checkpoint
from sep_core.training import Progress, most_ranks
from worker import checkpoints, decoded, facts, faults, pretrained, tensors
from worker.data import Job, load_index, load_job, patterns_key, training_key
from worker.faults import EXIT_RANK_LOST, RankLost
from worker.lease import check_held, store
from worker.resume import Keeper
from worker.steps import Work
from worker.together import Followers

LOOKED_AT_ONCE = 1024

log = logging.getLogger(__name__)


def run(claim: Claim) -> Work:
    """Goes on where an attempt before was broken off.

    Output: digests of the checkpoints and of the patterns, how the data were divided, and by what
    versions of the software.
    """
    freeze_plan(claim)
    job = load_job(claim)
    prepare(job.plan)
    split = tensors.split(job.index, job.config.held_out_percent, job.dataset_sha256)
    train, held = split.train, split.held_out
    yield from decoded.prepare_originals(job, held)
    pixels = yield from decoded.originals(job, train)
    _release(claim)
    labels = tensors.labels(train, job.index)
    state, kept = checkpoints.load_training(job)
    ensemble = list(checkpoints.restored(job, kept))
    classes, keeper = len(job.index.classes), Keeper(claim, training_key(job.protection_id))
    with _followers(claim, job) as others:
        yield from others.start()
        with others.join() as ranks:
            for event in surrogate.train(
                pixels, labels, classes, job.config, job.plan, state, ranks
            ):
                match event:
                    case Progress(done, total, point):
                        keeper.begin(done - 1)
                        if point is not None and keeper.is_due():
                            keeper.save({"training": point.state(), "kept": kept}, done)
                        progress = done, total + job.config.class_steps
                        yield progress
                    case Checkpoint():
                        kept.append(checkpoints.keep(job, len(kept), event))
                        ensemble.append(event)
    if job.plan.world_size > 1:
        _give_back(claim)
    indices = split.train.indices
    patterns = yield from _patterns(job, (pixels, labels), indices, ensemble, progress)
    return {
        "checkpoints": kept,
        "class_patterns_sha256": patterns,
        "train_images": len(train),
        "protected_train_images": int(job.is_protected[train.indices].sum()),
        "held_out_images": len(held),
        "held_out_from": held[0].split,
        "versions": dict(facts.measure(Queue.GPU).versions),
        "held_out_copies": split.copies,
        "held_out_seen": split.seen,
    }


def _patterns(
    job: Job,
    train: tuple[Tensor, Tensor],
    indices: Numbers,
    ensemble: list[Checkpoint],
    progress: tuple[int, int],
) -> Generator[tuple[int, int], None, str | None]:
    """Find and keep the classes' patterns; their digest, or None where none are asked for."""
    if not job.config.class_steps:
        return None
    done, total = progress
    file = io.BytesIO()
    changed = torch.from_numpy(job.is_protected[indices])
    grey = yield from _all_grey(train[0], changed, progress)
    for event in class_patterns(
        *(*train, len(job.index.classes), ensemble, job.config, job.plan), grey=grey
    ):
        match event:
            case Progress(steps_done, _):
                yield done + steps_done, total
            case Tensor():
                torch.save(event, file)
    return store(job.claim, patterns_key(job.protection_id), file)


def _all_grey(
    pixels: UInt8[Tensor, "n 3 s s"], changed: Bool[Tensor, " n"], progress: tuple[int, int]
) -> Generator[tuple[int, int], None, bool]:
    """Whether all images that are to be changed are, in however many channels they came."""
    for start in range(0, len(pixels), LOOKED_AT_ONCE):
        part = slice(start, start + LOOKED_AT_ONCE)
        if not is_grey(pixels[part][changed[part]]).all():
            return False
        yield progress
    return True


def _followers(claim: Claim, job: Job) -> Followers:
    check_held(claim)
    with transaction() as session:
        gpus = _lent(session, claim, job.plan, job.plan.world_size - 1)
    return Followers(job, gpus, partial(_end_process, claim))


def _give_back(claim: Claim) -> None:
    try:
        with transaction() as session:
            lending.give_back(session, claim)
    except AWAY:  # then they are free when this step ends
        log.exception("the GPUs of others were not given back")


def _end_process(claim: Claim, lost: RankLost) -> None:
    """Nothing else ends a wait for a process that is dead."""
    log.critical("%s This process ends.", lost)
    try:
        endings.end(claim, partial(endings.set_back, setback=faults.setback(lost)))
    except Exception:  # then it looks like a process that was killed
        log.exception("that another process is lost was not written")
    os._exit(EXIT_RANK_LOST)


def _lent(session: Session, claim: Claim, plan: Plan, wanted: int) -> list[str]:
    """Other GPUs of this host to train on, by what CUDA is to see."""
    if plan.device == "cpu" or wanted == 0:
        return []
    return lending.lend(session, claim, facts.name(), wanted)


def _most_ranks(images: int, config: SEPConfig) -> int:
    """A small network's layers are done before several GPUs have agreed on their gradients."""
    return 1 if config.surrogate in speeds.SMALL_NETWORKS else most_ranks(images, config)


def freeze_plan(claim: Claim) -> None:
    """Decide what is still open from the data and this worker, once."""
    with reading() as session:
        protection = session.get_one(Protection, claim.protection_id)
        if protection.plan is not None:
            return
        dataset = session.get_one(Dataset, protection.dataset_id)
        workers = facts.alike(session, Queue.GPU)
    assert protection.dataset_id is not None
    assert dataset.summary is not None
    index = load_index(protection.dataset_id)
    device = facts.remembered(facts.measure(Queue.GPU)).plan_device
    train_images = sum(dataset.summary["counts"]["train"].values())
    side, classes = sides.summary_side(dataset.summary), len(index.classes)
    config, plan = planning.freeze(
        protection.requested, classes, train_images, side, device, workers
    )
    asked = planning.load_evaluation(protection.requested.get("evaluation", {}))
    evaluation = weights.freeze(named(asked, config))
    pretrained.check(evaluation, config.input_pixels)
    train = tensors.split(index, config.held_out_percent, protection.dataset_sha256).train
    loads = workload.loads(config, plan, evaluation, index.records, len(train))
    costs = speeds.costs(loads, config.input_pixels, device)
    with transaction() as session:
        gpus = _lent(session, claim, plan, _most_ranks(len(train), config) - 1)
        plan = replace(plan, world_size=1 + len(gpus))
        steps.freeze(session, claim, config, plan, evaluation, costs)


def _release(claim: Claim) -> None:
    """Others can train on the originals meanwhile; they find them decoded."""
    with transaction() as session:
        steps.release(session, claim)
    outbox.try_to_send()
