"""How busy many GPUs are kept: the service's own scheduling, on virtual time.

    python -m benchmarks.simulate [--gpus 64] [--images 1300000] [--record docs/simulation.json]

Rows, turns, leases, sweep and joins are the real code on a real SQLite database, whose clock is
the simulation's; only the computing is not done. Steps take what `api.workload` says that they
cost, at the speeds of the options, and `--overhead` besides. Each GPU is lost once in
`--loss-hours` on average, with what its step has not kept; its worker is back after `--restart`
seconds, the step when its lease has run out. Figures come last, one a line, `name: value unit`.
`busy` is the GPU time of work that counted over all GPU time from the first shard of one protection
to its last evaluation, or of 20 mixed ones until the last step begins: after that there is nothing
left to give to who is idle. `whole` is the same of one protection from its request to its end, with
its training and its archive. Exits 1 where a `busy` is below `--min-busy`.
"""

import argparse
import heapq
import itertools
import json
import logging
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from api import db, keys, leases, planning, protections, revision, steps, turns, workload
from api.archive import ImageRecord
from api.leases import Claim
from api.models import (
    Dataset,
    DatasetState,
    Owner,
    Protection,
    ProtectionState,
    Queue,
    Step,
    StepKind,
    StepState,
)
from sep_core.cells import named
from sep_core.config import COUNTERMEASURES, PRETRAINED
from worker import sweep

START = datetime(2030, 1, 1, tzinfo=UTC)
SIDE = 224
EPOCH_SHARE = 1 / 30
"""Of a training that a lost GPU costs, at most: it goes on from an epoch's end. The paper's have
120 of them."""
ROWS = [name for name in COUNTERMEASURES if name not in PRETRAINED]


@dataclass
class Clock:
    """Seconds since the start; the database is asked for it."""

    seconds: float = 0.0

    def text(self, _format: str, _of: str) -> str:
        """SQLite's `strftime`, as `api.db.now` calls it."""
        at = START + timedelta(seconds=self.seconds)
        return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}"


@dataclass(order=True)
class Happening:
    """What is to happen, and when."""

    at: float
    number: int
    what: str = field(compare=False)
    worker: str = field(compare=False)
    claim: Claim | None = field(compare=False, default=None)
    done: float = field(compare=False, default=1.0)


@dataclass
class Totals:
    """When phases began and ended, by protection and kind, and GPU seconds that counted."""

    phases: dict[tuple[UUID, StepKind], tuple[float, float]] = field(default_factory=dict)
    stretches: list[tuple[float, float, float]] = field(default_factory=list)
    last_claim: float = 0.0
    losses: int = 0
    claims: int = 0
    claim_seconds: float = 0.0

    def add(self, claim: Claim, begun: float, ended: float, seconds: float) -> None:
        """A stretch of work that need not be done again."""
        assert claim.protection_id is not None
        key = claim.protection_id, claim.kind
        first, last = self.phases.get(key, (begun, ended))
        self.phases[key] = min(first, begun), max(last, ended)
        if claim.kind is not StepKind.PACKAGE:
            self.stretches.append((begun, ended, seconds))

    def useful_between(self, start: float, end: float) -> float:
        """GPU seconds that counted."""
        return sum(
            seconds * max(min(ended, end) - max(begun, start), 0) / max(ended - begun, 1e-9)
            for begun, ended, seconds in self.stretches
        )


