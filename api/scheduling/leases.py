"""Who may run a step, and for how long: compare-and-set on the row, by the database's clock."""

import enum
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from api import digests
from api.db import now
from api.models import ACTIVE, Protection, Step, StepKind, StepState
from api.scheduling.moves import move
from api.settings import settings


@dataclass(frozen=True)
class Claim:
    """A step held by this process. Every write carries the token; who lost it writes nothing."""

    step_id: UUID
    token: UUID
    kind: StepKind
    index: int
    attempt: int
    dataset_id: UUID | None
    protection_id: UUID | None
    request_id: str | None = None


class Word(enum.Enum):
    """What a worker hears when it reports."""

    GO_ON = enum.auto()
    STOP = enum.auto()
    LOST = enum.auto()


def claim(session: Session, step_id: UUID, worker: str) -> Claim | None:
    """Take a ready step; None if somebody else has it or there is nothing to do, or not yet."""
    step = session.get(Step, step_id)
    if step is None or step.state is not StepState.READY:
        return None
    # Locked, so that it can't be cancelled or deleted before it shows this step as running.
    if _stopping(session, step.protection_id, lock=True):
        return None
    at = now(session)
    if step.not_before is not None and step.not_before > at:
        return None
    taken = move(
        session,
        step,
        StepState.RUNNING,
        attempt=step.attempt + 1,
        lease_owner=worker,
        lease_token=uuid4(),
        lease_expires_at=at + timedelta(seconds=settings().lease_seconds),
        started_at=at,
        progress_done=step.progress_kept,
        progress_begun=step.progress_kept,
    )
    if not taken:
        return None
    return claim_of(step)


def claim_of(step: Step) -> Claim:
    """Whose a running step is now."""
    assert step.lease_token is not None
    return Claim(
        step.id,
        step.lease_token,
        step.kind,
        step.index,
        step.attempt,
        step.dataset_id,
        step.protection_id,
        step.request_id,
    )


def held(session: Session, claim: Claim) -> Step | None:
    """The claimed step, locked for this transaction; None if the lease was lost."""
    return session.scalar(
        select(Step)
        .where(
            Step.id == claim.step_id,
            Step.lease_token == claim.token,
            Step.state == StepState.RUNNING,
        )
        .with_for_update()
    )


def renew(session: Session, claim: Claim) -> bool:
    """Push the expiry on; False if the lease was lost."""
    step = held(session, claim)
    if step is None:
        return False
    step.lease_expires_at = now(session) + timedelta(seconds=settings().lease_seconds)
    return True


def report(session: Session, claim: Claim, done: int, total: int) -> Word:
    """Write progress and hear whether to go on; a total of 0 is a sign of life and no progress."""
    values = {"progress_done": done, "progress_total": total} if total else {}
    if not _write(session, claim, **values):
        return Word.LOST
    return Word.STOP if _stopping(session, claim.protection_id) else Word.GO_ON


def begin(session: Session, claim: Claim, done: int) -> None:
    """Where the attempt goes on from what an earlier one kept: `done`, or 0 where it can't."""
    _write(session, claim, progress_done=done, progress_begun=done, progress_kept=done)


def keep(session: Session, claim: Claim, done: int) -> None:
    """What is done so far outlives this process: the next attempt would go on from there."""
    _write(session, claim, progress_kept=done)


def _write(session: Session, claim: Claim, **values: int) -> bool:
    """Compare-and-set: False if the lease was lost."""
    written = session.execute(
        update(Step)
        .where(Step.id == claim.step_id, Step.lease_token == claim.token)
        .values({"lease_token": claim.token, **values})
    )
    return bool(written.rowcount)  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult


def has_kept(step: Step) -> bool:
    """Whether this attempt has done something that the next one need not do again."""
    return step.progress_kept > step.progress_begun


def attempts(step: Step) -> int:
    """Attempts in a row that kept nothing, this one included."""
    return 0 if has_kept(step) else step.attempt


def give_back(
    session: Session, step: Step, *, counts: bool, hold_seconds: float = 0, **why: object
) -> None:
    """running -> ready: to be sent and claimed again. `counts` says whether the attempt does.

    Where the attempt has kept something, the setbacks before it are over.
    """
    over = {"setbacks": 0, "setback_at": None} if has_kept(step) else {}
    move(
        session,
        step,
        StepState.READY,
        lease_token=None,
        lease_expires_at=None,
        sent_at=None,
        not_before=now(session) + timedelta(seconds=hold_seconds) if hold_seconds else None,
        attempt=max(attempts(step) - (not counts), 0),
        **(over | why),
    )


def fail(session: Session, step: Step, code: str, message: str) -> None:
    """running -> failed, for good."""
    move(
        session,
        step,
        StepState.FAILED,
        lease_token=None,
        lease_expires_at=None,
        error_code=code,
        error=message,
        finished_at=now(session),
    )


def revive(session: Session, which: ColumnElement[bool]) -> None:
    """With as many attempts as new ones, and what was kept of their work; failed -> ready."""
    anew: dict[str, object] = {"attempt": 0, "setbacks": 0, "error_code": None, "error": None}
    anew |= dict.fromkeys(("setback_at", "not_before", "sent_at", "finished_at"))
    session.execute(update(Step).where(which, Step.state != StepState.DONE).values(anew))
    ready = update(Step).where(which, Step.state == StepState.READY)
    session.execute(ready.values(ready_at=now(session)))
    failed = select(Step).where(which, Step.state == StepState.FAILED)
    for step in session.scalars(failed.execution_options(populate_existing=True)).all():
        move(session, step, StepState.READY)


def finish(session: Session, step: Step, output: dict[str, object], input_sha256: str) -> None:
    """running -> done, with what the step found out, and the digest of what it was given."""
    move(
        session,
        step,
        StepState.DONE,
        lease_token=None,
        lease_expires_at=None,
        output=output,
        input_sha256=input_sha256,
        output_sha256=digests.of(output),
        error_code=None,
        error=None,
        progress_done=step.progress_total,
        finished_at=now(session),
    )


def expired(session: Session) -> list[Step]:
    """Running steps whose lease has run out: their worker was lost or hangs."""
    return list(
        session.scalars(
            select(Step)
            .where(Step.state == StepState.RUNNING, Step.lease_expires_at < now(session))
            .order_by(Step.id)
            .with_for_update(skip_locked=True)
        )
    )


def _stopping(session: Session, protection_id: UUID | None, *, lock: bool = False) -> bool:
    """Whether the protection is over, or to be: cancelled, or a sibling step has failed."""
    if protection_id is None:
        return False
    protection = session.get(
        Protection, protection_id, populate_existing=True, with_for_update=lock or None
    )
    if protection is None or protection.state not in ACTIVE or protection.cancel_requested:
        return True
    failed = select(Step.id).where(
        Step.protection_id == protection_id, Step.state == StepState.FAILED
    )
    return session.scalar(failed.limit(1)) is not None
