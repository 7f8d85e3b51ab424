"""What is to be sent is written with the row; after the commit it is sent. Doubled is harmless."""

from collections.abc import Iterable
from datetime import timedelta
from itertools import takewhile
from uuid import UUID

from kombu.exceptions import OperationalError
from sqlalchemy import ColumnElement, or_, select, update

from api import queue
from api.db import now, reading, transaction
from api.models import ACTIVE, QUEUES, Protection, Queue, Step, StepState
from api.settings import settings

BATCH = 1000


def send_ready() -> None:
    """Knock for every ready step that was not sent yet."""
    with reading() as session:
        unsent = session.execute(
            select(Step.id, Step.kind)
            .where(_claimable(), Step.sent_at.is_(None))
            .order_by(Step.created_at, Step.index)
            .limit(BATCH)
        ).all()
    _send((step_id, QUEUES[kind]) for step_id, kind in unsent)


def send_lost() -> None:
    """Knock again for steps whose message is gone: sent a while ago, and the queue lies empty.

    A step that merely waits its turn has its message in the queue, so nothing piles up.
    """
    for name in Queue:
        with reading() as session:
            limit = now(session) - timedelta(seconds=settings().resend_seconds)
            kinds = [kind for kind, queue_name in QUEUES.items() if queue_name is name]
            late = session.scalars(
                select(Step.id)
                .where(_claimable(), Step.kind.in_(kinds), Step.sent_at < limit)
                .order_by(Step.created_at, Step.index)
                .limit(BATCH)
            ).all()
        if late and _is_empty(name):
            _send((step_id, name) for step_id in late)


def _claimable() -> ColumnElement[bool]:
    """Ready, and of a data set or of a protection that is not over: nobody claims another."""
    active = select(Protection.id).where(
        Protection.state.in_(ACTIVE), Protection.cancel_requested.is_(False)
    )
    wanted = or_(Step.protection_id.is_(None), Step.protection_id.in_(active))
    return (Step.state == StepState.READY) & wanted


def _is_empty(name: Queue) -> bool:
    try:
        return queue.waiting(name) == 0
    except OperationalError:
        return False


def _send(steps: Iterable[tuple[UUID, Queue]]) -> None:
    # Up to the first that fails: a broker that is away costs seconds at each try.
    sent = [step_id for step_id, _ in takewhile(lambda step: queue.send(*step), steps)]
    if sent:
        with transaction() as session:
            session.execute(
                update(Step)
                .where(Step.id.in_(sent), Step.state == StepState.READY)
                .values(sent_at=now(session))
            )
