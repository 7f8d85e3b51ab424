"""A plain loop: sends what was not sent, frees what was lost, collects blobs without a row.

Run as `python -m worker.sweep`. Of any number that run one sweeps; every change is
compare-and-set, should two believe that they are it.
"""

import logging
import signal
import threading
import time
from contextlib import suppress
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import endings, leases, locks, logs, outbox, protections, retention, storage
from api.db import now, reading, transaction
from api.endings import Owner, Setback
from api.locks import SWEEP
from api.models import ACTIVE, Dataset, Protection, ProtectionState, Step, Worker
from api.settings import settings
from worker import facts

COLLECT_EVERY_SECONDS = 300
WORKER_FORGOTTEN_AFTER_SECONDS = 86_400
LOCK_ROUNDS = 5
"""Without a sign of life before another process sweeps."""

log = logging.getLogger("sepgate.sweep")


def may_sweep() -> bool:
    """Whether this process is the one that sweeps; others stand by, should it be lost."""
    with transaction() as session:
        seconds = LOCK_ROUNDS * settings().sweep_seconds
        return locks.hold(session, SWEEP, facts.name(), seconds)


def sweep() -> None:
    """One round without collection."""
    free_lost()
    outbox.send_ready()
    outbox.send_lost()


def free_lost() -> None:
    """Steps whose lease ran out become ready again: their worker is gone, or can't be reached."""
    with transaction() as session:
        ended = [_set_back(session, step) for step in leases.expired(session)]
    for row in ended:
        endings.clean(row)


def _set_back(session: Session, step: Step) -> Owner:
    with bound_contextvars(**logs.about(step)):
        log.warning("was lost by %s", step.lease_owner)
    message = f"The worker {step.lease_owner} was lost in the middle of {step.kind}."
    return endings.set_back(session, step, Setback("WORKER_LOST", message, suspect=False))


def collect() -> None:
    """Remove blobs that no row refers to, once they are old enough not to be an upload."""
    grace = settings().orphan_grace_seconds
    idle_datasets = storage.idle_owners("datasets", grace)
    idle_protections = storage.idle_owners("protections", grace)
    with reading() as session:
        known = set(session.scalars(select(Dataset.id).where(Dataset.error_code.is_(None))))
        kept = set(session.scalars(select(Protection.id).where(_keeps_blobs(now(session)))))
        succeeded = select(Protection.id).where(Protection.state == ProtectionState.SUCCEEDED)
        over = set(session.scalars(succeeded))
        bereft = set(session.scalars(succeeded.where(Protection.dataset_id.is_(None))))
    for key in [storage.dataset_key(i) for i in idle_datasets - known] + [
        storage.protection_key(i) for i in idle_protections - kept
    ]:
        log.warning("removing %s: no row refers to it", key)
        storage.remove(key)
    # Left where a process was killed between the last commit and its clean-up.
    for protection_id in idle_protections & over:
        protections.clean_succeeded(protection_id)
    protections.clean_originals(sorted(idle_protections & bereft))
    with transaction() as session:
        limit = now(session) - timedelta(seconds=WORKER_FORGOTTEN_AFTER_SECONDS)
        session.execute(delete(Worker).where(Worker.heartbeat_at < limit))


def _keeps_blobs(at: datetime) -> ColumnElement[bool]:
    """Protections that go on, that have succeeded, or that may still be tried again.

    For an hour more than that: a retry is refused before anything is removed.
    """
    limit = at - timedelta(seconds=settings().failed_keep_seconds + 3600)
    failed = and_(
        Protection.state == ProtectionState.FAILED,
        Protection.finished_at > limit,
        Protection.dataset_id.is_not(None),
    )
    return or_(Protection.state.in_((*ACTIVE, ProtectionState.SUCCEEDED)), failed)


def main() -> None:
    """Sweep until SIGTERM or SIGINT."""
    logs.configure()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    # Apart: of a bucket with millions of blobs it takes longer than a lost step may wait.
    ours = threading.Event()
    threading.Thread(target=_collect_at_times, args=[ours], daemon=True, name="collect").start()
    while not over.wait(settings().sweep_seconds):
        try:
            if may_sweep():
                ours.set()
                sweep()
            else:
                ours.clear()
        except Exception:  # database or broker away: the next round may find them
            log.exception("a round of the sweep failed")
    with suppress(OperationalError), transaction() as session:
        locks.release(session, SWEEP, facts.name())


def _collect_at_times(ours: threading.Event) -> None:
    while ours.wait():
        try:
            retention.expire()
            collect()
        except Exception:  # database or storage away
            log.exception("a collection failed")
        time.sleep(COLLECT_EVERY_SECONDS)


if __name__ == "__main__":
    main()
