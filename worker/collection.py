"""What is left over goes: blobs that no row keeps, those of what may not be tried again any more,
half-written ones, rows of workers long gone."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import adoption, datasets, events, protections, storage
from api.atomic import HALF_WRITTEN
from api.db import now, reading, transaction
from api.models import ACTIVE, Dataset, Event, Orphan, Protection, ProtectionState, Worker
from api.settings import settings

WORKER_FORGOTTEN_AFTER_SECONDS = 86_400
KINDS = ("datasets", "protections", "probes")
HALF = ("*#*", *(f"{kind}/**/*#*" for kind in KINDS))

log = logging.getLogger(__name__)


def collect(*, aged: bool = True) -> None:
    """One round.

    Args:
        aged: whether blobs of what failed go, too, when they may not be tried again any more.
    """
    with transaction() as session:
        limit = now(session) - timedelta(seconds=WORKER_FORGOTTEN_AFTER_SECONDS)
        old = select(Worker.name).where(Worker.heartbeat_at < limit)
        names = session.scalars(old.with_for_update(skip_locked=True)).all()
        session.execute(delete(Worker).where(Worker.name.in_(names)))
    with reading() as session:
        objection = adoption.objection(session)
    if objection is not None:
        log.error(objection)
        return
    adoption.adopt()
    if aged:
        _remove_failed()
    _collect_blobs()
    _clean_succeeded()
    for pattern in HALF:
        with careful(f"{pattern}: what is half written was not removed"):
            _remove_half_written(pattern)


@contextmanager
def careful(what: str) -> Iterator[None]:
    """What fails is logged, and what comes next is done all the same."""
    try:
        yield
    except Exception:
        log.exception(what)


def _remove_failed() -> None:
    """Remove the blobs of what failed so long ago; its row stays, and an event tells."""
    for model, kind, key in (
        (Protection, "protection", storage.protection_key),
        (Dataset, "dataset", storage.dataset_key),
    ):
        with reading() as session:
            over = select(model.id).where(_may_not_be_retried(session, model))
            found = session.scalars(over).all()
        for row_id in found:
            about = {f"{kind}_id": str(row_id)}
            with bound_contextvars(**about), careful("its blobs were not removed"):
                _remove_blobs(model, row_id, key(row_id), f"{kind}.blobs_removed")


def _remove_blobs(model: type[Protection | Dataset], row_id: UUID, key: str, what: str) -> None:
    with transaction() as session:
        # Waits for whoever was just allowed to try it again; from now on nobody is.
        session.get(model, row_id, with_for_update=True)
        ours = model.id == row_id, _may_not_be_retried(session, model)
        if session.scalar(select(model.id).where(*ours)) is None:
            return
    why = f"It failed, and was kept for {settings().failed_keep_seconds / 86_400:g} days."
    log.warning("removing blobs: %s", why)
    storage.remove(key)
    with transaction() as session:
        row = session.get(model, row_id)
        if isinstance(row, model):
            events.record(session, what, row, why=why)


def _may_not_be_retried(session: Session, model: type[Protection | Dataset]) -> ColumnElement[bool]:
    """Failed too long ago, with blobs that were kept for that."""
    of = Event.protection_id if model is Protection else Event.dataset_id
    since = of == model.id, Event.at > model.finished_at
    removed = exists().where(*since, Event.what.like("%.blobs_removed"))
    limit = now(session) - timedelta(seconds=settings().failed_keep_seconds)
    # What failed and has lost its data set lost its blobs then.
    failed = and_(Protection.state == ProtectionState.FAILED, Protection.dataset_id.is_not(None))
    if model is Dataset:
        failed = Dataset.error_code.in_(datasets.OURS)
    return and_(failed, model.finished_at < limit, ~removed)


def _collect_blobs() -> None:
    """Remove what no row has kept for the grace, and nobody has changed: it might be an upload."""
    grace = settings().orphan_grace_seconds
    idle = {f"{kind}/{owner}" for kind in KINDS for owner in storage.idle_owners(kind, grace)}
    with transaction() as session:
        overdue = _overdue(session, idle - _kept(session))
    for key in overdue:
        log.warning("removing %s: no row keeps it", key)
        with careful(f"{key} was not removed"):
            storage.remove(key)


def _overdue(session: Session, orphans: set[str]) -> list[str]:
    """Of these, what was one a grace ago, too.

    As this database has seen it: after it was restored, what is younger than its backup has no row.
    """
    at = now(session)
    limit = at - timedelta(seconds=settings().orphan_grace_seconds)
    seen = {row.key: row for row in session.scalars(select(Orphan))}
    for key in seen.keys() - orphans:
        session.delete(seen.pop(key))
    new = {key: Orphan(key=key, seen_at=at) for key in orphans - seen.keys()}
    session.add_all(new.values())
    return sorted(key for key, row in (seen | new).items() if row.seen_at <= limit)


def _kept(session: Session) -> set[str]:
    """Keys of the owners whose blobs rows want."""
    limit = now(session) - timedelta(seconds=settings().failed_keep_seconds)
    retriable = and_(Dataset.error_code.in_(datasets.OURS), Dataset.finished_at > limit)
    wanted = or_(Dataset.error_code.is_(None), retriable)
    of_datasets = session.scalars(select(Dataset.id).where(wanted))
    of_protections = session.scalars(select(Protection.id).where(_keeps_blobs(limit)))
    return {storage.dataset_key(i) for i in of_datasets} | {
        storage.protection_key(i) for i in of_protections
    }


def _keeps_blobs(limit: datetime) -> ColumnElement[bool]:
    """Protections that go on, that have succeeded, or that may still be tried again."""
    failed = and_(
        Protection.state == ProtectionState.FAILED,
        Protection.finished_at > limit,
        Protection.dataset_id.is_not(None),
    )
    return or_(Protection.state.in_((*ACTIVE, ProtectionState.SUCCEEDED)), failed)


def _clean_succeeded() -> None:
    """What stays where a process was killed between the last commit and its clean-up."""
    idle = storage.idle_names("protections", settings().orphan_grace_seconds)
    left = {owner for owner, names in idle.items() if names & protections.OF_STEPS}
    shown = {owner for owner, names in idle.items() if names & protections.OF_ORIGINALS}
    succeeded = select(Protection.id).where(Protection.state == ProtectionState.SUCCEEDED)
    with reading() as session:
        over = left & set(session.scalars(succeeded))
        bereft = shown & set(session.scalars(succeeded.where(Protection.dataset_id.is_(None))))
    for protection_id in over:
        with careful(f"protection {protection_id} was not cleaned"):
            protections.clean_succeeded(protection_id)
    for protection_id in bereft:
        with careful(f"protection {protection_id} still shows originals"):
            protections.clean_originals([protection_id])


def _remove_half_written(pattern: str) -> None:
    """In a folder, where a process was killed as it wrote a blob, also of what rows keep.

    A bucket does not show such parts, and has a rule of its own for them.
    """
    folder = storage.local_path("")
    limit = time.time() - settings().orphan_grace_seconds
    for path in folder.glob(pattern) if folder is not None else ():
        with suppress(FileNotFoundError):  # removed meanwhile
            if HALF_WRITTEN.search(path.name) and path.stat().st_mtime < limit:
                log.warning("removing %s: it was never whole", path)
                path.unlink()
