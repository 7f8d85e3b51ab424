"""`python -m worker.health`: exits 0 if a worker of this host and queue has a fresh heartbeat.

A consumer can stop silently while its process lives, so that liveness is the row's heartbeat, which
ends where messages have long lain there and none has come (`worker.hearing`).
"""

import socket
import sys

from sqlalchemy import select

from api.db import now, reading
from api.models import Queue, Worker, fresh_since
from api.settings import settings


def main() -> int:
    """The exit status."""
    queue = Queue(settings().worker_queue)
    with reading() as session:
        fresh = select(Worker.name).where(
            Worker.queue == queue,
            Worker.name.startswith(f"{socket.gethostname()}/", autoescape=True),
            Worker.heartbeat_at > fresh_since(now(session)),
        )
        return int(session.scalar(fresh.limit(1)) is None)


if __name__ == "__main__":
    sys.exit(main())
