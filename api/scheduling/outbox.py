"""What is to be sent is written with the row; after the commit it is sent. Doubled is harmless."""

import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from kombu.exceptions import OperationalError
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from api import queue
from api.db import now, reading, transaction
from api.models import QUEUES, Queue, Step, StepState, Worker, fresh_since
from api.scheduling import turns
from api.settings import settings

BATCH = 1000

log = logging.getLogger(__name__)


def send_ready() -> None:
    """Knock for every ready step that was not sent yet."""
    with reading() as session:
        at = now(session)
        unsent = session.execute(
            select(Step.id, Step.kind)
            .where(turns.claimable(at), Step.sent_at.is_(None))
            .order_by(Step.created_at, Step.index)
            .limit(BATCH)
        ).all()
    _send([(step_id, QUEUES[kind]) for step_id, kind in unsent], Step.sent_at.is_(None), at)


def try_to_send() -> None:
    """The same, for who has done what was asked: what can't be sent now, the sweep sends."""
    try:
        send_ready()
    except Exception:
        log.exception("what is ready was not sent")


def send_lost() -> None:
    """Knock again for steps whose message is gone: sent a while ago, and the queue lies empty.

    A step that merely waits its turn has its message in the queue, so nothing piles up. One message
    a worker: it takes whatever may be done until there is nothing, which may be at once, since
    steps that wait for their owner's limit, or for a device that nobody has, are never claimed.
    """
    with reading() as session:
        at = now(session)
        was_sent = Step.sent_at < at - timedelta(seconds=settings().resend_seconds)
        query = select(Step.id).where(turns.claimable(at), was_sent)
        query = query.order_by(Step.created_at, Step.index)
        if session.scalar(query.limit(1)) is None:  # most often, and one query says so
            return
        late = {
            name: session.scalars(
                query.where(Step.kind.in_(turns.kinds_of(name))).limit(_workers(session, name))
            ).all()
            for name in Queue
        }
    for name, step_ids in late.items():
        if step_ids and _is_empty(name):
            _send([(step_id, name) for step_id in step_ids], was_sent, at)


def _workers(session: Session, name: Queue) -> int:
    """How many serve a queue now, and 1 where none does: who comes next."""
    fresh = Worker.heartbeat_at > fresh_since(now(session))
    alive = select(func.count()).select_from(Worker).where(Worker.queue == name, fresh)
    return max(session.scalars(alive).one(), 1)


def _is_empty(name: Queue) -> bool:
    try:
        return queue.waiting(name) == 0
    except OperationalError:
        return False


def _send(steps: Sequence[tuple[UUID, Queue]], found: ColumnElement[bool], at: datetime) -> None:
    """Written first: whoever is woken by the message is to find the row free."""
    marked = _mark([step_id for step_id, _ in steps], found, at)
    unsent = deque(step for step in steps if step[0] in marked)
    try:
        # Up to the first that fails: a broker that is away costs seconds at each try.
        while unsent and queue.send(*unsent[0]):
            unsent.popleft()
    finally:
        _mark([step_id for step_id, _ in unsent], Step.sent_at == at, None)


def _mark(
    step_ids: Sequence[UUID], found: ColumnElement[bool], sent_at: datetime | None
) -> set[UUID]:
    """Write when ready steps were sent that still are as they were found; which ones."""
    if not step_ids:
        return set()
    wanted = select(Step.id).where(Step.id.in_(step_ids), Step.state == StepState.READY, found)
    with transaction() as session:
        # Others lock many steps, too. Who waits for none of them can't be waited for in a circle.
        locked = wanted.order_by(Step.id).with_for_update(skip_locked=True)
        ours = session.scalars(locked).all()
        session.execute(update(Step).where(Step.id.in_(ours)).values(sent_at=sent_at))
    return set(ours)
