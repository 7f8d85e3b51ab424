"""What has happened to data sets and protections: written with the rows, in order, never changed.

They outlive what they are about, so that a deletion is on record too.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from api.db import now
from api.models import Dataset, Event, Protection, Step

PLANNED, RETRY_REQUESTED = "protection.planned", "protection.retry_requested"


def record(session: Session, what: str, row: Dataset | Protection | Step, **data: object) -> None:
    """Write down what happens to a row in this transaction.

    It locks the data set or protection first: whoever has read one event has read all that came
    before it. So nobody may lock a step after its protection.
    """
    dataset_id, protection_id = _subject(row)
    owners: type[Dataset | Protection] = Dataset if protection_id is None else Protection
    subject = dataset_id if protection_id is None else protection_id
    owner_id = session.scalar(select(owners.owner_id).where(owners.id == subject).with_for_update())
    if isinstance(row, Step):
        data = {"kind": row.kind, "index": row.index} | data
    session.add(
        Event(
            at=now(session),
            owner_id=owner_id,
            dataset_id=dataset_id,
            protection_id=protection_id,
            what=what,
            data=data,
        )
    )


def record_many(
    session: Session, what: str, protection_id: UUID, data: Sequence[Mapping[str, object]]
) -> None:
    """The same of many steps of one protection, by few statements; in the order of `data`."""
    if not data:
        return
    subject = select(Protection.owner_id).where(Protection.id == protection_id).with_for_update()
    owner = {"owner_id": session.scalar(subject), "protection_id": protection_id}
    about = owner | {"at": now(session), "what": what}
    session.execute(insert(Event), [about | {"data": dict(told)} for told in data])


def after(
    session: Session, owner_id: UUID, protection_id: UUID, event_id: int, limit: int
) -> Sequence[Event]:
    """A protection's events that came after one of them, oldest first; of the owner alone."""
    return session.scalars(
        select(Event)
        .where(
            Event.protection_id == protection_id,
            Event.owner_id == owner_id,
            Event.id > event_id,
        )
        .order_by(Event.id)
        .limit(limit)
    ).all()


def last(session: Session, protection_id: UUID, what: str) -> Event | None:
    """The newest of its kind."""
    found = select(Event).where(Event.protection_id == protection_id, Event.what == what)
    return session.scalar(found.order_by(Event.id.desc()).limit(1))


def number(session: Session, protection_id: UUID, what: str) -> int:
    """How many there are of a kind."""
    found = select(func.count()).where(Event.protection_id == protection_id, Event.what == what)
    return session.scalar(found) or 0


def _subject(row: Dataset | Protection | Step) -> tuple[UUID | None, UUID | None]:
    match row:
        case Dataset():
            return row.id, None
        case Protection():
            return row.dataset_id, row.id
        case Step():
            return row.dataset_id, row.protection_id
