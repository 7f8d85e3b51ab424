"""What an operator watches, read from the rows, in Prometheus' format.

All are gauges: rows go with what they are about, so nothing here only ever grows.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from api import datasets, storage
from api.db import now, reading
from api.models import (
    QUEUES,
    Dataset,
    DatasetState,
    Lock,
    Protection,
    ProtectionState,
    Queue,
    Step,
    StepState,
    Worker,
    fresh_since,
)
from api.scheduling import turns
from api.scheduling.locks import SWEEP

LATELY = timedelta(hours=1)
"""What durations and speeds are of."""
TURN = timedelta(minutes=5)
"""What has waited longer since it was to be tried again waits for its turn, not for a mend.

With the longest back-off and what `SepgateSetBack` looks back at it is less than what that waits.
"""
Sample = tuple[tuple[Any, ...], float]
Column = InstrumentedAttribute[Any]


def exposition() -> bytes:
    """All metrics as text.

    Raises:
        OperationalError: the database is away.
    """
    with reading() as session:
        return generate_latest(_Read(_families(session, now(session))))


class _Read(Collector):
    """What has been read."""

    def __init__(self, families: Iterable[GaugeMetricFamily]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """As Prometheus' library asks for it."""
        return self._families


def _families(session: Session, at: datetime) -> Iterator[GaugeMetricFamily]:
    yield from _queues(session, at)
    yield from _states(session, at)
    yield from _lately(session, at)
    yield from _machines(session, at)
    with suppress(OSError):  # a folder out of reach: readiness tells that
        free = storage.free_bytes()
        if free is not None:
            yield _gauge("storage_free_bytes", "Room left for blobs.", [], [((), free)])


def _queues(session: Session, at: datetime) -> Iterator[GaugeMetricFamily]:
    # Of what has failed or was cancelled steps stay as they were, and nobody waits for them.
    to_come = Step.state.in_((StepState.WAITING, StepState.READY))
    counted = _counts(session, [Step.kind, Step.state], ~to_come | turns.WANTED)
    steps = [((QUEUES[kind], kind, state), number) for (kind, state), number in counted]
    yield _gauge("steps", "Steps by queue, kind and state.", ["queue", "kind", "state"], steps)
    due = func.min(case((Step.not_before > Step.ready_at, Step.not_before), else_=Step.ready_at))
    waiting = select(Step.kind, due).where(turns.claimable(at)).group_by(Step.kind)
    oldest = dict.fromkeys(Queue, 0.0)
    for kind, since in session.execute(waiting):
        seconds = (at - since).total_seconds() if since else 0.0
        oldest[QUEUES[kind]] = max(oldest[QUEUES[kind]], seconds)
    text = "How long the step that has waited longest could have been run."
    yield _gauge("oldest_ready_seconds", text, ["queue"], [((q,), s) for q, s in oldest.items()])


def _states(session: Session, at: datetime) -> Iterator[GaugeMetricFamily]:
    text = "By state."
    yield _gauge("protections", text, ["state"], _counts(session, [Protection.state]))
    yield _gauge("datasets", text, ["state"], _counts(session, [Dataset.state]))
    failures: list[Sample] = [
        ((of, *code), number)
        for of, code_of, failed in (
            ("protection", Protection.error_code, Protection.state == ProtectionState.FAILED),
            ("dataset", Dataset.error_code, Dataset.state == DatasetState.REJECTED),
        )
        for code, number in _counts(session, [code_of], failed)
    ]
    text = "Failed protections and rejected data sets by reason."
    yield _gauge("failures", text, ["of", "code"], failures)
    since = Protection.state == ProtectionState.FAILED, Protection.finished_at > at - LATELY
    text = "Protections that failed in the last hour by reason."
    lately = _counts(session, [Protection.error_code], and_(*since))
    yield _gauge("protections_failed_last_hour", text, ["code"], lately)
    ours = Dataset.error_code.in_(datasets.OURS), Dataset.finished_at > at - LATELY
    text = "Data sets rejected in the last hour for no fault of theirs, by reason."
    lately = _counts(session, [Dataset.error_code], and_(*ours))
    yield _gauge("datasets_failed_last_hour", text, ["code"], lately)
    text = "Steps that are tried again and have not got on, by the reason of the last setback."
    yield _gauge("setbacks", text, ["code"], _counts(session, [Step.error_code], _set_back(at)))


