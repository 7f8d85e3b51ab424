"""Whose blobs these are: a marker beside them names the database whose rows say which are kept.

An empty database, or another's, knows none of them: what it does not know is not to be removed.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from api import datasets, storage
from api.db import reading, transaction
from api.models import Dataset, DatasetState, Identity, Orphan, Protection
from api.settings import settings

MARKER = "database"
KINDS = "datasets", "protections"


def objection(session: Session) -> str | None:
    """Why these may be another database's blobs, and what to do; None if they are this one's.

    Without a marker they are where rows know one of them, or there is none but young ones: before
    there were markers there was none either. Not where the oldest data set's upload is not there: a
    volume may not be mounted.
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


def absence() -> str | None:
    """Why nothing may be stored here; None where it may.

    What is written into the folder where a volume should be is gone when the volume is back.
    """
    with reading() as session:
        if storage.read_if_there(MARKER) == _ours(session) or not _is_elsewhere(session):
            return None
    return (
        "Expected this database's blobs at SEPGATE_STORAGE_URL, got none of them: "
        "a volume may not be mounted."
    )


def _ours(session: Session) -> bytes:
    return str(session.scalars(select(Identity.id)).one()).encode()


def _may_be_ours(session: Session) -> bool:
    # What is young may be an upload, whose row is still to come.
    grace = settings().orphan_grace_seconds
    stored = [storage.idle_owners(kind, grace) for kind in KINDS]
    if _is_elsewhere(session):
        return False
    if not any(stored):
        return True
    known = [set(session.scalars(select(model.id))) for model in (Dataset, Protection)]
    return any(a & b for a, b in zip(stored, known, strict=True))


def _unknown() -> str:
    stored = any(storage.idle_owners(kind, 0) for kind in KINDS)
    return "some that it does not know" if stored else "none"


def _is_elsewhere(session: Session) -> bool:
    """Whether the upload that was read first is not there; what was stored since may be."""
    ready = select(Dataset.id).where(Dataset.state == DatasetState.READY)
    first = session.scalar(ready.order_by(Dataset.created_at).limit(1))
    if first is None:
        return False
    return storage.size_if_there(storage.dataset_key(first, datasets.SOURCE)) is None
