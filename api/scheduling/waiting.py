"""What keeps a protection from getting on though nothing failed: no worker may take its steps."""

from collections import Counter

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import now
from api.models import (
    ACTIVE,
    QUEUES,
    WORKER_FRESH_SECONDS,
    Protection,
    Queue,
    StepState,
    Worker,
    fresh_since,
)
from api.progress import Progress


def waits_for(session: Session, protection: Protection, progress: Progress) -> str | None:
    """A sentence; None while a step runs, and where a worker is there that will take one."""
    running = any(state is StepState.RUNNING for _, state in progress.there)
    if protection.state not in ACTIVE or running:
        return None
    ready = {QUEUES[kind] for kind, state in progress.there if state is StepState.READY}
    planned = protection.plan["device"] if protection.plan else None
    if not ready or any(_is_served(session, queue, planned) for queue in ready):
        return None
    queue = min(ready)
    device = f" on {planned}, as it was planned" if planned and queue is Queue.GPU else ""
    return (
        f"Expected a worker that serves the {queue} queue{device}, "
        f"got no sign of life from any for {WORKER_FRESH_SECONDS} s."
    )


def unserved_devices(session: Session) -> Counter[str]:
    """How many protections are planned for each device of which no worker is alive."""
    plans = session.scalars(select(Protection.plan).where(Protection.state.in_(ACTIVE)))
    served = _devices(session, Queue.GPU)
    return Counter(plan["device"] for plan in plans if plan and plan["device"] not in served)


def _is_served(session: Session, queue: Queue, planned: str | None) -> bool:
    devices = _devices(session, queue)
    # What the cpu queue is for needs no device; a step without a plan makes one for whoever comes.
    return bool(devices) if queue is Queue.CPU or planned is None else planned in devices


def _devices(session: Session, queue: Queue) -> set[str]:
    fresh = fresh_since(now(session))
    alive = select(Worker.device).where(Worker.queue == queue, Worker.heartbeat_at > fresh)
    return set(session.scalars(alive))
