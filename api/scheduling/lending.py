"""GPUs of idle workers, lent to the surrogate's training on the same host.

A loan is of a card, whichever process serves it: of one that died the row stays, and another comes.
It lasts as long as the training runs on that host, and somewhat longer where it was broken off, so
that it finds the cards again. Meanwhile who serves such a card takes no step.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from api.db import now
from api.models import ACTIVE, Protection, Queue, Step, StepState, Worker, fresh_since
from api.scheduling.leases import Claim

HELD_SECONDS = 60
"""For a training that was broken off; where it has to wait for longer, others may have them."""


def lend(session: Session, claim: Claim, borrower: str, wanted: int) -> list[str]:
    """GPUs for a step that `borrower` runs, at most `wanted`; those that it has already come first.

    Each is of the borrower's kind and host, and its worker is alive and runs nothing.
    """
    # Locked: who is about to claim a step does so before us and is seen, or after us and sees.
    workers = _on_host(session, borrower, Worker.gpu.is_not(None))
    own = next((worker for worker in workers if worker.name == borrower), None)
    if own is None or not _is_held(session, claim):
        return []
    fresh = fresh_since(now(session))
    cards = [list(card) for gpu, card in groupby(workers, _gpu) if gpu != own.gpu]
    free = [card for card in cards if _may_be_lent(session, card, claim, own)]
    ours = [card for card in free if any(row.lent_to == claim.step_id for row in card)]
    ordered = [*ours, *(card for card in free if card not in ours)]
    lent = [card[-1] for card in ordered if card[-1].heartbeat_at > fresh][:wanted]
    give_back(session, claim)
    for worker in lent:
        worker.lent_to = claim.step_id
    return [_gpu(worker) for worker in lent]


def give_back(session: Session, claim: Claim) -> None:
    """The training needs no other card any more, if the step is still its own."""
    lent = select(Worker).where(Worker.lent_to == claim.step_id).order_by(Worker.name)
    rows = session.scalars(lent.with_for_update()).all()  # in the order of all who lock several
    if _is_held(session, claim):
        for worker in rows:
            worker.lent_to = None
    session.flush()


def is_lent(session: Session, worker: str, gpu: str) -> bool:
    """Whether this card is another's now; holds until the end of the transaction.

    True also as long as the worker's row is not written: who lends would not see what it runs.
    """
    rows = _on_host(session, worker, Worker.gpu == gpu)
    lent = any(_is_wanted(session, row, row.lent_to) for row in rows)
    return lent or all(row.name != worker for row in rows)


def _is_held(session: Session, claim: Claim) -> bool:
    """Not locked: who claims locks workers before steps."""
    ours = Step.id == claim.step_id, Step.lease_token == claim.token
    return session.scalar(select(Step.id).where(*ours, Step.state == StepState.RUNNING)) is not None


def _on_host(session: Session, worker: str, which: ColumnElement[bool]) -> Sequence[Worker]:
    """Locked; of each GPU all processes that ever served it, the one that was last alive last."""
    query = select(Worker).where(
        Worker.queue == Queue.GPU,
        which,
        Worker.name.startswith(f"{_host(worker)}/", autoescape=True),
    )
    locked = query.order_by(Worker.name).with_for_update()
    rows = session.scalars(locked.execution_options(populate_existing=True)).all()
    return sorted(rows, key=lambda row: (_gpu(row), row.heartbeat_at))


def _may_be_lent(session: Session, card: Sequence[Worker], claim: Claim, own: Worker) -> bool:
    alike = all(_kind(row) == _kind(own) for row in card)
    wanted = any(
        row.lent_to != claim.step_id and _is_wanted(session, row, row.lent_to) for row in card
    )
    names = [row.name for row in card]
    running = select(Step.id).where(Step.state == StepState.RUNNING, Step.lease_owner.in_(names))
    return alike and not wanted and session.scalar(running.limit(1)) is None


def _is_wanted(session: Session, worker: Worker, step_id: UUID | None) -> bool:
    """Whether a step to which a worker's card is lent is at it, or will be in a moment."""
    if step_id is None:
        return False
    since = now(session) - timedelta(seconds=HELD_SECONDS)
    host = Step.lease_owner.startswith(f"{_host(worker.name)}/", autoescape=True)
    query = (
        select(Step.id)
        .join(Protection, Step.protection_id == Protection.id)
        .where(
            Step.id == step_id,
            Protection.state.in_(ACTIVE),
            or_(
                and_(Step.state == StepState.RUNNING, host),
                and_(Step.state == StepState.READY, Step.ready_at > since),
            ),
        )
    )
    return session.scalar(query) is not None


def _host(worker: str) -> str:
    return worker.partition("/")[0]


def _gpu(worker: Worker) -> str:
    assert worker.gpu is not None
    return worker.gpu


def _kind(worker: Worker) -> tuple[str, int, bool]:
    return worker.device_name, worker.memory_bytes, worker.bfloat16
