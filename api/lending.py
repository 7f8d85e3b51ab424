"""GPUs of idle workers, lent to the surrogate's training on the same host.

A worker whose GPU is lent takes no step for as long as the step that computes there is running.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import now
from api.leases import Claim
from api.models import WORKER_FRESH_SECONDS, Queue, Step, StepState, Worker


def lend(session: Session, claim: Claim, borrower: str, wanted: int) -> list[str]:
    """GPUs for a step that `borrower` runs, at most `wanted`; those that it has already come first.

    Theirs is a worker of the same host that serves the GPU queue, is alive and runs nothing.
    """
    host = borrower.partition("/")[0]
    fresh = now(session) - timedelta(seconds=WORKER_FRESH_SECONDS)
    # Locked: who is about to claim a step does so before us and is seen, or after us and sees.
    workers = session.scalars(
        select(Worker)
        .where(
            Worker.queue == Queue.GPU,
            Worker.gpu.is_not(None),
            Worker.heartbeat_at > fresh,
            Worker.name.startswith(f"{host}/", autoescape=True),
            Worker.name != borrower,
        )
        .order_by(Worker.name)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    ours = [worker for worker in workers if worker.lent_to == claim.token]
    idle = [worker for worker in workers if worker not in ours and _is_idle(session, worker)]
    lent = [*ours, *idle][:wanted]
    for worker in lent:
        worker.lent_to = claim.token
    return [worker.gpu for worker in lent if worker.gpu is not None]


def is_lent(session: Session, worker: str) -> bool:
    """Whether this worker's GPU is another's now; holds until the end of the transaction."""
    row = select(Worker.lent_to).where(Worker.name == worker).with_for_update()
    return _is_running(session, session.scalar(row))


def _is_idle(session: Session, worker: Worker) -> bool:
    steps = select(Step.id).where(Step.state == StepState.RUNNING, Step.lease_owner == worker.name)
    return session.scalar(steps.limit(1)) is None and not _is_running(session, worker.lent_to)


def _is_running(session: Session, token: UUID | None) -> bool:
    if token is None:
        return False
    steps = select(Step.id).where(Step.state == StepState.RUNNING, Step.lease_token == token)
    return session.scalar(steps.limit(1)) is not None
