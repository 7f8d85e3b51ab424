"""What a request would come to: its plan, its work, and the time on the workers present."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import archive, datasets, planning, sides, storage, weights, workload
from api.db import now
from api.errors import not_found
from api.models import WORKER_FRESH_SECONDS, Dataset, Queue, StepKind, Worker
from api.protections import Request, training_images
from api.workload import MEASURED_SIDES, Device, Speed
from sep_core.cells import Evaluation, named
from sep_core.config import Plan, SEPConfig

# What `workload.SHARD_GFLOP` takes for two minutes of a CPU.
PACKAGE_GFLOPS = workload.SHARD_GFLOP["cpu"] / 120
NO_WORKER = Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)

Costs = Mapping[StepKind, Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """Of a request that was not made.

    Attributes:
        costs: GFLOP of every step.
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
    workers = _workers(session)
    device = _device(workers[0]) if workers else NO_WORKER
    classes = len(dataset.summary["classes"])
    index = _index(dataset)
    side = sides.summary_side(dataset.summary)
    config, plan = planning.freeze(request.kept, classes, training_images(counts), side, device)
    evaluation = weights.freeze(named(planning.load_evaluation(request.evaluation), config))
    trained = workload.trained_images(counts, config.held_out_percent)
    costs = workload.costs(config, plan, evaluation, index.records, trained)
    speeds = [speed for worker in workers if (speed := _speed(worker, config.input_pixels))]
    return Estimate(config, plan, evaluation, costs, len(workers), _seconds(costs, speeds))


def _index(dataset: Dataset) -> archive.IngestResult:
    try:
        return archive.load_index(storage.read(storage.dataset_key(dataset.id, datasets.INDEX)))
    except FileNotFoundError as error:  # deleted since we looked at its row
        raise not_found("data set", dataset.id) from error


def _workers(session: Session) -> list[Worker]:
    """Those that serve the `gpu` queue now, the fastest first."""
    fresh = now(session) - timedelta(seconds=WORKER_FRESH_SECONDS)
    found = session.scalars(
        select(Worker).where(Worker.queue == Queue.GPU, Worker.heartbeat_at > fresh)
    )
    return sorted(found, key=_order)


def _order(worker: Worker) -> tuple[float, str]:
    speed = _speed(worker, MEASURED_SIDES[0])
    return (-speed.training_gflops if speed else 0.0, worker.name)


def _device(worker: Worker) -> Device:
    return Device(worker.device, worker.bfloat16, worker.threads, worker.memory_bytes)


def _speed(worker: Worker, input_pixels: int) -> Speed | None:
    """Measured at the largest side that is not above the asked one, or at the smallest."""
    if worker.speeds is None:
        return None
    known = sorted((Speed(**speed) for speed in worker.speeds), key=attrgetter("input_pixels"))
    return [known[0], *(speed for speed in known if speed.input_pixels <= input_pixels)][-1]


def _seconds(costs: Costs, speeds: Sequence[Speed]) -> dict[StepKind, float] | None:
    if not speeds:
        return None
    gradient = [speed.gradient_gflops for speed in speeds]
    training = [speed.training_gflops for speed in speeds]
    return {
        StepKind.TRAIN: _spread_over(training, costs[StepKind.TRAIN]),
        StepKind.PERTURB: _spread_over(gradient, costs[StepKind.PERTURB]),
        StepKind.PACKAGE: sum(costs[StepKind.PACKAGE]) / PACKAGE_GFLOPS,
        StepKind.EVALUATE: _spread_over(training, costs[StepKind.EVALUATE]),
    }


def _spread_over(speeds: Sequence[float], costs: Sequence[float]) -> float:
    """Seconds for steps on workers: none is faster than the longest step on the fastest worker."""
    return max(sum(costs) / sum(speeds), max(costs, default=0.0) / max(speeds))
