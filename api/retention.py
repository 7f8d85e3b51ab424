"""What is deleted by the operator's policy, as its owner could delete it: by default nothing."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Row, func, or_, select
from sqlalchemy.orm import Session

from api import datasets, protections, storage
from api.db import now, reading, transaction
from api.errors import AppError
from api.models import ACTIVE, Dataset, DatasetState, Protection
from api.settings import settings

log = logging.getLogger(__name__)

Found = Sequence[Row[UUID, UUID]]
"""Of each its owner's and its own identifier."""


def kept_until(protection: Protection) -> datetime | None:
    """When a protection that has ended is to be deleted; None where none ever is."""
    days = settings().keep_protections_days
    if days is None or protection.finished_at is None:
        return None
    return protection.finished_at + timedelta(days=days)


def expire() -> None:
    """Delete protections that ended too long ago, and data sets that were not used for too long."""
    for days, expired, delete in (
        (settings().keep_protections_days, _protections, _delete_protection),
        (settings().keep_datasets_days, _datasets, _delete_dataset),
    ):
        if days is None:
            continue
        with reading() as session:
            found = expired(session, now(session) - timedelta(days=days))
        for owner_id, row_id in found:
            try:
                delete(owner_id, row_id, f"It was kept for {days:g} days.")
            except AppError as error:  # its owner was faster, or uses it again
                log.info("%s", error.message)


def _protections(session: Session, limit: datetime) -> Found:
    ended = Protection.state.not_in(ACTIVE), Protection.finished_at < limit
    return list(session.execute(select(Protection.owner_id, Protection.id).where(*ended)))


def _delete_protection(owner_id: UUID, protection_id: UUID, why: str) -> None:
    with transaction() as session:
        protections.delete(session, owner_id, protection_id, why)
    storage.remove(storage.protection_key(protection_id))
    log.warning("deleted protection %s: %s", protection_id, why)


def _datasets(session: Session, limit: datetime) -> Found:
    used = func.max(func.coalesce(Protection.finished_at, Protection.created_at))
    last = select(used).where(Protection.dataset_id == Dataset.id).scalar_subquery()
    active = select(Protection.dataset_id).where(
        Protection.state.in_(ACTIVE), Protection.dataset_id.is_not(None)
    )
    unused = (
        Dataset.state != DatasetState.INGESTING,
        Dataset.finished_at < limit,
        Dataset.id.not_in(active),
        or_(last.is_(None), last < limit),
    )
    return list(session.execute(select(Dataset.owner_id, Dataset.id).where(*unused)))


def _delete_dataset(owner_id: UUID, dataset_id: UUID, why: str) -> None:
    with transaction() as session:
        made = protections.made_of(session, dataset_id)
        dataset = datasets.delete(session, owner_id, dataset_id, why)
    datasets.clean(dataset)
    protections.clean_originals(made)
    log.warning("deleted data set %s: %s", dataset_id, why)
