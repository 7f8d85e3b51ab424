"""What a request would come to: its plan, its work, and the time on the workers present."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import archive, baselines, datasets, planning, sides, weights, workload
from api.db import now
from api.errors import not_found
from api.models import WORKER_FRESH_SECONDS, Dataset, Queue, StepKind, Worker
from api.protections import Request, training_images
from api.workload import MEASURED_SIDES, Device, Speed
from sep_core.cells import Evaluation, cells, named, weights_sha256
from sep_core.config import NetworkName, Plan, SEPConfig

ENCODE_GFLOPS = workload.GRADIENT_GFLOPS["cpu"]
NO_WORKER = Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)

Costs = Mapping[StepKind, Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """Of a request that was not made.

    Attributes:
        costs: GFLOP of every step; none of a training on the originals that is kept already.
        seconds: of each kind of step, one kind after the other; None where no worker says how fast
            it is.
    """

    config: SEPConfig
    plan: Plan
    evaluation: Evaluation
    costs: Costs
    workers: int
    seconds: dict[StepKind, float] | None


def estimate(session: Session, dataset: Dataset, request: Request) -> Estimate:
    """What `request` would come to; it has been checked, and `dataset` is ready.

    Raises:
        AppError: 404, the data set has just been deleted.
    """
    assert dataset.summary is not None
    counts = dataset.summary["counts"]
    workers = _workers(session, Queue.GPU)
    encoders = max(len(_workers(session, Queue.CPU)), 1)
    device = _device(workers[0]) if workers else NO_WORKER
    classes = len(dataset.summary["classes"])
    index = _index(dataset)
    side = sides.summary_side(dataset.summary)
    config, plan = planning.freeze(
        request.kept, classes, training_images(counts), side, device, max(len(workers), 1)
    )
    evaluation = weights.freeze(named(planning.load_evaluation(request.evaluation), config))
    trained = workload.trained_images(counts, config.held_out_percent)
    costs = workload.costs(config, plan, evaluation, index.records, trained)
    if workers:
        kept = _kept(session, dataset, config, plan, evaluation, workers[0])
        costs[StepKind.EVALUATE] = [
            0.0 if number in kept else cost for number, cost in enumerate(costs[StepKind.EVALUATE])
        ]
    calibrated = [worker for worker in workers if worker.speeds]
    seconds = _seconds(costs, calibrated, encoders, config, evaluation)
    return Estimate(config, plan, evaluation, costs, len(workers), seconds)


def _kept(
    session: Session,
    dataset: Dataset,
    config: SEPConfig,
    plan: Plan,
    evaluation: Evaluation,
    worker: Worker,
) -> set[int]:
    """Trainings on the originals that such a worker has done already, and kept."""
    found = set()
    for number, cell in enumerate(cells(evaluation)):
        begun = weights_sha256(evaluation, cell.network, cell.countermeasure)
        key = baselines.digest(dataset.sha256, config, plan, cell, worker.versions, begun)
        if cell.clean and baselines.find(session, dataset.id, key) is not None:
            found.add(number)
    return found


def _index(dataset: Dataset) -> archive.IngestResult:
    try:
        return datasets.load_index(dataset.id)
    except FileNotFoundError as error:  # deleted since we looked at its row
        raise not_found("data set", dataset.id) from error


def _workers(session: Session, queue: Queue) -> list[Worker]:
    """Those that serve a queue now, the fastest first."""
    fresh = now(session) - timedelta(seconds=WORKER_FRESH_SECONDS)
    found = session.scalars(
        select(Worker).where(Worker.queue == queue, Worker.heartbeat_at > fresh)
    )
    return sorted(found, key=_order)


def _order(worker: Worker) -> tuple[float, str]:
    if not worker.speeds:
        return 0.0, worker.name
    return -_speed(worker, "small", MEASURED_SIDES[0]).training_gflops, worker.name


def _device(worker: Worker) -> Device:
    return Device(
        worker.device,
        worker.bfloat16,
        worker.threads,
        worker.memory_bytes,
        tuple(Speed(**speed) for speed in worker.speeds or []),
    )


def _speed(worker: Worker, network: NetworkName, input_pixels: int) -> Speed:
    return workload.speed(_device(worker).speeds, network, input_pixels)


def _seconds(
    costs: Costs,
    workers: Sequence[Worker],
    encoders: int,
    config: SEPConfig,
    evaluation: Evaluation,
) -> dict[StepKind, float] | None:
    """On workers that know their speed; trainings of one network after those of another."""
    if not workers:
        return None

    def speeds(network: NetworkName) -> list[Speed]:
        return [_speed(worker, network, config.input_pixels) for worker in workers]

    def training(network: NetworkName) -> list[float]:
        return [speed.training_gflops for speed in speeds(network)]

    trainings = list(zip(cells(evaluation), costs[StepKind.EVALUATE], strict=True))
    gradient = [speed.gradient_gflops for speed in speeds(config.surrogate)]
    return {
        StepKind.TRAIN: _spread_over(training(config.surrogate), costs[StepKind.TRAIN]),
        StepKind.PERTURB: _spread_over(gradient, costs[StepKind.PERTURB]),
        StepKind.ENCODE: _spread_over([ENCODE_GFLOPS] * encoders, costs[StepKind.ENCODE]),
        StepKind.PACKAGE: sum(costs[StepKind.PACKAGE]) / ENCODE_GFLOPS,
        StepKind.EVALUATE: sum(
            _spread_over(training(name), [cost for cell, cost in trainings if cell.network == name])
            for name in evaluation.networks
        ),
    }


def _spread_over(speeds: Sequence[float], costs: Sequence[float]) -> float:
    """Seconds for steps on workers: none is faster than the longest step on the fastest worker."""
    return max(sum(costs) / sum(speeds), max(costs, default=0.0) / max(speeds))
