"""Whose blobs these are: a marker beside them names the database whose rows say which are kept.

An empty database, or another's, knows none of them: what it does not know is not to be removed.
"""

from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api import storage
from api.db import now, reading, transaction
from api.models import Dataset, DatasetState, Identity, Orphan, Protection
from api.settings import settings

MARKER = "database"
KINDS = "datasets", "protections"


def objection(session: Session) -> str | None:
    """Why these may be another database's blobs, and what to do; None if they are this one's.

    Without a marker they are where rows know one of them, or there is none but young ones: before
    there were markers there was none either. No blobs are not those of rows that should have some:
    a volume may not be mounted.
    """
    ours, marker = _ours(session), storage.read_if_there(MARKER)
    if marker == ours or (marker is None and _may_be_ours(session)):
        return None
    theirs = f"those of {marker.decode(errors='replace')}" if marker else _unknown()
    return (
        f"Expected blobs of this database, {ours.decode()}, got {theirs}; none is collected. "
        "Correct SEPGATE_DATABASE_URL or SEPGATE_STORAGE_URL, or restore the database's backup. "
        "Or run `sepgate adopt-storage`: blobs without a row here then go after "
        "SEPGATE_ORPHAN_GRACE_SECONDS."
    )


def adopt() -> None:
    """Let the rows of this database say which blobs are kept, from now on."""
    if at_hand():
        return
    with transaction() as session:
        ours = _ours(session)
        session.execute(delete(Orphan))  # what it saw before it lost them is long ago
    storage.write(MARKER, ours)


def at_hand() -> bool:
    """Whether the storage that this process sees is this database's: not another, nor an empty one.

    False, too, until the sweep has marked it, which is the first thing that it does.
    """
    with reading() as session:
        ours = _ours(session)
    return storage.read_if_there(MARKER) == ours


def _ours(session: Session) -> bytes:
    return str(session.scalars(select(Identity.id)).one()).encode()


def _may_be_ours(session: Session) -> bool:
    # What is young may be an upload, whose row is still to come.
    grace = settings().orphan_grace_seconds
    stored = [storage.idle_owners(kind, grace) for kind in KINDS]
    if not any(stored):
        return _is_stored() or not _is_expected(session, timedelta(seconds=grace))
    known = [set(session.scalars(select(model.id))) for model in (Dataset, Protection)]
    return any(a & b for a, b in zip(stored, known, strict=True))


def _unknown() -> str:
    return "some that it does not know" if _is_stored() else "none"


def _is_stored() -> bool:
    return any(storage.idle_owners(kind, 0) for kind in KINDS)


def _is_expected(session: Session, grace: timedelta) -> bool:
    """Whether a data set was read so long ago, and is kept."""
    old = Dataset.state == DatasetState.READY, Dataset.finished_at < now(session) - grace
    return session.scalar(select(Dataset.id).where(*old).limit(1)) is not None
