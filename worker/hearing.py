"""Whether messages still come to this process: Celery's parent takes them, and may stop to.

This process lives on then, and with its heartbeat the worker would be taken to serve its queue.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kombu.exceptions import OperationalError

from api import queue
from api.db import transaction
from api.models import Queue
from api.scheduling import lending, turns

DEAF_SECONDS = 60
BEATS = 4  # longer than the pause in which Celery does not look whether its broker is back


class Ear:
    """Knows since when this process has got no message, and whether there were any for it."""

    def __init__(self) -> None:
        self._idle_since: float | None = None
        self._missed = 0

    def listen(self) -> None:
        """From now on; before, nothing can be missed."""
        self._idle_since = time.monotonic()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """What a message has this process do is done in here."""
        self._idle_since = None
        try:
            yield
        finally:
            self.listen()

    def is_deaf(self, name: Queue, device: str | None, worker: str, gpu: str | None) -> bool:
        """Asked at every beat: whether this process has long been called and has heard nothing.

        Who has been told of a step that it may not take, as its owner is at a limit, has heard.
        """
        idle = self._idle_since
        long = idle is not None and time.monotonic() - idle >= DEAF_SECONDS
        # Several times: what lies in the queue may have been put there this moment.
        missed = long and _is_called(name, device, worker, gpu)
        self._missed = self._missed + 1 if missed else 0
        return self._missed >= BEATS


ear = Ear()


def _is_called(name: Queue, device: str | None, worker: str, gpu: str | None) -> bool:
    """Whether a message lies there, and a step that this process could have begun long ago."""
    try:
        if queue.waiting(name) == 0:  # then there is none to hear, whoever is to blame for that
            return False
    except OperationalError:
        return False
    with transaction() as session:
        if gpu is not None and lending.is_lent(session, worker, gpu):
            return False
        return turns.is_overdue(session, name, device, DEAF_SECONDS)
