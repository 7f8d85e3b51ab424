"""The states' legal moves, and the one function that moves."""

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.orm import Session

from api import events
from api.db import Base, now
from api.models import (
    Dataset,
    DatasetState,
    Protection,
    ProtectionState,
    State,
    Step,
    StepState,
)

# By table: states of two tables that share a name are equal, and would be one key.
AT_ONCE = 5000
"""Steps in one statement, which takes no more than 32,766 values on SQLite."""
MADE_AGAIN = "What it had stored was lost or damaged: it is made again."
_PROGRESS = "progress_begun", "progress_done", "progress_kept"
LEGAL_MOVES: Mapping[type[Base], Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        Dataset: {
            DatasetState.INGESTING: frozenset({DatasetState.READY, DatasetState.REJECTED}),
            DatasetState.REJECTED: frozenset({DatasetState.INGESTING}),
        },
        Protection: {
            ProtectionState.QUEUED: frozenset(
                {ProtectionState.RUNNING, ProtectionState.FAILED, ProtectionState.CANCELLED}
            ),
            ProtectionState.RUNNING: frozenset(
                {ProtectionState.SUCCEEDED, ProtectionState.FAILED, ProtectionState.CANCELLED}
            ),
            ProtectionState.FAILED: frozenset({ProtectionState.RUNNING}),
        },
        Step: {
            StepState.WAITING: frozenset({StepState.READY}),
            StepState.READY: frozenset({StepState.RUNNING, StepState.WAITING}),
            StepState.RUNNING: frozenset({StepState.READY, StepState.DONE, StepState.FAILED}),
            StepState.FAILED: frozenset({StepState.READY}),
            StepState.DONE: frozenset({StepState.WAITING}),
        },
    }
)


def move(session: Session, row: Dataset | Protection | Step, to: State, **values: Any) -> bool:
    """The one function that changes a state: compare-and-set from the state that `row` shows.

    Returns:
        False if another process moved the row first; nothing is written then.

    Raises:
        ValueError: the move is not in the table.
    """
    model = type(row)
    if to not in LEGAL_MOVES[model].get(row.state, ()):
        raise ValueError(f"expected a legal move from {row.state}, got {to}")
    if to is StepState.READY:
        values["ready_at"] = now(session)
    ended = row.lease_token if isinstance(row, Step) else None
    found = session.execute(
        update(model).where(model.id == row.id, model.state == row.state).values(state=to, **values)
    )
    if found.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult
        return False
    session.refresh(row)
    events.record(session, f"{model.__name__.lower()}.{to}", row, **_told(row, ended))
    return True


def make_ready(session: Session, protection_id: UUID, step_ids: Sequence[UUID]) -> None:
    """The same for steps of one protection that wait, by few statements: there may be thousands."""
    at = now(session)
    for first in range(0, len(step_ids), AT_ONCE):
        some = step_ids[first : first + AT_ONCE]
        waiting = Step.id.in_(some), Step.state == StepState.WAITING
        moved = session.execute(
            update(Step)
            .where(*waiting)
            .values(state=StepState.READY, ready_at=at)
            .returning(Step.id, Step.kind, Step.index)
        )
        told = {key: {"kind": kind, "index": index} for key, kind, index in moved}
        data = [told[key] for key in some if key in told]
        events.record_many(session, f"step.{StepState.READY}", protection_id, data)


def hold_back(session: Session, step_ids: Sequence[UUID]) -> None:
    """ready -> waiting: of a protection that is over, or for what is made again.

    What they were set back by before is over: they can't be tried while they wait.
    """
    for first in range(0, len(step_ids), AT_ONCE):
        some = Step.id.in_(step_ids[first : first + AT_ONCE]), Step.state == StepState.READY
        values = {"state": StepState.WAITING, "setbacks": 0}
        values |= dict.fromkeys(("setback_at", "sent_at", "not_before"))
        session.execute(update(Step).where(*some).values(values))


def take_back(session: Session, protection_id: UUID, step_ids: Sequence[UUID]) -> None:
    """done -> waiting, of one protection: what they had stored is lost, and is made again.

    What they had found stays on the row, for the same is to come of it.
    """
    fresh: dict[str, Any] = dict.fromkeys(("attempt", "setbacks", *_PROGRESS), 0)
    fresh |= dict.fromkeys(("setback_at", "not_before", "sent_at", "finished_at"))
    fresh |= {"state": StepState.WAITING, "error_code": "BLOB_MISSING", "error": MADE_AGAIN}
    for first in range(0, len(step_ids), AT_ONCE):
        done = Step.id.in_(step_ids[first : first + AT_ONCE]), Step.state == StepState.DONE
        moved = update(Step).where(*done).values(fresh).returning(Step.kind, Step.index)
        why = {"error_code": "BLOB_MISSING", "error": MADE_AGAIN}
        told = [{"kind": kind, "index": index} | why for kind, index in session.execute(moved)]
        events.record_many(session, f"step.{StepState.WAITING}", protection_id, told)


def lease_name(token: UUID) -> str:
    """A lease as events name it: whoever knows its token may write, so that is in none."""
    return hashlib.sha256(token.bytes).hexdigest()[:12]


def _told(row: Dataset | Protection | Step, ended: UUID | None) -> dict[str, Any]:
    """What of a row is news in its new state; of a step with the lease that began or `ended`.

    Which process ended it is told beside: a row knows who holds it, not who writes.
    """
    told = {"error_code": row.error_code, "error": row.error} if row.error_code else {}
    if not isinstance(row, Step):
        return told
    if row.state is StepState.RUNNING and row.lease_token is not None:
        lease = lease_name(row.lease_token)
        return {"attempt": row.attempt, "worker": row.lease_owner, "lease": lease}
    if ended is not None:
        told |= {"lease": lease_name(ended), "process": f"{socket.gethostname()}:{os.getpid()}"}
    if row.state is StepState.READY and row.not_before is not None:
        told |= {"not_before": row.not_before.isoformat()}
    return told
