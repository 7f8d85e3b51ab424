"""What a training that is broken off has done, kept so that the next attempt goes on from there."""

import io
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from sqlalchemy.orm import Session

from api import storage
from api.db import AWAY, transaction
from api.errors import AppError
from api.scheduling import leases
from api.scheduling.leases import Claim
from worker.lease import WorkerDraining, draining, store

log = logging.getLogger(__name__)

SAVE_SECONDS = 60
"""Of training batches that a lost worker costs at most, and the one that it was in."""
REFUSED_SECONDS = 5
"""How long one that is to end waits where storage did not take its state."""


class Keeper:
    """Stores the state of a step's training once in a while, and has its row say so.

    What can't be stored or written is logged: hours of training outlive a storage or a database
    that is away, and only would begin anew elsewhere, or show an ETA that is a little wrong.

    In a worker that is to end the next state is kept, and ends the attempt.
    """

    def __init__(self, claim: Claim, key: str) -> None:
        self._claim, self._key = claim, key
        self._begun = False
        self._next = self._refused_until = -math.inf

    def begin(self, done: int) -> None:
        """Where this attempt begins; later calls say nothing."""
        if not self._begun:
            self._begun = True
            self._tell(leases.begin, done)

    def is_due(self) -> bool:
        """Whether a state is to be stored now; asked first after the attempt's first batch."""
        now = time.monotonic()
        if self._next == -math.inf:
            self._next = now + SAVE_SECONDS
        return now >= self._next or (draining.is_set() and now >= self._refused_until)

    def save(self, state: dict[str, Any], done: int) -> None:
        """Store what the next attempt would go on from, with `done` of the work.

        Raises:
            WorkerDraining: it is stored, and another worker is to go on from it.
            LeaseLost: another worker has gone on from it already.
        """
        file = io.BytesIO()
        torch.save(state | {"done": done}, file)
        try:
            store(self._claim, self._key, file)
        except (OSError, AppError, *AWAY):
            log.exception("the state of a training was not stored")
            self._refused_until = time.monotonic() + REFUSED_SECONDS
        else:
            self._tell(leases.keep, done)
            if draining.is_set():
                raise WorkerDraining
        self._next = time.monotonic() + SAVE_SECONDS

    def _tell(self, what: Callable[[Session, Claim, int], None], done: int) -> None:
        try:
            with transaction() as session:
                what(session, self._claim, done)
        except AWAY:
            log.exception("how much of the work is kept could not be written")


def load(key: str) -> dict[str, Any] | None:
    """What an attempt before this one has stored; None where there is nothing, or it is damaged."""
    content = storage.read_if_there(key)
    if content is None:
        return None
    try:
        stored: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except Exception:  # of a torn file torch says anything
        log.exception("the state of a training can't be read: it begins anew")
        return None
    return stored
