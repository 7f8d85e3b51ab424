"""Whose blobs these are: a marker beside them names the database whose rows say which are kept.

An empty database, or another's, knows none of them: what it does not know is not to be removed.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api import storage
from api.db import reading, transaction
from api.models import Dataset, Identity, Orphan, Protection
from api.settings import settings

MARKER = "database"


def objection(session: Session) -> str | None:
    """Why these may be another database's blobs, and what to do; None if they are this one's.

    Without a marker they are where rows know one of them, or there is none but young ones: before
    there were markers there was none either.
    """
    ours, marker = _ours(session), storage.read_if_there(MARKER)
    if marker == ours or (marker is None and _may_be_ours(session)):
        return None
    theirs = (
        "some that it does not know"
        if marker is None
        else f"those of {marker.decode(errors='replace')}"
    )
    return (
        f"Expected blobs of this database, {ours.decode()}, got {theirs}; none is collected. "
        "Correct SEPGATE_DATABASE_URL or SEPGATE_STORAGE_URL, or restore the database's backup. "
        "Or run `sepgate adopt-storage`: blobs without a row here then go after "
        "SEPGATE_ORPHAN_GRACE_SECONDS."
    )


def adopt() -> None:
    """Let the rows of this database say which blobs are kept, from now on."""
    with reading() as session:
        ours = _ours(session)
    if storage.read_if_there(MARKER) == ours:
        return
    with transaction() as session:
        session.execute(delete(Orphan))  # what it saw before it lost them is long ago
    storage.write(MARKER, ours)


def _ours(session: Session) -> bytes:
    return str(session.scalars(select(Identity.id)).one()).encode()


def _may_be_ours(session: Session) -> bool:
    # What is young may be an upload, whose row is still to come.
    grace = settings().orphan_grace_seconds
    stored = [storage.idle_owners(kind, grace) for kind in ("datasets", "protections")]
    known = [set(session.scalars(select(model.id))) for model in (Dataset, Protection)]
    return not any(stored) or any(a & b for a, b in zip(stored, known, strict=True))
