"""How a step's attempt ends without a result, whoever owns the step: a data set or a protection.

It goes back to the queue, at once or later, or it fails and its owner with it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from api import datasets, protections, steps
from api.db import now, transaction
from api.models import Dataset, Protection, Step
from api.scheduling import again, leases
from api.scheduling.joins import Named
from api.scheduling.leases import Claim
from api.settings import settings


@dataclass(frozen=True)
class Setback:
    """What broke an attempt off, in words for its owner.

    Attributes:
        suspect: whether the step itself may be why. Such attempts are counted; what else happens to
            machines is waited for.
    """

    code: str
    message: str
    suspect: bool


Owner = Dataset | Protection | None
"""Whose step it is, as it is afterwards; None where nothing about it has changed."""


def end(
    claim: Claim, ending: Callable[[Session, Step], Owner], lost: Collection[Named] = ()
) -> None:
    """End an attempt in one of the ways below, unless its lease was lost.

    Args:
        lost: the steps before it whose results it misses, which it waits for anew.
    """
    with transaction() as session:
        makers = again.locked(session, claim, lost)
        step = leases.held(session, claim)
        if step is None:
            return
        again.take_back(session, claim, makers)
        if makers:  # which is bounded for each of them, and no attempt of the step's own
            step.attempt -= 1
        ended = ending(session, step)
        if lost:
            again.hold_back(session, claim)
    clean(ended)


def stop(session: Session, step: Step) -> Owner:
    """Broken off since its protection is over or to be: cancelled, or a sibling has failed."""
    leases.give_back(session, step, counts=False, error_code=None, error=None)
    return _settled(session, step)


def postpone(session: Session, step: Step, hold_seconds: float) -> Owner:
    """Another step is doing the same: this one could run, so what was in its way is over."""
    why = {"error_code": None, "error": None, "setbacks": 0, "setback_at": None}
    leases.give_back(session, step, counts=False, hold_seconds=hold_seconds, **why)
    return _settled(session, step)


def fail(session: Session, step: Step, code: str, message: str) -> Owner:
    """Failed for good, and its owner with it."""
    if step.protection_id is None:
        return datasets.reject(session, step, code, message)
    leases.fail(session, step, code, message)
    return _settled(session, step)


def set_back(session: Session, step: Step, setback: Setback) -> Owner:
    """To be tried again after a while that doubles, or failed where that has been done for long.

    Of attempts in a row that kept nothing of their work, `max_attempts` suspect ones are too many,
    and so are any that go on for `give_up_seconds`.
    """
    at = now(session)
    progressed = leases.has_kept(step)
    since = at if progressed or step.setback_at is None else step.setback_at + _queued(step)
    number = 1 if progressed else step.setbacks + 1
    if setback.suspect and leases.attempts(step) >= settings().max_attempts:
        times = f"This was attempt {leases.attempts(step)} in a row that kept nothing."
        return fail(session, step, setback.code, f"{setback.message} {times}")
    if at - since >= timedelta(seconds=settings().give_up_seconds):
        return fail(session, step, setback.code, f"{setback.message} {_since(since, number)}")
    leases.give_back(
        session,
        step,
        counts=setback.suspect,
        hold_seconds=_hold_seconds(number),
        setbacks=number,
        setback_at=since,
        error_code=setback.code,
        error=setback.message,
    )
    return _settled(session, step)


def clean(ended: Owner) -> None:
    """Remove what a data set or a protection that is over has no more use for, after the commit."""
    if isinstance(ended, Dataset):
        if not datasets.may_be_retried(ended):
            datasets.clean(ended)
    else:
        protections.clean(ended)


def _settled(session: Session, step: Step) -> Protection | None:
    return None if step.protection_id is None else steps.settle(session, step.protection_id)


def _queued(step: Step) -> timedelta:
    """How long it waited for a worker after it was due: others' work is no setback of its own."""
    due = step.not_before or step.ready_at
    if due is None or step.started_at is None:
        return timedelta(0)
    return max(step.started_at - due, timedelta(0))


def _hold_seconds(number: int) -> float:
    least, most = settings().backoff_seconds, settings().backoff_max_seconds
    return min(least * 2.0 ** min(number - 1, 60), most)


def _since(since: datetime, number: int) -> str:
    return f"It is setback {number} in a row since {since:%Y-%m-%d %H:%M} UTC."
