"""`run_step`: claim, run, finish. One `try` turns an exception into a code on the row."""

import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from uuid import UUID

from celery import signals
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import datasets, logs, steps
from api.db import AWAY, reading, transaction
from api.errors import AppError, StorageFull
from api.models import QUEUES, Queue, Step, StepKind
from api.processes import die_with_parent
from api.queue import RUN_STEP, app
from api.scheduling import endings, lending, outbox, turns
from api.scheduling.endings import Setback
from api.scheduling.joins import Named
from api.scheduling.leases import Claim
from api.settings import settings
from worker import facts, faults, losses, replan, resident, siblings
from worker.data import BlobChanged, remove_used
from worker.hearing import ear
from worker.lease import (
    Lease,
    LeaseLost,
    StepPostponed,
    StepStopped,
    WorkerDraining,
    check_held,
    draining,
)

log = logging.getLogger(__name__)
_parent = os.getpid()  # Celery imports this before it forks its children

FINISH_RETRY_SECONDS = 2
LENT_SECONDS = 5
DEAF_END_SECONDS = 30
DRAINED = Setback("WORKER_DRAINED", "Its worker was told to end.", suspect=False)
# Of the child that this process is, if it serves the GPU queue.
_device: str | None = None
_gpu: str | None = None


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
    if queue is Queue.CPU:
        facts.register(queue, facts.measure(queue), _end_deaf)
        return
    try:
        found = facts.calibrated(facts.measure(queue), draining)
    except Exception:  # a GPU that is there and broken: Celery would log it and go on
        log.exception("the device does not compute")
        _end_worker()
        return
    if settings().device not in {found.device, "auto"}:
        log.critical("expected SEPGATE_DEVICE=%s, got %s: ends", settings().device, found.device)
        _end_worker()
        return
    global _device, _gpu
    _device, _gpu = found.device, found.gpu
    facts.register(queue, found, _end_deaf)


def _end_worker() -> None:
    """Take nothing more; whoever started the worker starts it again, until its device is there."""
    draining.set()
    os.kill(_parent, signal.SIGTERM)


def _end_deaf() -> None:
    """Who takes no messages may not take signals either, and is ended all the same."""
    log.critical("there are steps and messages, and none comes to %s: ends", facts.name())
    _end_worker()
    time.sleep(settings().drain_seconds + DEAF_END_SECONDS)  # it may just have begun a step
    log.critical("the worker of %s does not end: it is killed", facts.name())
    os.kill(_parent, signal.SIGKILL)  # and with it goes this process


@app.task(name=RUN_STEP)
def run_step(step_id: str) -> None:
    """Run the step whose turn it is in this step's queue, and those after it while there are any.

    A message too many finds nothing to claim.
    """
    with ear.heard():
        with reading() as session:
            knocked = session.get(Step, UUID(step_id))
        queue = QUEUES[knocked.kind] if knocked else Queue(settings().worker_queue)
        try:
            while not draining.is_set() and (claim := _claim_next(queue)) is not None:
                run_claimed(claim)
        finally:
            resident.forget()


def _claim_next(queue: Queue) -> Claim | None:
    """Of a worker whose GPU is lent: as soon as it is not, so that no message is lost on it."""
    while not draining.is_set():
        with transaction() as session:
            if _gpu is None or not lending.is_lent(session, facts.name(), _gpu):
                claim = turns.claim_next(session, queue, facts.name(), _device)
                if claim is not None and claim.protection_id is not None:
                    steps.start(session, claim)
                return claim
        resident.forget()
        time.sleep(LENT_SECONDS)
    return None


def run_claimed(claim: Claim) -> None:
    """Run a step that this process holds."""
    if claim.kind is not StepKind.PERTURB:
        resident.forget()
    with bound_contextvars(**logs.about(claim)):
        log.info("step begins")
        try:
            _run(claim)
        except LeaseLost:
            log.warning("step was given to another worker, or deleted")
        if claim.kind is StepKind.INGEST and claim.dataset_id is not None:
            with suppress(*AWAY, OSError):  # then it is collected
                datasets.clean_deleted(claim.dataset_id)
        outbox.try_to_send()


def _run(claim: Claim) -> None:
    try:
        with Lease(claim, draining) as lease:
            from worker.steps import run  # noqa: PLC0415  imports torch, which the parent must not

            _finish_patiently(claim, run(claim, lease.tick), lease)
    except LeaseLost:
        raise
    except StepStopped:
        _end(claim, endings.stop)
    except StepPostponed as error:
        log.debug("step goes back: another one is at the same training")
        _end(claim, partial(endings.postpone, hold_seconds=error.seconds))
    except WorkerDraining:
        log.warning("step goes back: this worker is ending")
        _end(claim, partial(endings.set_back, setback=DRAINED))
    except (StorageFull, BlobChanged) as error:
        log.warning("step was broken off: %s", error.message)
        _set_back(claim, error)
    except AppError as error:
        log.warning("step failed: %s", error.message)
        _end(claim, partial(endings.fail, code=error.code, message=error.message))
    except FloatingPointError as error:
        log.warning("step failed: %s", error)
        _end(claim, partial(endings.fail, code="TRAINING_DIVERGED", message=str(error)))
    except Exception as error:
        if isinstance(error, FileNotFoundError):  # which it has to be where its data were deleted
            check_held(claim)
        log.exception("step was broken off")
        _set_back(claim, error)


def _set_back(claim: Claim, error: Exception) -> None:
    if faults.is_out_of_memory(error) and replan.halve(claim):
        return
    setback = faults.setback(error)
    lost = losses.before(claim, error) if setback.code in losses.CODES else ()
    _end(claim, partial(endings.set_back, setback=setback), lost)
    if faults.is_gpu_lost(error):  # nothing of CUDA works in this process any more
        os._exit(faults.EXIT_GPU_LOST)


def _end(
    claim: Claim,
    ending: Callable[[Session, Step], endings.Owner],
    lost: Collection[Named] = (),
) -> None:
    """Without a result. Where the database stays away the lease runs out, and somebody is lost."""
    until = time.monotonic() + settings().lease_seconds
    while True:
        try:
            endings.end(claim, ending, lost)
        except AWAY:
            log.exception("the step's end could not be written")
            if time.monotonic() > until:
                return
            time.sleep(FINISH_RETRY_SECONDS)
        except Exception:
            log.exception("the step's end could not be written; its lease will run out")
            return
        else:
            return


def _finish_patiently(claim: Claim, output: dict[str, object], lease: Lease) -> None:
    """A finished computation is not thrown away because the database is away for a while."""
    began = time.monotonic()
    while True:
        try:
            return _finish(claim, output)
        except AWAY:
            if time.monotonic() - began > settings().give_up_seconds:
                raise
            log.exception("the step's end could not be written; trying again")
            time.sleep(FINISH_RETRY_SECONDS)
            lease.check()


def _finish(claim: Claim, output: dict[str, object]) -> None:
    with transaction() as session:
        if claim.kind is StepKind.INGEST:
            datasets.ready(session, claim, output)
            return
        protection = steps.finish(session, claim, output)
    endings.clean(protection)
    if protection is not None:
        with suppress(OSError):  # it goes when the protection ends
            remove_used(protection, claim)
