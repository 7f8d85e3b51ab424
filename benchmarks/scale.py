"""How much faster two workers perturb than one, each pinned to a core of its own.

    python -m benchmarks.scale --data ZIP [--rounds 3] [--set steps=8 ...] [--record FILE]

Real workers of the embedded service: for one and for two of them in turns a protection is asked
for, trained, and followed until its `perturb` steps are done; what that phase took, from the first
step's beginning to the last one's end, is read from the rows; no images are encoded meanwhile.
Figures come last, one a line, `name: value unit`; the ratio is that of the medians. Exits 1 where
it is below `--min-ratio`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from benchmarks.figures import record, show
from benchmarks.files import versions
from benchmarks.options import changes

SHORT: dict[str, Any] = {"epochs": 1, "checkpoints": 1, "checkpoints_per_step": 1, "class_steps": 0}
SHORT |= {"appropriator_epochs": 1, "seed": "0" * 32}
LOOK_SECONDS = 0.2
READY_SECONDS = 120


def main() -> int:
    """Measure the rounds, print, judge."""
    options = _options()
    taken: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SEPGATE_DATA_DIR": folder, "SEPGATE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        from api.commands import launcher  # noqa: PLC0415  reads the environment set above

        with launcher.service("127.0.0.1", 0) as service:
            _stop(next(part for part in service.parts if part.name == "worker-gpu"))
            dataset_id = _ingested(options.data)
            _stop(next(part for part in service.parts if part.name == "worker-cpu"))
            for number in range(1, options.rounds + 1):
                for workers, seconds in taken.items():
                    seconds.append(_phase(dataset_id, workers, options))
                print(f"round {number}: {taken[1][-1]:.1f} s, {taken[2][-1]:.1f} s", flush=True)
    one, two = (statistics.median(taken[workers]) for workers in (1, 2))
    ratios = [alone / both for alone, both in zip(taken[1], taken[2], strict=True)]
    figures = {
        "one worker": (one, "s"),
        "two workers": (two, "s"),
        "two workers over one": (one / two, "1"),
        "least of the rounds": (min(ratios), "1"),
        "most of the rounds": (max(ratios), "1"),
    }
    if options.record:
        record(options.record, figures, versions=versions())
    show(figures)
    return int(one / two < options.min_ratio)


def _phase(dataset_id: UUID, workers: int, options: argparse.Namespace) -> float:
    """Seconds of the phase `perturb` of a new protection, with so many workers on so many cores."""
    from api import protections  # noqa: PLC0415
    from api.db import transaction  # noqa: PLC0415
    from api.models import Dataset  # noqa: PLC0415

    parts = [_start(core) for core in sorted(os.sched_getaffinity(0))[:workers]]
    try:
        _wait(lambda: _serving() == workers, "workers")
        with transaction() as session:
            owner_id = session.get_one(Dataset, dataset_id).owner_id
            config = SHORT | changes(options.set)
            request = protections.Request(dataset_id, "quick", config)
            asked = protections.create(session, owner_id, request, None).id
        seconds = _followed(asked)
        with transaction() as session:
            protections.cancel(session, owner_id, asked)
    finally:
        for part in parts:
            _stop(part)
        _forget_workers()
    return seconds


def _followed(protection_id: UUID) -> float:
    from sqlalchemy import select  # noqa: PLC0415

    from api.db import reading  # noqa: PLC0415
    from api.models import Step, StepKind, StepState  # noqa: PLC0415

    while True:
        with reading() as session:
            shards = select(Step).where(
                Step.protection_id == protection_id, Step.kind == StepKind.PERTURB
            )
            found = session.scalars(shards).all()
        if found and all(step.state is StepState.DONE for step in found):
            begun = min(step.started_at for step in found if step.started_at)
            ended = max(step.finished_at for step in found if step.finished_at)
            by = {step.lease_owner for step in found}
            print(f"{len(found)} shards by {len(by)} workers", flush=True)
            return (ended - begun).total_seconds()
        time.sleep(LOOK_SECONDS)


def _start(core: int) -> Any:
    """A worker of the `gpu` queue that sees one core."""
    from api import workers  # noqa: PLC0415
    from api.models import Queue  # noqa: PLC0415
    from api.processes import Part  # noqa: PLC0415
    from api.settings import settings  # noqa: PLC0415

    words = ["taskset", "--cpu-list", str(core), sys.executable, "-m"]
    part = Part(
        f"core-{core}",
        [*words, *workers.command(Queue.GPU, f"-{core}")],
        {"SEPGATE_WORKER_QUEUE": "gpu"},
        settings().data_dir / "logs" / f"core-{core}.log",
    )
    part.start()
    return part


def _stop(part: Any) -> None:
    from api.processes import stop  # noqa: PLC0415

    stop([part.process], READY_SECONDS)


def _serving() -> int:
    from sqlalchemy import func, select  # noqa: PLC0415

    from api.db import reading  # noqa: PLC0415
    from api.models import Queue, Worker  # noqa: PLC0415

    with reading() as session:
        there = select(func.count()).where(Worker.queue == Queue.GPU, Worker.speeds.is_not(None))
        return session.scalar(there) or 0


def _forget_workers() -> None:
    from sqlalchemy import delete  # noqa: PLC0415

    from api.db import transaction  # noqa: PLC0415
    from api.models import Queue, Worker  # noqa: PLC0415

    with transaction() as session:
        session.execute(delete(Worker).where(Worker.queue == Queue.GPU))


def _ingested(path: Path) -> UUID:
    from sqlalchemy import select  # noqa: PLC0415

    from api import datasets, storage  # noqa: PLC0415
    from api.commands import launcher  # noqa: PLC0415
    from api.db import reading, transaction  # noqa: PLC0415
    from api.models import Dataset, DatasetState, Owner  # noqa: PLC0415
    from api.scheduling import outbox  # noqa: PLC0415

    launcher.new_key()
    dataset_id = uuid4()
    with path.open("rb") as file:
        digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), file)
    with transaction() as session:
        owner_id = session.scalars(select(Owner.id)).one()
        size = path.stat().st_size
        datasets.create(session, owner_id, dataset_id, "data", digest, size)
    outbox.send_ready()

    def is_ready() -> bool:
        with reading() as session:
            return session.get_one(Dataset, dataset_id).state is DatasetState.READY

    _wait(is_ready, "the data set")
    _forget_workers()
    return dataset_id


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {READY_SECONDS} s in vain for {what}")
        time.sleep(LOOK_SECONDS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="zip of class folders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--min-ratio", type=float, default=1.8)
    parser.add_argument("--record", type=Path, help="docs/scale.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
