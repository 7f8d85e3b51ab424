"""Steps of a process that died while its worker lived: that worker's next process gives them back.

Nobody else knows that the worker lived. Where it did not, their leases run out.
"""

import logging
import os
from collections.abc import Sequence
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import events, logs
from api.db import reading
from api.models import Step, StepState
from api.scheduling import endings, leases
from api.scheduling.endings import Setback
from api.scheduling.leases import Claim
from api.settings import settings
from worker import facts, replan

DIED = "PROCESS_DIED"
MAX_HALVINGS = 2
"""For deaths that say nothing of memory: each throws away what was perturbed."""
log = logging.getLogger(__name__)


def set_back_lost() -> None:
    """Called by a new process of this worker, before it takes a step."""
    try:
        with reading() as session:
            dead = [step for step in _held(session) if _is_dead(step)]
        for step in dead:
            with bound_contextvars(**logs.about(step)):
                log.warning("process %s died while it ran this step", step.lease_owner)
                _set_back(step, leases.claim_of(step))
    except Exception:  # database or storage are away: then the leases run out
        log.exception("could not look for steps of processes that have died")


def _held(session: Session) -> Sequence[Step]:
    ours = Step.lease_owner.startswith(f"{facts.worker()}:", autoescape=True)
    query = select(Step).where(Step.state == StepState.RUNNING, ours).order_by(Step.id)
    return session.scalars(query).all()


def _is_dead(step: Step) -> bool:
    assert step.lease_owner is not None
    try:
        os.kill(int(step.lease_owner.rpartition(":")[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's by now
        return True
    return False


def _plans(claim: Claim) -> int:
    if claim.protection_id is None:
        return 0
    with reading() as session:
        return events.number(session, claim.protection_id, events.PLANNED)


def _set_back(step: Step, claim: Claim) -> None:
    """Where it would fail, it may be that the host's memory is too small for its batches."""
    again = step.error_code == DIED and leases.attempts(step) >= settings().max_attempts
    if again and _plans(claim) <= MAX_HALVINGS and replan.halve(claim):
        return
    message = (
        f"The process was killed in the middle of {step.kind}; the worker's log, or the kernel's "
        "for a lack of memory, says why."
    )
    setback = Setback(DIED, message, suspect=True)
    endings.end(claim, partial(endings.set_back, setback=setback))
