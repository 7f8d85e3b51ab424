"""`evaluate`: what an appropriator learns from the originals (0) and from what leaves (1)."""

from api.leases import Claim
from api.steps import CLEAN
from sep_core.evaluation import Accuracy, appropriate
from sep_core.training import Progress
from worker import tensors
from worker.data import load_job, open_released, open_source
from worker.steps import Work


def run(claim: Claim) -> Work:
    """Output: accuracy on clean held-out images after every epoch, the last and the peak."""
    job = load_job(claim)
    tensors.prepare(job.plan)
    side = job.config.input_pixels
    train, held = tensors.split(job.index, job.config)
    with open_source(job.dataset_id) as reader:
        test_pixels = yield from tensors.at_input_size(reader, held, side)
    source = (
        open_source(job.dataset_id) if claim.index == CLEAN else open_released(job.protection_id)
    )
    with source as reader:
        pixels = yield from tensors.at_input_size(reader, train, side)
    curve: list[float] = []
    for event in appropriate(
        (pixels, tensors.labels(train, job.index)),
        (test_pixels, tensors.labels(held, job.index)),
        len(job.index.classes),
        job.config,
        job.plan,
    ):
        match event:
            case Progress(done, total):
                yield done, total
            case Accuracy(_, accuracy):
                curve.append(round(accuracy, 6))
    return {"accuracy_by_epoch": curve, "accuracy_last": curve[-1], "accuracy_peak": max(curve)}
