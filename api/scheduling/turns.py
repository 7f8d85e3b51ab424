"""Whose step is next: owners take turns, each with its own protections in order of priority.

A message says that there is work in a queue, not which: a worker that is free asks the rows.
"""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, func, or_, select, true
from sqlalchemy.orm import Session, aliased

from api.db import now
from api.models import (
    ACTIVE,
    QUEUES,
    Dataset,
    Owner,
    Protection,
    Queue,
    Step,
    StepKind,
    StepState,
    Turn,
)
from api.scheduling import leases
from api.scheduling.leases import Claim

_planned_device = Protection.plan["device"].as_string()
# What others wait for comes before the evidence, which can fill the time in between.
_RANK = case((Step.kind == StepKind.TRAIN, 0), (Step.kind == StepKind.PERTURB, 1), else_=2)
# Somebody waits for it before anything else can be asked, and it is short.
_UPLOADS_FIRST = case((Step.kind == StepKind.INGEST, 0), else_=1)
_owner_id = func.coalesce(Protection.owner_id, Dataset.owner_id)

_sibling = aliased(Step)
_failed = select(_sibling.protection_id).where(
    _sibling.state == StepState.FAILED, _sibling.protection_id.is_not(None)
)
_active = select(Protection.id).where(
    Protection.state.in_(ACTIVE),
    Protection.cancel_requested.is_(False),
    Protection.id.not_in(_failed),
)
# Made once: to make it takes SQLAlchemy longer than the database takes to answer.
WANTED = or_(Step.protection_id.is_(None), Step.protection_id.in_(_active))
"""Steps of data sets, and of protections that are to go on."""


def claim_next(
    session: Session, queue: Queue, worker: str, device: str | None = None
) -> Claim | None:
    """Claim the step whose turn it is; None if there is nothing that may be done now.

    The owner with the fewest running steps in this queue comes first, of those who have equally
    many the one that was served longest ago. No owner gets more steps at once than its limit.
    Who claims at the same time waits until this transaction ends, and counts what it has claimed.

    Args:
        device: what a plan must be for, where there is one: others' bytes would differ.
    """
    _wait_in_line(session, queue)
    at = now(session)
    passed: list[UUID] = []
    query = _next(queue, at, device)
    while (found := session.execute(query.where(Step.id.not_in(passed))).first()) is not None:
        step_id, owner_id = found
        # Who waited for one protection's lock in vain lets go of it before asking for another's.
        with session.begin_nested() as attempt:
            if _lock(session, step_id):
                claim = leases.claim(session, step_id, worker)
                if claim is not None:
                    session.merge(Turn(owner_id=owner_id, queue=queue, served_at=at))
                    return claim
            attempt.rollback()
        passed.append(step_id)
    return None


def is_overdue(session: Session, queue: Queue, device: str | None, seconds: float) -> bool:
    """Whether a step could be claimed that could have been so long ago; nothing is locked."""
    at = now(session) - timedelta(seconds=seconds)
    return session.execute(_next(queue, at, device).where(Step.ready_at <= at)).first() is not None


def claimable(at: datetime) -> ColumnElement[bool]:
    """Ready and not held back, and of a data set or of a protection that is to go on."""
    due = or_(Step.not_before.is_(None), Step.not_before <= at)
    return and_(Step.state == StepState.READY, due, WANTED)


def kinds_of(queue: Queue) -> list[StepKind]:
    """Which steps a queue is for."""
    return [kind for kind, name in QUEUES.items() if name is queue]


def _wait_in_line(session: Session, queue: Queue) -> None:
    """Until nobody else is claiming in this queue; SQLite has one writer at a time as it is.

    Who chose at the same time would not see each other's claims: eight workers that a burst of
    steps wakes up would all serve the same owner.
    """
    if session.get_bind().dialect.name != "sqlite":
        line = func.hashtext(f"sepgate.turns.{queue}")
        session.execute(select(func.pg_advisory_xact_lock(line)))


def _lock(session: Session, step_id: UUID) -> bool:
    """Not what has just been marked as sent, or a host that sleeps has locked: nobody waits there.

    Apart from the choice: PostgreSQL would sort all that there is, and whole rows, to lock one.
    """
    step = select(Step).where(Step.id == step_id).with_for_update(skip_locked=True)
    return session.scalar(step.execution_options(populate_existing=True)) is not None


def _next(queue: Queue, at: datetime, device: str | None) -> Select[UUID, UUID]:
    running = _running(queue)
    number = func.coalesce(running.c.number, 0)
    return (
        select(Step.id, Owner.id)
        .outerjoin(Protection, Step.protection_id == Protection.id)
        .outerjoin(Dataset, Step.dataset_id == Dataset.id)
        .join(Owner, Owner.id == _owner_id)
        .outerjoin(running, running.c.owner_id == Owner.id)
        .outerjoin(Turn, and_(Turn.owner_id == Owner.id, Turn.queue == queue))
        .where(
            claimable(at),
            true() if device is None else func.coalesce(_planned_device, device) == device,
            Step.kind.in_(kinds_of(queue)),
            or_(Owner.max_running.is_(None), number < Owner.max_running),
        )
        .order_by(
            number,
            case((Turn.served_at.is_(None), 0), else_=1),
            Turn.served_at,
            Owner.created_at,
            Owner.id,
            _UPLOADS_FIRST,
            func.coalesce(Protection.priority, 0).desc(),
            func.coalesce(Protection.created_at, Step.created_at),
            _RANK,
            Step.cost.desc(),  # begun last, the longest would be waited for by all others
            Step.index,
            Step.id,
        )
        .limit(1)
    )


def _running(queue: Queue) -> Subquery:
    """How many steps of each owner run in this queue."""
    return (
        select(_owner_id.label("owner_id"), func.count().label("number"))
        .select_from(Step)
        .outerjoin(Protection, Step.protection_id == Protection.id)
        .outerjoin(Dataset, Step.dataset_id == Dataset.id)
        .where(Step.state == StepState.RUNNING, Step.kind.in_(kinds_of(queue)))
        .group_by(_owner_id)
        .subquery()
    )
