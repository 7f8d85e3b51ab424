"""GPUs that ask the service's rows for work, and are lost."""

import argparse
import heapq
import itertools
import math
import random
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from api import db, steps
from api.archive import ImageRecord
from api.models import QUEUES, Protection, ProtectionState, Queue, Step, StepKind, StepState
from api.plans import planning, speeds, workload
from api.scheduling import leases, turns
from api.scheduling.leases import Claim
from benchmarks.simulate.clock import START, Clock
from benchmarks.simulate.requests import SIDE
from benchmarks.simulate.totals import Totals
from sep_core.cells import named
from worker import resume, sweep

SAVE_SECONDS = float(resume.SAVE_SECONDS)
"""Of training that a lost GPU costs at most, but for a batch: it goes on from what was kept."""


@dataclass(order=True)
class Happening:
    """What is to happen, and when."""

    at: float
    number: int
    what: str = field(compare=False)
    worker: str = field(compare=False)
    claim: Claim | None = field(compare=False, default=None)
    done: float = field(compare=False, default=1.0)


class Cluster:
    """GPUs and CPU workers on virtual time."""

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
            loads = workload.loads(config, plan, evaluation, records, images)
            costs = speeds.costs(loads, config.input_pixels, self._device())
            steps.freeze(session, claim, config, plan, evaluation, costs)
        self._decoding[claim.step_id] = images / self._options.decoded_per_second

    def _release(self, happening: Happening) -> None:
        """The originals are decoded: others may train on them."""
        assert happening.claim is not None
        with db.transaction() as session:
            steps.release(session, happening.claim)

    def _device(self) -> speeds.Device:
        rates = self._options.gradient_gflops, self._options.training_gflops
        # Photographs at the networks' size: what their pixels cost is in a pass already.
        measured = speeds.MEASURED_NETWORKS["cuda"]
        known = tuple(speeds.Speed(32, *rates, network, math.inf) for network in measured)
        return speeds.Device("cuda", True, 16, 80 * 2**30, known)

    def _seconds(self, claim: Claim) -> float:
        with db.reading() as session:
            cost = session.get_one(Step, claim.step_id).cost
        if QUEUES[claim.kind] is Queue.CPU:
            return cost * speeds.GFLOPS["cpu"] / float(self._options.cpu_gflops)
        return cost

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
        saved = ran // SAVE_SECONDS * SAVE_SECONDS
        after = min(before + saved / seconds, 1.0)
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


def _record() -> ImageRecord:
    return ImageRecord("n", "train", "0", SIDE, SIDE, 3, "jpeg", "0" * 64, "n.png")


def _going() -> bool:
    with db.reading() as session:
        over = (ProtectionState.SUCCEEDED, ProtectionState.FAILED)
        states = session.scalars(select(Protection.state)).all()
    assert ProtectionState.FAILED not in states
    return any(state not in over for state in states)
