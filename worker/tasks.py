"""`run_step`: claim, run, finish. One `try` turns an exception into a code on the row."""

import errno
import logging
import os
import signal
import tempfile
import time
from uuid import UUID

from celery import signals
from sqlalchemy.exc import OperationalError

from api import datasets, leases, outbox, protections, steps
from api.db import reading, transaction
from api.errors import AppError
from api.leases import Claim
from api.models import Queue, Step, StepKind
from api.processes import die_with_parent
from api.queue import RUN_STEP, app
from api.settings import settings
from worker import facts
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
POSTPONED_SECONDS = 2
"""So long a step is held before it goes to the end of the queue, which may have no other."""
FULL = "Expected room in the temporary folder ({}), got a full disk {} times in a row."


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    draining.set()


@signals.worker_process_init.connect
def _adopt(**_: object) -> None:
    """A child must not outlive its parent: nobody would stop it, and it would hold the device."""
    die_with_parent(signal.SIGKILL, _parent)
    queue = Queue(settings().worker_queue)
    found = facts.measure(queue)
    facts.register(queue, facts.calibrated(found, draining) if queue is Queue.GPU else found)


@app.task(name=RUN_STEP)
def run_step(step_id: str) -> None:
    """Run one step to its end, whatever that is. A message for a claimed step finds nothing."""
    with transaction() as session:
        claim = leases.claim(session, UUID(step_id), facts.name())
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    if claim is None:
        return
    log.info("step %s (%s %d), attempt %d", step_id, claim.kind, claim.index, claim.attempt)
    try:
        _run(claim)
    except LeaseLost:
        log.warning("step %s was given to another worker", step_id)
    outbox.send_ready()


def _run(claim: Claim) -> None:
    try:
        with Lease(claim, draining) as lease:
            output = _run_or_wait(claim, lease)
            _finish_patiently(claim, output, lease)
    except LeaseLost:
        raise
    except StepStopped:
        _stop(claim, counts=False)
    except StepPostponed:
        log.debug("step %s goes back: another is at the same training", claim.step_id)
        _stop(claim, counts=False)
    except WorkerDraining:
        log.warning("step %s goes back: this worker is ending", claim.step_id)
        _stop(claim, counts=False)
    except AppError as error:
        log.warning("step %s failed: %s", claim.step_id, error.message)
        _fail(claim, error.code, error.message)
    except FloatingPointError as error:
        log.warning("step %s failed: %s", claim.step_id, error)
        _fail(claim, "TRAINING_DIVERGED", str(error))
    except (OperationalError, OSError) as error:
        log.exception("step %s met a failure of the infrastructure", claim.step_id)
        _retry(claim, error)
    except Exception as error:
        log.exception("step %s failed", claim.step_id)
        _fail(claim, *_described(error))


def _run_or_wait(claim: Claim, lease: Lease) -> dict[str, object]:
    from worker.steps import run  # noqa: PLC0415  imports torch, which the parent must not

    try:
        return run(claim, lease.tick)
    except StepPostponed:
        time.sleep(POSTPONED_SECONDS)  # while the lease is renewed
        raise


def _finish_patiently(claim: Claim, output: dict[str, object], lease: Lease) -> None:
    """A finished computation is not thrown away because the database is away for a while."""
    while True:
        try:
            return _finish(claim, output)
        except OperationalError:
            log.exception("the end of step %s was not written", claim.step_id)
            time.sleep(FINISH_RETRY_SECONDS)
            lease.check()


def _finish(claim: Claim, output: dict[str, object]) -> None:
    with transaction() as session:
        if claim.kind is StepKind.INGEST:
            datasets.ready(session, claim, output)
            return
        protection = steps.finish(session, claim, output)
    protections.clean(protection)


def _fail(claim: Claim, code: str, message: str) -> None:
    if claim.kind is StepKind.INGEST:
        with transaction() as session:
            step = leases.held(session, claim)
            dataset = datasets.reject(session, step, code, message) if step else None
        if dataset is not None:
            datasets.clean(dataset)
        return
    with transaction() as session:
        protection = steps.fail(session, claim, code, message)
    protections.clean(protection)


def _stop(claim: Claim, *, counts: bool) -> None:
    if claim.kind is StepKind.INGEST:
        with transaction() as session:
            step = leases.held(session, claim)
            if step is not None:
                leases.give_back(session, step, counts=counts)
        return
    with transaction() as session:
        protection = steps.stop(session, claim, counts=counts)
    protections.clean(protection)


def _retry(claim: Claim, error: Exception) -> None:
    """Room may be made, the database come back: until the last attempt this is no failure."""
    with reading() as session:
        step = session.get(Step, claim.step_id)
    if step is None:
        return
    attempts = leases.attempts(step)
    if attempts < settings().max_attempts:
        _stop(claim, counts=True)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _fail(claim, "STORAGE_FULL", FULL.format(tempfile.gettempdir(), attempts))
    else:
        _fail(
            claim,
            "INFRASTRUCTURE",
            f"Database, storage, network or disk failed {attempts} times in a row.",
        )


def _described(error: Exception) -> tuple[str, str]:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "OUT_OF_MEMORY", "The device has too little memory for this configuration."
    return "INTERNAL", f"A defect of sepgate ({type(error).__name__}); the worker's log says more."