class Cluster:
    """GPUs and a CPU worker on virtual time."""

    def __init__(self, options: argparse.Namespace, clock: Clock) -> None:
        self._options, self._clock = options, clock
        self._draws = random.Random(options.seed)  # noqa: S311  nothing secret
        self._numbers = itertools.count()
        self._happenings: list[Happening] = []
        self._idle = {f"gpu{number}" for number in range(options.gpus)}
        self._idle |= {f"cpu{number}" for number in range(options.cpu_workers)}
        self._held: dict[str, Claim] = {}
        self._begun: dict[UUID, float] = {}
        self._kept: dict[UUID, float] = {}
        self._decoding: dict[UUID, float] = {}
        self.totals = Totals()
        for number in range(options.gpus):
            self._plan_loss(f"gpu{number}")

    def run(self) -> None:
        """Until every protection has ended."""
        self._give_work()
        while _going():
            happening = heapq.heappop(self._happenings)
            self._clock.seconds = happening.at
            getattr(self, f"_{happening.what}")(happening)
            self._give_work()

    def _add(self, after: float, what: str, worker: str, **more: Any) -> None:
        at = self._clock.seconds + after
        heapq.heappush(self._happenings, Happening(at, next(self._numbers), what, worker, **more))

    def _plan_loss(self, worker: str) -> None:
        mean = self._options.loss_hours * 3600
        self._add(self._draws.expovariate(1 / mean), "lose", worker)

    def _give_work(self) -> None:
        """Every idle worker asks, as it would when a message knocks."""
        for queue in Queue:
            for worker in sorted(w for w in self._idle if w.startswith(queue)):
                if not self._claim(queue, worker):
                    break

    def _claim(self, queue: Queue, worker: str) -> bool:
        began = time.perf_counter()
        device = "cuda" if queue is Queue.GPU else None
        with db.transaction() as session:
            claim = turns.claim_next(session, queue, worker, device)
            if claim is None:
                return False
            steps.start(session, claim)
        self.totals.claims += 1
        self.totals.claim_seconds += time.perf_counter() - began
        if claim.kind is StepKind.TRAIN:
            if claim.step_id not in self._decoding:
                self._freeze(claim)
            self._add(self._decoding[claim.step_id], "release", worker, claim=claim)
        self._idle.discard(worker)
        self._held[worker] = claim
        self._begun[claim.step_id] = self._clock.seconds
        if queue is Queue.GPU:
            self.totals.last_claim = self._clock.seconds
        left = 1 - self._kept.get(claim.step_id, 0.0)
        self._add(
            self._seconds(claim) * left + self._options.overhead, "finish", worker, claim=claim
        )
        return True

    def _freeze(self, claim: Claim) -> None:
        with db.transaction() as session:
            protection = session.get_one(Protection, claim.protection_id)
            images = protection.requested["config"].pop("images")
            records = [_record()] * images
            config, plan = planning.freeze(
                protection.requested, 1000, images, SIDE, self._device(), self._options.gpus
            )
            asked = planning.load_evaluation(protection.requested["evaluation"])
            evaluation = named(asked, config)
            costs = workload.costs(config, plan, evaluation, records, images)
            steps.freeze(session, claim, config, plan, evaluation, costs)
        self._decoding[claim.step_id] = images / self._options.decoded_per_second

    def _release(self, happening: Happening) -> None:
        """The originals are decoded: others may train on them."""
        assert happening.claim is not None
        with db.transaction() as session:
            steps.release(session, happening.claim)

    def _device(self) -> workload.Device:
        rates = self._options.gradient_gflops, self._options.training_gflops
        speeds = tuple(workload.Speed(32, *rates, of) for of in workload.MEASURED_NETWORKS["cuda"])
        return workload.Device("cuda", True, 16, 80 * 2**30, speeds)

    def _seconds(self, claim: Claim) -> float:
        with db.reading() as session:
            cost = session.get_one(Step, claim.step_id).cost
        if claim.kind is StepKind.PACKAGE:
            rate = self._options.package_gflops
        elif claim.kind is StepKind.PERTURB:
            rate = self._options.gradient_gflops
        else:
            rate = self._options.training_gflops
        return cost / float(rate)

    def _finish(self, happening: Happening) -> None:
        claim, worker = happening.claim, happening.worker
        if claim is None or self._held.get(worker) != claim:
            return  # lost meanwhile
        with db.transaction() as session:
            output = {"archive_sha256": "0" * 64, "archive_bytes": 1}
            steps.finish(session, claim, output if claim.kind is StepKind.PACKAGE else {})
        left = 1 - self._kept.get(claim.step_id, 0.0)
        self._count(claim, left * self._seconds(claim))
        del self._held[worker]
        self._idle.add(worker)

    def _count(self, claim: Claim, seconds: float) -> None:
        begun = self._begun[claim.step_id]
        self.totals.add(claim, begun, self._clock.seconds, seconds)

    def _lose(self, happening: Happening) -> None:
        """A host dies; what its step has kept is gone on from, after the lease has run out."""
        worker = happening.worker
        self.totals.losses += 1
        claim = self._held.pop(worker, None)
        self._idle.discard(worker)
        if claim is not None:
            self._keep(claim)
            self._add(self._options.lease, "sweep", worker)
        self._add(self._options.restart, "return", worker)
        self._plan_loss(worker)

    def _keep(self, claim: Claim) -> None:
        if claim.kind not in (StepKind.TRAIN, StepKind.EVALUATE):
            return
        seconds, before = self._seconds(claim), self._kept.get(claim.step_id, 0.0)
        ran = max(self._clock.seconds - self._begun[claim.step_id] - self._options.overhead, 0)
        epochs = int((before + ran / seconds) / EPOCH_SHARE)
        after = max(before, min(epochs * EPOCH_SHARE, 1 - EPOCH_SHARE))
        self._kept[claim.step_id] = after
        self._count(claim, (after - before) * seconds)
        with db.transaction() as session:
            leases.keep(session, claim, int(after * 1000))

    def _sweep(self, _happening: Happening) -> None:
        with db.transaction() as session:  # the lease was renewed until the end
            for step in session.scalars(select(Step).where(Step.state == StepState.RUNNING)):
                alive = step.lease_owner in self._held
                ahead = timedelta(seconds=1e9 if alive else -1)
                step.lease_expires_at = db.now(session) + ahead
        sweep.free_lost()
        with db.reading() as session:
            held_back = select(Step.not_before).where(Step.state == StepState.READY)
            times = [at for at in session.scalars(held_back) if at is not None]
        for at in times:
            after = (at - START).total_seconds() - self._clock.seconds
            self._add(max(after, 0) + 0.01, "nothing", "")

    def _nothing(self, _happening: Happening) -> None:
        """A wait is over: idle workers ask."""

    def _return(self, happening: Happening) -> None:
        if happening.worker not in self._held:
            self._idle.add(happening.worker)


