"""`run_step`: claim, run, finish. One `try` turns an exception into a code on the row."""

import errno
import logging
import os
import signal
import tempfile
import time
from functools import partial
from uuid import UUID

from celery import signals
from sqlalchemy.exc import OperationalError
from structlog.contextvars import bound_contextvars

from api import datasets, endings, logs, outbox, steps, turns
from api.db import reading, transaction
from api.endings import Setback
from api.errors import AppError, StorageFull
from api.leases import Claim
from api.models import QUEUES, Queue, Step, StepKind
from api.processes import die_with_parent
from api.queue import RUN_STEP, app
from api.settings import settings
from worker import facts, replan, siblings
from worker.lease import (
    DrainFlag,
    Lease,
    LeaseLost,
    StepPostponed,
    StepStopped,
    WorkerDraining,
)

log = logging.getLogger(__name__)
draining = DrainFlag()
_parent = os.getpid()  # Celery imports this before it forks its children

FINISH_RETRY_SECONDS = 2
POSTPONED_SECONDS = 5
"""Before a step looks again whether another is still at the same training."""


@signals.setup_logging.connect
def _log(**_: object) -> None:
    """Who listens here keeps Celery from configuring loggers its own way."""
    logs.configure()


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    draining.set()


@signals.worker_process_init.connect
def _adopt(**_: object) -> None:
    """A child must not outlive its parent: nobody would stop it, and it would hold the device."""
    die_with_parent(signal.SIGKILL, _parent)
    siblings.set_back_lost()
    queue = Queue(settings().worker_queue)
    found = facts.measure(queue)
    facts.register(queue, facts.calibrated(found, draining) if queue is Queue.GPU else found)


@app.task(name=RUN_STEP)
def run_step(step_id: str) -> None:
    """Run the step whose turn it is in this step's queue, and those after it while there are any.

    A message too many finds nothing to claim.
    """
    with reading() as session:
        knocked = session.get(Step, UUID(step_id))
    queue = QUEUES[knocked.kind] if knocked else Queue(settings().worker_queue)
    while not draining.is_set() and (claim := _claim_next(queue)) is not None:
        run_claimed(claim)


def _claim_next(queue: Queue) -> Claim | None:
    with transaction() as session:
        claim = turns.claim_next(session, queue, facts.name())
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    return claim


def run_claimed(claim: Claim) -> None:
    """Run a step that this process holds."""
    with bound_contextvars(**logs.about(claim)):
        log.info("begins")
        try:
            _run(claim)
        except LeaseLost:
            log.warning("was given to another worker")
        outbox.send_ready()


def _run(claim: Claim) -> None:
    try:
        with Lease(claim, draining) as lease:
            from worker.steps import run  # noqa: PLC0415  imports torch, which the parent must not

            _finish_patiently(claim, run(claim, lease.tick), lease)
    except LeaseLost:
        raise
    except StepStopped:
        endings.end(claim, endings.stop)
    except StepPostponed:
        log.debug("goes back: another is at the same training")
        endings.end(claim, partial(endings.stop, hold_seconds=POSTPONED_SECONDS))
    except WorkerDraining:
        log.warning("goes back: this worker is ending")
        endings.end(claim, endings.stop)
    except StorageFull as error:
        log.warning("was broken off: %s", error.message)
        setback = Setback(error.code, error.message, suspect=False)
        endings.end(claim, partial(endings.set_back, setback=setback))
    except AppError as error:
        log.warning("failed: %s", error.message)
        endings.end(claim, partial(endings.fail, code=error.code, message=error.message))
    except FloatingPointError as error:
        log.warning("failed: %s", error)
        endings.end(claim, partial(endings.fail, code="TRAINING_DIVERGED", message=str(error)))
    except Exception as error:
        log.exception("was broken off")
        if replan.is_out_of_memory(error) and _halved(claim):
            return
        endings.end(claim, partial(endings.set_back, setback=_described(error)))


def _finish_patiently(claim: Claim, output: dict[str, object], lease: Lease) -> None:
    """A finished computation is not thrown away because the database is away for a while."""
    while True:
        try:
            return _finish(claim, output)
        except OperationalError:
            log.exception("its end was not written")
            time.sleep(FINISH_RETRY_SECONDS)
            lease.check()


def _finish(claim: Claim, output: dict[str, object]) -> None:
    with transaction() as session:
        if claim.kind is StepKind.INGEST:
            datasets.ready(session, claim, output)
            return
        protection = steps.finish(session, claim, output)
    endings.clean(protection)


def _halved(claim: Claim) -> bool:
    try:
        return replan.halve(claim)
    except Exception:  # the database is away, say: then the step is set back as it is
        log.exception("no smaller batches were planned")
        return False


def _described(error: Exception) -> Setback:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        folder = error.filename or tempfile.gettempdir()
        return Setback("STORAGE_FULL", f"Expected room on the disk of {folder}, got none.", False)
    if isinstance(error, FileNotFoundError):
        what = f"Expected what an earlier step has stored, got {error}.".splitlines()[0]
        return Setback("BLOB_MISSING", what, True)
    if isinstance(error, OperationalError | OSError):
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more'}"
        what = "Expected database, storage, network and disk to answer"
        return Setback("INFRASTRUCTURE", f"{what}, got {said}.", False)
    if replan.is_out_of_memory(error):
        what = "The device has too little memory for this configuration."
        return Setback("OUT_OF_MEMORY", what, True)
    what = f"A defect of sepgate ({type(error).__name__}); the worker's log says more."
    return Setback("INTERNAL", what, True)
