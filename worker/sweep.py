"""A plain loop: sends what was not sent, frees what was lost, collects what is left over.

Run as `python -m worker.sweep`. Of any number that run one sweeps; every change is
compare-and-set, should two believe that they are it.
"""

import logging
import signal
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import logs, retention
from api.db import AWAY, now, reading, transaction
from api.models import Step
from api.scheduling import endings, leases, locks, outbox
from api.scheduling.endings import Owner, Setback
from api.scheduling.locks import SWEEP
from api.settings import settings
from worker import collection, facts
from worker.collection import careful
from worker.steady import SteadyClock

COLLECT_EVERY_SECONDS = 300
ROUNDS = 2
"""Of renewing or of sweeping, that may fall out before it looks as if nobody could renew."""
LOCK_ROUNDS = 5
"""Without a sign of life before another process sweeps."""

log = logging.getLogger("sepgate.sweep")


class Outage:
    """Whether a lease that has run out says anything of its holder.

    Nobody can renew a lease while the database is away, or the whole host asleep: where nobody has
    looked for longer than holders take to renew theirs, they are given the time to. By the
    database's clock.
    """

    def __init__(self) -> None:
        self._looked: datetime | None = None
        self._over_at: datetime | None = None

    def is_over(self, at: datetime) -> bool:
        """To be asked in every round."""
        rounds = ROUNDS * max(settings().lease_renew_seconds, settings().sweep_seconds)
        if self._looked is None or at - self._looked > timedelta(seconds=rounds):
            self._over_at = at + timedelta(seconds=settings().lease_seconds)
        self.looked(at)
        return self._over_at is None or at >= self._over_at

    def looked(self, at: datetime) -> None:
        """The database was there: what a round does may take long."""
        self._looked = at


def may_sweep() -> bool:
    """Whether this process is the one that sweeps; others stand by, should it be lost."""
    with transaction() as session:
        seconds = LOCK_ROUNDS * settings().sweep_seconds
        return locks.hold(session, SWEEP, facts.name(), seconds)


def sweep(*, lost: bool = True) -> None:
    """One round without collection: what fails keeps nothing else from being done.

    Args:
        lost: whether steps whose lease has run out are freed; see `Outage`.
    """
    for part in (*([free_lost] if lost else []), outbox.send_ready, outbox.send_lost):
        with careful(f"{part.__name__} failed"):
            part()


def take_turn(outage: Outage) -> bool:
    """One round, if it is this process's turn: whether it is."""
    mine = may_sweep()  # first: a database that takes no writes is away, too
    is_over = outage.is_over(_now())  # also while another sweeps: this one may be next
    if mine:
        sweep(lost=is_over)
        outage.looked(_now())
    return mine


def free_lost() -> None:
    """Steps whose lease ran out become ready again: their worker is gone, or can't be reached."""
    ended: list[Owner] = []
    with transaction() as session:
        for step in leases.expired(session):
            with careful(f"step {step.id} was not freed"), session.begin_nested():
                ended.append(_set_back(session, step))
    for row in ended:
        with careful("what has ended was not cleaned"):
            endings.clean(row)


def _set_back(session: Session, step: Step) -> Owner:
    with bound_contextvars(**logs.about(step)):
        log.warning("was lost by %s", step.lease_owner)
    message = f"The worker {step.lease_owner} was lost in the middle of {step.kind}."
    return endings.set_back(session, step, Setback("WORKER_LOST", message, suspect=False))


def collect(*, aged: bool = True) -> None:
    """Delete what the operator's policy does not keep, and remove what is left over.

    Args:
        aged: whether what rows keep is deleted when it is old enough; see `SteadyClock`.
    """
    if aged:
        with careful("what is kept too long was not deleted"):
            retention.expire()
    collection.collect(aged=aged)


def main() -> None:
    """Sweep until SIGTERM or SIGINT."""
    logs.configure()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    # Apart: of a bucket with millions of blobs it takes longer than a lost step may wait.
    ours = threading.Event()
    threading.Thread(target=_collect_at_times, args=[ours], daemon=True, name="collect").start()
    outage = Outage()
    while not over.wait(settings().sweep_seconds):
        try:
            if take_turn(outage):
                ours.set()
            else:
                ours.clear()
        except Exception:  # database or broker away: the next round may find them
            log.exception("a round of the sweep failed")
    with suppress(*AWAY), transaction() as session:
        locks.release(session, SWEEP, facts.name())


def _now() -> datetime:
    with reading() as session:
        return now(session)


def _collect_at_times(ours: threading.Event) -> None:
    clock = SteadyClock()
    while ours.wait():
        try:
            collect(aged=clock.is_trusted(_now()))
        except Exception:  # database or storage away
            log.exception("a collection failed")
        time.sleep(COLLECT_EVERY_SECONDS)


if __name__ == "__main__":
    main()