def main() -> int:
    """Simulate, print, judge."""
    logging.disable(logging.WARNING)  # each loss is told
    options = _options()
    one = [_request(options.images, "paper", seeds=options.seeds)]
    figures: dict[str, tuple[float, str]] = {}
    with _cluster(options, one) as cluster:
        figures |= _of_one(cluster, options)
    with _cluster(options, list(_mixed(options))) as cluster:
        figures |= _of_queue(cluster, options)
    if options.record:
        _record_figures(options, figures)
    for name, (value, unit) in figures.items():
        print(f"{name}: {value:.4g} {unit}")
    least = min(value for name, (value, _) in figures.items() if name.startswith("busy"))
    return int(least < options.min_busy)


def _of_one(cluster: Cluster, options: argparse.Namespace) -> dict[str, tuple[float, str]]:
    cluster.run()
    totals = cluster.totals
    phases = {kind: at for (_, kind), at in totals.phases.items()}
    lasted = {kind: phases[kind][1] - phases[kind][0] for kind in phases}
    start = phases[StepKind.PERTURB][0]
    end = max(last for _, last in phases.values())

    def busy(since: float, until: float) -> float:
        whole: float = options.gpus * (until - since)
        return totals.useful_between(since, until) / whole

    return {
        **{f"{kind} takes": (lasted[kind] / 3600, "h") for kind in phases},
        "busy in perturb": (busy(*phases[StepKind.PERTURB]), "1"),
        "busy from perturb to evaluate of one": (busy(start, end), "1"),
        "whole protection": (busy(0, end), "1"),
        "lost workers": (totals.losses, "1"),
        "a claim takes": (1000 * totals.claim_seconds / totals.claims, "ms"),
    }


def _of_queue(cluster: Cluster, options: argparse.Namespace) -> dict[str, tuple[float, str]]:
    cluster.run()
    totals = cluster.totals
    end = max(last for _, last in totals.phases.values())
    last = totals.last_claim
    return {
        "busy over 20 mixed": (totals.useful_between(0, last) / (options.gpus * last), "1"),
        "20 mixed, to the last end": (totals.useful_between(0, end) / (options.gpus * end), "1"),
        "20 mixed take": (end / 3600, "h"),
        "lost workers, mixed": (totals.losses, "1"),
    }


