"""Steps of a process that died while its worker lived: that worker's next process gives them back.

Nobody else knows that the worker lived. Where it did not, their leases run out.
"""

import logging
import os

from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import endings, logs
from api.db import transaction
from api.endings import Owner, Setback
from api.models import Step, StepState
from worker import facts

log = logging.getLogger(__name__)


def set_back_lost() -> None:
    """Called by a new process of this worker, before it takes a step."""
    try:
        with transaction() as session:
            ended = [_set_back(session, step) for step in _held(session) if _is_dead(step)]
        for row in ended:
            endings.clean(row)
    except Exception:  # database or storage are away: then the leases run out
        log.exception("whether a process of this worker has died was not found out")


def _held(session: Session) -> list[Step]:
    ours = Step.lease_owner.startswith(f"{facts.worker()}:", autoescape=True)
    query = select(Step).where(Step.state == StepState.RUNNING, ours).order_by(Step.id)
    return list(session.scalars(query.with_for_update(skip_locked=True)))


def _is_dead(step: Step) -> bool:
    assert step.lease_owner is not None
    try:
        os.kill(int(step.lease_owner.rpartition(":")[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's by now
        return True
    return False


def _set_back(session: Session, step: Step) -> Owner:
    with bound_contextvars(**logs.about(step)):
        log.warning("died with %s", step.lease_owner)
    message = (
        f"The process was killed in the middle of {step.kind}; the worker's log, or the kernel's "
        "for a lack of memory, says why."
    )
    return endings.set_back(session, step, Setback("PROCESS_DIED", message, suspect=True))
