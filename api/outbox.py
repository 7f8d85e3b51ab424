"""What is to be sent is written with the row; after the commit it is sent. Doubled is harmless."""

from collections.abc import Iterable
from datetime import timedelta
from itertools import takewhile
from uuid import UUID

from kombu.exceptions import OperationalError
from sqlalchemy import select, update

from api import queue, turns
from api.db import now, reading, transaction
from api.models import QUEUES, Queue, Step, StepState
from api.settings import settings

BATCH = 1000


def send_ready() -> None:
    """Knock for every ready step that was not sent yet."""
    with reading() as session:
        unsent = session.execute(
            select(Step.id, Step.kind)
            .where(turns.claimable(now(session)), Step.sent_at.is_(None))
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
            at = now(session)
            limit = at - timedelta(seconds=settings().resend_seconds)
            kinds = turns.kinds_of(name)
            late = session.scalars(
                select(Step.id)
                .where(turns.claimable(at), Step.kind.in_(kinds), Step.sent_at < limit)
                .order_by(Step.created_at, Step.index)
                .limit(BATCH)
            ).all()
        if late and _is_empty(name):
            _send((step_id, name) for step_id in late)


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