class _cluster:  # noqa: N801  reads as a function at its call
    """A cluster on a database of its own, with what was asked for."""

    def __init__(self, options: argparse.Namespace, requests: Sequence[dict[str, Any]]) -> None:
        self._options, self._requests = options, requests
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Cluster:
        os.environ["SEPGATE_DATA_DIR"] = self._folder.name
        os.environ["SEPGATE_LOG_LEVEL"] = "ERROR"
        from api.settings import settings  # noqa: PLC0415

        settings.cache_clear()
        db.engine.cache_clear()
        revision.migrate()
        clock = Clock()
        event.listen(db.engine(), "connect", lambda connection, _: _virtual(connection, clock))
        db.engine().dispose()
        for request in self._requests:
            _ask(request)
        return Cluster(self._options, clock)

    def __exit__(self, *_: object) -> None:
        db.engine().dispose()
        self._folder.cleanup()


def _virtual(connection: sqlite3.Connection, clock: Clock) -> None:
    connection.create_function("strftime", 2, clock.text)
    connection.execute("PRAGMA synchronous = OFF")  # nothing here has to outlive the process


def _ask(request: dict[str, Any]) -> None:
    images = request["config"]["images"]
    with db.transaction() as session:
        owner_id = _owner(session, request["owner"])
        summary = {"classes": [str(n) for n in range(1000)], "counts": {"train": {"0": images}}}
        dataset = Dataset(
            id=uuid4(),
            owner_id=owner_id,
            name="simulated",
            state=DatasetState.READY,
            sha256="0" * 64,
            size_bytes=images,
            summary=summary | {"median_side": SIDE},
            created_at=db.now(session),
        )
        session.add(dataset)
        session.flush()
        config = {name: value for name, value in request["config"].items() if name != "images"}
        asked = protections.Request(dataset.id, request["preset"], config, request["evaluation"])
        made = protections.create(session, owner_id, asked, None)
        made.requested = made.requested | {"config": request["config"]}


def _owner(session: Session, name: str) -> UUID:
    known = select(Owner.id).where(Owner.name == name)
    if session.scalar(known) is None:
        keys.create(session, name)
    return session.scalars(known).one()


def _request(
    images: int, preset: str, *, seeds: int, rows: int = len(ROWS), owner: str = "a"
) -> dict[str, Any]:
    evaluation = {"countermeasures": ROWS[:rows], "seeds": seeds}
    config = {"images": images, "input_pixels": SIDE, "crop_padding": SIDE // 8}
    return {"preset": preset, "config": config, "evaluation": evaluation, "owner": owner}


def _mixed(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Small and large, cheap and dear, of four owners."""
    draws = random.Random(options.seed)  # noqa: S311  nothing secret
    for number in range(20):
        images = int(options.images * 10 ** draws.uniform(-1.5, 0))
        preset, rows = draws.choice(("fast", "hardened", "paper")), draws.randint(1, len(ROWS))
        yield _request(images, preset, seeds=3, rows=rows, owner=f"owner {number % 4}")


def _record() -> ImageRecord:
    return ImageRecord("n", "train", "0", SIDE, SIDE, 3, "jpeg", "0" * 64, "n.png")


def _going() -> bool:
    with db.reading() as session:
        over = (ProtectionState.SUCCEEDED, ProtectionState.FAILED)
        states = session.scalars(select(Protection.state)).all()
    assert ProtectionState.FAILED not in states
    return any(state not in over for state in states)


def _record_figures(options: argparse.Namespace, figures: dict[str, tuple[float, str]]) -> None:
    asked = {name: value for name, value in vars(options).items() if name != "record"}
    whole = {"options": asked, "figures": {name: list(value) for name, value in figures.items()}}
    options.record.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--cpu-workers", type=int, default=16, help="two for eight GPUs")
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--seeds", type=int, default=12, help="of each row of the one's evidence")
    parser.add_argument("--gradient-gflops", type=float, default=125_000)
    parser.add_argument("--training-gflops", type=float, default=60_000)
    parser.add_argument(
        "--package-gflops", type=float, default=2000, help="of a CPU worker: 6 of its 16 cores"
    )
    parser.add_argument(
        "--decoded-per-second", type=float, default=2000, help="images, by the cores of a host"
    )
    parser.add_argument("--overhead", type=float, default=2.0, help="seconds a step")
    parser.add_argument("--loss-hours", type=float, default=50)
    parser.add_argument("--restart", type=float, default=300, help="seconds until a host is back")
    parser.add_argument("--lease", type=float, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--min-busy", type=float, default=0.9)
    parser.add_argument("--record", type=Path, help="docs/simulation.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
