"""What a request would come to: its plan, its work, and the time on the workers present."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import archive, datasets, storage
from api.db import now
from api.errors import not_found
from api.evidence import baselines
from api.models import Dataset, JSONObject, Queue, StepKind, Worker, fresh_since
from api.plans import foresight, planning, sides, weights, workload
from api.plans.speeds import MEASURED_SIDES, Device, Load, Speed, seconds
from api.protections import Request, training_images
from sep_core.cells import Evaluation, cells, named, weights_sha256
from sep_core.config import Plan, SEPConfig

CHANNELS = 3
NO_WORKER = Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)


@dataclass(frozen=True)
class Estimate:
    """Of a request that was not made.

    Attributes:
        loads: of every step; none of a training on the originals that is kept already.
        storage_bytes: about what it takes there while it runs: what is perturbed, or what is
            encoded and the archive of it, and what networks saw of the originals and of that.
        warnings: see `foresight`.
        seconds: of each kind of step, one kind after the other; None where no worker says how fast
            it is.
    """

    config: SEPConfig
    plan: Plan
    evaluation: Evaluation
    loads: Mapping[StepKind, Sequence[Load]]
    workers: int
    storage_bytes: int
    warnings: list[str]
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
    loads = workload.loads(config, plan, evaluation, index.records, trained)
    if workers:
        kept = _kept(session, dataset, config, plan, evaluation, workers[0])
        loads[StepKind.EVALUATE] = [
            Load(load.network) if number in kept else load
            for number, load in enumerate(loads[StepKind.EVALUATE])
        ]
    calibrated = [_device(worker) for worker in workers if worker.speeds]
    side = config.input_pixels
    spent = _seconds(loads, calibrated, encoders, side) if calibrated else None
    pixels = len(index.records) * side**2
    stored = int(workload.sizes_bytes(index.records).sum()) + 2 * CHANNELS * pixels
    warnings = foresight.warnings(config, counts, stored, storage.free_bytes())
    return Estimate(config, plan, evaluation, loads, len(workers), stored, warnings, spent)


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
    fresh = fresh_since(now(session))
    found = session.scalars(
        select(Worker).where(Worker.queue == queue, Worker.heartbeat_at > fresh)
    )
    return sorted(found, key=_order)


def _order(worker: Worker) -> tuple[float, str]:
    if not worker.speeds:
        return 0.0, worker.name
    return -_device(worker).speed("small", MEASURED_SIDES[0]).training_gflops, worker.name


def _device(worker: Worker) -> Device:
    return Device(
        worker.device,
        worker.bfloat16,
        worker.threads,
        worker.memory_bytes,
        tuple(_speed(known) for known in worker.speeds or []),
    )


def _speed(known: JSONObject) -> Speed:
    """By a worker of a later version, too, which may have measured more."""
    names = {field.name for field in fields(Speed)}
    return Speed(**{name: value for name, value in known.items() if name in names})


def _seconds(
    loads: Mapping[StepKind, Sequence[Load]],
    devices: Sequence[Device],
    encoders: int,
    input_pixels: int,
) -> dict[StepKind, float]:
    """On workers that know their speed; trainings of one network after those of another."""

    def of(kind: StepKind, some: Sequence[Load], devices: Sequence[Device] = devices) -> float:
        return _shared(
            [[seconds(kind, load, input_pixels, device) for load in some] for device in devices]
        )

    trainings = loads[StepKind.EVALUATE]
    by_network = (
        [load for load in trainings if load.network == network]
        for network in dict.fromkeys(load.network for load in trainings)
    )
    return {
        StepKind.TRAIN: of(StepKind.TRAIN, loads[StepKind.TRAIN]),
        StepKind.PERTURB: of(StepKind.PERTURB, loads[StepKind.PERTURB]),
        # As fast on any worker of the queue.
        StepKind.ENCODE: of(StepKind.ENCODE, loads[StepKind.ENCODE], [NO_WORKER] * encoders),
        StepKind.PACKAGE: of(StepKind.PACKAGE, loads[StepKind.PACKAGE], [NO_WORKER]),
        StepKind.EVALUATE: sum(of(StepKind.EVALUATE, alike) for alike in by_network),
    }


def _shared(spent: Sequence[Sequence[float]]) -> float:
    """Seconds for steps on all workers: none is faster than the longest on the fastest of them.

    Args:
        spent: by each worker, seconds for each of the steps if it did them all.
    """
    alone = [sum(seconds) for seconds in spent]
    if not all(alone):
        return 0.0
    longest = min(max(seconds) for seconds in spent)
    return max(1 / sum(1 / seconds for seconds in alone), longest)
