"""What steps have stored and is lost, or damaged, is made again by the steps that made it."""

from collections import Counter
from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from api import events
from api.models import Event, Step, StepKind, StepState
from api.scheduling import moves
from api.scheduling.joins import Named, needs_any
from api.scheduling.leases import Claim
from api.settings import settings


def locked(session: Session, claim: Claim, lost: Collection[Named]) -> Sequence[UUID]:
    """The steps that are to make again what is lost, before the step that misses it is locked.

    Shards come before what encodes them: as all others lock. What was lost `max_attempts` times is
    not made again: then whatever misses it fails, too, and names it.
    """
    if not lost:
        return []
    # Not those that wait: who makes them ready has locked the protection before.
    done = and_(Step.kind.in_({kind for kind, _ in lost}), Step.state == StepState.DONE)
    of_these = or_(done, Step.id == claim.step_id)
    query = select(Step.id, Step.kind, Step.index).where(
        Step.protection_id == claim.protection_id, of_these
    )
    rows = session.execute(query.order_by(Step.kind.desc(), Step.id).with_for_update()).all()
    times, most = _times(session, claim), settings().max_attempts
    named = {name for name in lost if times[name] < most}
    return [key for key, kind, index in rows if (kind, index) in named]


def _times(session: Session, claim: Claim) -> Counter[Named]:
    """How often each has been taken back since the protection began, or was tried again."""
    assert claim.protection_id is not None
    retry = events.last(session, claim.protection_id, events.RETRY_REQUESTED)
    back = Event.what == f"step.{StepState.WAITING}", Event.id > (retry.id if retry else 0)
    told = select(Event.data).where(Event.protection_id == claim.protection_id, *back)
    return Counter((StepKind(data["kind"]), data["index"]) for data in session.scalars(told))


def take_back(session: Session, claim: Claim, step_ids: Sequence[UUID]) -> None:
    """done -> waiting, where they are still done: somebody else may have missed the same."""
    if step_ids and claim.protection_id is not None:
        moves.take_back(session, claim.protection_id, step_ids)


def hold_back(session: Session, claim: Claim) -> None:
    """ready -> waiting: what would only find out, too, that something is lost.

    Of a protection that is locked. Not what somebody is about to claim: who waited for that would
    be waited for.
    """
    of_it = Step.protection_id == claim.protection_id
    undone = select(Step.kind, Step.index).where(of_it, Step.state != StepState.DONE)
    needs = needs_any([(kind, index) for kind, index in session.execute(undone)])
    ready = select(Step.id, Step.kind, Step.index).where(of_it, Step.state == StepState.READY)
    locked = ready.order_by(Step.id).with_for_update(skip_locked=True)
    early = [key for key, kind, index in session.execute(locked) if needs(kind, index)]
    moves.hold_back(session, early)
