"""What only one process may do at a time: a leased row, by the database's clock."""

from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.db import now
from api.models import Lock

SWEEP = "sweep"


def hold(session: Session, name: str, holder: str, seconds: float) -> bool:
    """Take a lock that is free or has run out, or keep one's own; False if another has it."""
    at = now(session)
    until = at + timedelta(seconds=seconds)
    kept = update(Lock).where(Lock.name == name, Lock.holder == holder).values(expires_at=until)
    if session.execute(kept).rowcount:  # type: ignore[attr-defined]  # a CursorResult
        return True
    taken = (
        update(Lock)
        .where(Lock.name == name, Lock.expires_at <= at)
        .values(holder=holder, taken_at=at, expires_at=until)
    )
    if session.execute(taken).rowcount:  # type: ignore[attr-defined]  # a CursorResult
        return True
    if session.get(Lock, name) is not None:
        return False
    try:
        with session.begin_nested():
            session.add(Lock(name=name, holder=holder, taken_at=at, expires_at=until))
    except IntegrityError:  # another was faster
        return False
    return True


def release(session: Session, name: str, holder: str) -> None:
    """Let another have it at once."""
    mine = update(Lock).where(Lock.name == name, Lock.holder == holder)
    session.execute(mine.values(expires_at=now(session)))
