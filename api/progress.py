"""How far steps and protections are, and how long they will take. Reads, and changes nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Float, and_, case, cast, func, select
from sqlalchemy.orm import Session

from api import events
from api.models import Protection, ProtectionState, Step, StepKind, StepState

# As `share_kept` and `share_done` have it.
_SHARE_KEPT = case(
    (Step.state == StepState.DONE, 1.0),
    (Step.progress_total > 0, cast(Step.progress_kept, Float) / Step.progress_total),
    else_=0.0,
)
_SHARE_DONE = case(
    (
        and_(
            Step.state == StepState.RUNNING,
            Step.progress_total > 0,
            Step.progress_done > Step.progress_kept,
        ),
        cast(Step.progress_done, Float) / Step.progress_total,
    ),
    else_=_SHARE_KEPT,
)


@dataclass(frozen=True)
class Progress:
    """Of a protection's steps together, added up by the database: there may be thousands.

    Attributes:
        share: of the whole work that is done, in [0, 1]; 0 until the costs are known.
        share_kept: that need not be done again if it is broken off now, in [0, 1].
        there: kinds of steps, and the states that some of a kind are in.
    """

    share: float
    share_kept: float
    there: frozenset[tuple[StepKind, StepState]]


def of(session: Session, protection_ids: Collection[UUID]) -> dict[UUID, Progress]:
    """Of some protections, each by its id."""
    done, kept = (func.sum(Step.cost * share) for share in (_SHARE_DONE, _SHARE_KEPT))
    query = (
        select(Step.protection_id, Step.kind, Step.state, func.sum(Step.cost), done, kept)
        .where(Step.protection_id.in_(protection_ids))
        .group_by(Step.protection_id, Step.kind, Step.state)
    )
    rows = session.execute(query).all()
    return {key: _added([row for row in rows if row[0] == key]) for key in protection_ids}


def _added(rows: Sequence[Any]) -> Progress:
    total, done, kept = (sum(row[column] for row in rows) for column in (3, 4, 5))
    return Progress(
        share=done / total if total else 0.0,
        share_kept=kept / total if total else 0.0,
        there=frozenset((row.kind, row.state) for row in rows),
    )


def share_kept(step: Step) -> float:
    """Of a step's work, what the next attempt need not do again, in [0, 1]."""
    if step.state is StepState.DONE:
        return 1.0
    return step.progress_kept / step.progress_total if step.progress_total else 0.0


def share_done(step: Step) -> float:
    """Progress of a step in [0, 1]; at least what is kept, which the next attempt goes on from."""
    if step.state is StepState.RUNNING and step.progress_total:
        return max(step.progress_done, step.progress_kept) / step.progress_total
    return share_kept(step)


def eta_seconds(
    session: Session, protection: Protection, progress: Progress, at: datetime
) -> float | None:
    """Seconds to go, from the work done since the start, or since it was tried again; None before
    there is any to judge by."""
    if protection.state is not ProtectionState.RUNNING or protection.started_at is None:
        return None
    since, before = protection.started_at, 0.0
    retry = events.last(session, protection.id, events.RETRY_REQUESTED)
    if retry is not None:
        since, before = retry.at, retry.data.get("share_kept", 0.0)
    return _seconds_to_go(at - since, progress.share - before, 1 - progress.share)


def step_eta_seconds(step: Step, at: datetime) -> float | None:
    """Seconds to the end of a running step, from this attempt's progress; None before any."""
    if step.state is not StepState.RUNNING or step.started_at is None:
        return None
    done, left = step.progress_done - step.progress_begun, step.progress_total - step.progress_done
    return _seconds_to_go(at - step.started_at, done, left)


def _seconds_to_go(spent: timedelta, done: float, left: float) -> float | None:
    """The time so far, by the database's clock, times what is to come over what was done in it."""
    return spent.total_seconds() * left / done if done > 0 else None
