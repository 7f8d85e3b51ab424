"""What is deleted by the operator's policy, as its owner could delete it: by default nothing."""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from api import datasets, protections, storage
from api.db import now, reading, transaction
from api.errors import AppError
from api.models import ACTIVE, Dataset, Event, Protection
from api.settings import settings

log = logging.getLogger(__name__)

NO_USE = ("%.deleted", "%.blobs_removed")
"""Events that do not tell of somebody who uses a data set."""


def kept_until(protection: Protection) -> datetime | None:
    """When a protection that has ended is to be deleted; None where none ever is."""
    days = settings().keep_protections_days
    if days is None or protection.finished_at is None:
        return None
    return protection.finished_at + timedelta(days=days)


def expire() -> None:
    """Delete protections that ended too long ago, and data sets that were not used for too long."""
    for model, days, expired, delete in (
        (Protection, settings().keep_protections_days, _protections, _delete_protection),
        (Dataset, settings().keep_datasets_days, _datasets, _delete_dataset),
    ):
        if days is None:
            continue
        with reading() as session:
            found = session.scalars(select(model.id).where(expired(session, days))).all()
        for row_id in found:
            try:
                delete(row_id, days)
            except AppError as error:  # its owner was faster, or uses it again
                log.info("%s", error.message)


def _protections(session: Session, days: float) -> ColumnElement[bool]:
    limit = now(session) - timedelta(days=days)
    return and_(Protection.state.not_in(ACTIVE), Protection.finished_at < limit)


def _datasets(session: Session, days: float) -> ColumnElement[bool]:
    """By its events: they know of protections, too, that are deleted by now."""
    limit = now(session) - timedelta(days=days)
    used = exists().where(
        Event.dataset_id == Dataset.id, Event.at >= limit, ~or_(*map(Event.what.like, NO_USE))
    )
    return and_(Dataset.finished_at < limit, ~used)


def _delete_protection(protection_id: UUID, days: float) -> None:
    with transaction() as session:
        # Locked and looked at again: it may have been tried again since it was found.
        session.get(Protection, protection_id, with_for_update=True)
        query = select(Protection).where(Protection.id == protection_id)
        row = session.scalar(query.where(_protections(session, days)))
        if row is None:
            return
        protections.delete(session, row.owner_id, protection_id, _why(days))
    storage.remove(storage.protection_key(protection_id))
    with bound_contextvars(protection_id=str(protection_id)):
        log.warning("deleted: %s", _why(days))


def _delete_dataset(dataset_id: UUID, days: float) -> None:
    with transaction() as session:
        datasets.lock(session, dataset_id)
        query = select(Dataset).where(Dataset.id == dataset_id)
        row = session.scalar(query.where(_datasets(session, days)))
        if row is None:
            return
        made = protections.made_of(session, dataset_id)
        dataset = datasets.delete(session, row.owner_id, dataset_id, _why(days))
    datasets.clean(dataset)
    protections.clean_originals(made)
    with bound_contextvars(dataset_id=str(dataset_id)):
        log.warning("deleted: %s", _why(days))


def _why(days: float) -> str:
    return f"It was kept for {days:g} days."