def _set_back(at: datetime) -> ColumnElement[bool]:
    """One that runs and has got on since is over it; one that waits for its turn may be."""
    held = func.coalesce(Step.not_before, Step.ready_at) > at - TURN
    waits = and_(Step.state == StepState.READY, held)
    runs = and_(Step.state == StepState.RUNNING, Step.progress_done <= Step.progress_begun)
    return and_(Step.error_code.is_not(None), turns.WANTED, or_(waits, runs))


def _lately(session: Session, at: datetime) -> Iterator[GaugeMetricFamily]:
    # What `ingest` has found out is on its data set's row.
    images_of = Step.output["images"].as_integer(), Dataset.summary["images"].as_integer()
    done = session.execute(
        select(Step.kind, Step.started_at, Step.finished_at, Step.cost)
        .add_columns(Step.output["reused"].as_boolean(), func.coalesce(*images_of))
        .add_columns(Step.progress_begun, Step.progress_total)
        .outerjoin(Dataset, Dataset.id == Step.dataset_id)
        .where(Step.state == StepState.DONE, Step.finished_at > at - LATELY)
    ).all()
    totals: dict[str, dict[str, float]] = {}
    for kind, began, ended, cost, reused, images, before, whole in done:
        if began is None or ended is None or reused:
            continue
        values = {
            "finished": 1,
            "seconds": (ended - began).total_seconds(),
            # The last attempt went on from there.
            "expected_seconds": cost * (1 - before / whole if whole else 1),
        }
        if images is not None:
            values["images"] = images
        total = totals.setdefault(kind, {})
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value
    for name, text in (
        ("finished", "Steps finished in the last hour, but for trainings found done before."),
        ("seconds", "Seconds that their last attempts took, in all."),
        ("expected_seconds", "Seconds that the worker which planned them expected of that."),
        ("images", "Images of these steps; none of trainings, which see each many times."),
    ):
        samples: list[Sample] = [
            ((kind,), total[name]) for kind, total in totals.items() if name in total
        ]
        yield _gauge(f"steps_last_hour_{name}", text, ["kind"], samples)


def _machines(session: Session, at: datetime) -> Iterator[GaugeMetricFamily]:
    fresh = fresh_since(at)
    workers = session.scalars(select(Worker).where(Worker.heartbeat_at > fresh)).all()
    alive: dict[tuple[Any, ...], float] = {(queue,): 0.0 for queue in Queue}
    for worker in workers:
        alive[(worker.queue,)] += 1
    yield _gauge("workers", "Workers whose heartbeat is fresh.", ["queue"], list(alive.items()))
    for name, text in (
        ("memory_bytes", "Memory of a worker's device."),
        ("memory_used_bytes", "Of that, what is in use: on a CPU by the worker alone."),
        ("load", "Share of the time in which the device computes; on a CPU, of the worker's."),
    ):
        samples: list[Sample] = [
            ((worker.name, worker.queue, worker.device_name), getattr(worker, name))
            for worker in workers
            if getattr(worker, name) is not None
        ]
        yield _gauge(f"worker_{name}", text, ["worker", "queue", "device"], samples)
    sweeping = select(func.count()).where(Lock.name == SWEEP, Lock.expires_at > at)
    text = "1 while a sweep is at work, else 0."
    yield _gauge("sweep", text, [], [((), session.scalar(sweeping) or 0)])


def _counts(
    session: Session, columns: Sequence[Column], where: ColumnElement[bool] | None = None
) -> list[Sample]:
    counting = select(*columns, func.count()).group_by(*columns)
    rows = session.execute(counting if where is None else counting.where(where))
    return [(tuple(row[:-1]), row[-1]) for row in rows]


def _gauge(name: str, text: str, labels: list[str], samples: list[Sample]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"sepgate_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric([str(value) for value in values], number)
    return family
