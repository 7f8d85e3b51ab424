"""API keys: `sg_<8 hex>_<43 letters>`, 256 random bits, shown once and kept as SHA-256 only."""

import hashlib
import secrets
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import now
from api.errors import AppError
from api.models import APIKey, Owner


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    owner_id: UUID
    name: str
    key_sha256: str


def create(session: Session, owner_name: str) -> str:
    """A new key for an owner, who is made if there is none of that name. The only time it shows."""
    owner = session.scalar(select(Owner).where(Owner.name == owner_name))
    if owner is None:
        owner = Owner(name=owner_name, created_at=now(session))
        session.add(owner)
        session.flush()
    prefix = f"sg_{secrets.token_hex(4)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    session.add(
        APIKey(owner_id=owner.id, prefix=prefix, sha256=_digest(key), created_at=now(session))
    )
    return key


def limit(session: Session, owner_name: str, max_running: int | None) -> bool:
    """Let an owner have so many steps at once in a queue; None is any number. False: no such."""
    owner = session.scalar(select(Owner).where(Owner.name == owner_name))
    if owner is None:
        return False
    owner.max_running = max_running
    return True


def owners(session: Session) -> list[Owner]:
    """All owners by name."""
    return list(session.scalars(select(Owner).order_by(Owner.name)))


def listing(session: Session) -> list[tuple[APIKey, str]]:
    """All keys with their owners' names, oldest first."""
    rows = session.execute(
        select(APIKey, Owner.name)
        .join(Owner, Owner.id == APIKey.owner_id)
        .order_by(APIKey.created_at)
    )
    return [(key, name) for key, name in rows]


def revoke(session: Session, prefix: str) -> int:
    """Revoke the key with this prefix; returns how many were."""
    found = session.scalars(
        select(APIKey).where(APIKey.prefix == prefix, APIKey.revoked_at.is_(None))
    ).all()
    for key in found:
        key.revoked_at = now(session)
    return len(found)


def authenticate(session: Session, key: str) -> Caller:
    """The caller behind a key.

    Raises:
        AppError: 401, unknown or revoked.
    """
    digest = _digest(key)
    row = session.execute(
        select(Owner.id, Owner.name)
        .join(APIKey, APIKey.owner_id == Owner.id)
        .where(APIKey.sha256 == digest, APIKey.revoked_at.is_(None))
    ).one_or_none()
    if row is None:
        raise AppError(401, "UNAUTHENTICATED", "Expected a valid API key, got an unknown one.")
    return Caller(row[0], row[1], digest)


def is_valid(session: Session, caller: Caller) -> bool:
    """Whether the key of an earlier request has not been revoked since."""
    valid = APIKey.sha256 == caller.key_sha256, APIKey.revoked_at.is_(None)
    return session.scalar(select(APIKey.id).where(*valid)) is not None


def _digest(key: str) -> str:
    # A fast hash is enough: the key is 256 random bits, not a password.
    return hashlib.sha256(key.encode()).hexdigest()
