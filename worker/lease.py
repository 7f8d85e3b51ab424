"""Holding a step: progress from the main thread, renewal from another, and what ends it early."""

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import IO, Self
from uuid import UUID

from api import adoption, storage
from api.db import AWAY, transaction
from api.scheduling import endings, leases
from api.scheduling.endings import Setback
from api.scheduling.leases import Claim, Word
from api.settings import settings
from worker.faults import EXIT_STALLED

REPORT_SECONDS, RARELY, RARELY_SECONDS = 1.0, 5, 300
"""Between two reports at first, and how many times as long from so many seconds on: each commits to
the database, and what computes waits for that."""
LOOK_AGAIN_SECONDS = 2
TELL_SECONDS = 30
"""That a process which hangs has to say so before it ends."""

log = logging.getLogger(__name__)


class StepStopped(Exception):
    """The protection is cancelled, or another of its steps has failed."""


class StepPostponed(Exception):
    """Another step is doing the same: this one goes back for so long, to find it done."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class WorkerDraining(Exception):
    """This worker is to end: the step goes to another."""


class LeaseLost(Exception):
    """The step was given to somebody else: nothing may be written any more."""


def check_held(claim: Claim) -> None:
    """Before a blob is stored or removed that whoever has the step by now may have stored already.

    Who is cut off from the database goes on for as long as the step can't be another's, and then
    waits: on another kind of device the other's bytes may differ.

    Raises:
        LeaseLost: break off.
        OperationalError, InterfaceError, InternalError: the database stays away.
    """
    until = time.monotonic() + settings().stall_seconds / 2
    while True:
        began = time.monotonic()
        try:
            with transaction() as session:
                lost = leases.held(session, claim) is None
        except AWAY:
            log.exception("could not look whether the step is still held")
            if began - _ours_at.get(claim.token, began) < _safe_seconds():
                return
            if began > until:
                raise
            time.sleep(LOOK_AGAIN_SECONDS)
        else:
            break
    if lost:
        raise LeaseLost


def _safe_seconds() -> float:
    """After a renewal, in which nobody else can have the step."""
    return settings().lease_seconds - settings().lease_renew_seconds


_ours_at: dict[UUID, float] = {}
"""When the leases that this process has were last renewed, by the monotonic clock."""


def store(claim: Claim | None, key: str, data: bytes | IO[bytes]) -> str:
    """`storage.write` for whoever still has the step: one that woke up late overwrites nothing.

    A process that trains along has none, and what it stores others store, too. Where the database
    is away nobody can say whose blobs these are.

    Raises:
        LeaseLost: break off.
        StorageFull: no room left.
        OSError: this is not where the database's blobs are.
    """
    if claim is not None:
        check_held(claim)
        absence = None
        with suppress(*AWAY):
            absence = adoption.absence()
        if absence is not None:
            raise OSError(absence)
    return storage.write(key, data)


class Lease:
    """A context for one claimed step. `tick` is called at every yield of the computation.

    A thread renews the lease as long as ticks keep coming. If none has come for `stall_seconds` the
    process is taken to hang: it ends, so that its device is free. Another thread sees to that,
    which waits for no database.

    Who is cut off from the database goes on computing, since it can't tell that from one that is
    away for everybody; it writes no row without being asked for its token, and before it stores
    what another may have stored by now it waits (`check_held`).
    """

    def __init__(self, claim: Claim, drain: "DrainFlag") -> None:
        self._claim, self._drain = claim, drain
        self._began = self._ticked = time.monotonic()
        self._reported = 0.0
        self._lost = False
        self._over = threading.Event()
        _ours_at[claim.token] = self._began
        self._threads = [_thread(self._renew), _thread(self._watch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        _ours_at.pop(self._claim.token, None)

    def tick(self, done: int, total: int) -> None:
        """Report progress, at most once a second and ever more rarely, and look whether to go on.

        Raises:
            StepStopped, WorkerDraining, LeaseLost: break off.
        """
        self.check()
        if self._drain.has_run_out():
            raise WorkerDraining
        share = min((self._ticked - self._began) / RARELY_SECONDS, 1)
        if self._ticked - self._reported < REPORT_SECONDS * (1 + share * (RARELY - 1)):
            return
        self._reported = self._ticked
        try:
            with transaction() as session:
                word = leases.report(session, self._claim, done, total)
        except AWAY:  # hours of computing outlive a database that is away for a while
            log.exception("progress was not written")
            return
        if word is Word.LOST:
            raise LeaseLost
        if word is Word.STOP:
            raise StepStopped

    def check(self) -> None:
        """Show that this process does not hang, and hear whether the step is still its own.

        Raises:
            LeaseLost: break off.
        """
        self._ticked = time.monotonic()
        if self._lost:
            raise LeaseLost

    def _watch(self) -> None:
        while not self._waited():
            if self._has_stalled():
                log.critical("has stalled: this process ends")
                self._tell_of_stall()
                os._exit(EXIT_STALLED)

    def _waited(self) -> bool:
        """Whether it is over; a host that was asleep meanwhile is nobody's stall."""
        began = time.monotonic()
        over = self._over.wait(settings().lease_renew_seconds)
        late = time.monotonic() - began - settings().lease_renew_seconds
        if late > settings().stall_seconds / 2:
            self._ticked = time.monotonic()
        return over

    def _has_stalled(self) -> bool:
        return time.monotonic() - self._ticked > settings().stall_seconds

    def _renew(self) -> None:
        while not self._over.wait(settings().lease_renew_seconds):
            began = time.monotonic()
            try:
                with transaction() as session:
                    self._lost = not leases.renew(session, self._claim)
                _ours_at[self._claim.token] = began
            except Exception:  # the database is away: the lease outlives a few missed renewals
                log.exception("the lease was not renewed")

    def _tell_of_stall(self) -> None:
        # The database, or a storage to be cleaned, may be what hangs.
        timer = threading.Timer(TELL_SECONDS, os._exit, (EXIT_STALLED,))
        timer.daemon = True
        timer.start()
        message = f"There was no progress for {settings().stall_seconds:.0f} s."
        setback = Setback("STALLED", message, suspect=True)
        try:
            endings.end(self._claim, partial(endings.set_back, setback=setback))
        except Exception:  # then it looks like a process that was killed
            log.exception("the stall was not written")


def _thread(target: Callable[[], None]) -> threading.Thread:
    """Which logs about the same step."""
    run = partial(contextvars.copy_context().run, target)
    return threading.Thread(target=run, daemon=True, name="lease")


class DrainFlag:
    """Set in the Celery parent on SIGTERM, read in its children: when, in shared memory.

    They take nothing more. What they are at may go on for `drain_seconds`, to end or to come to a
    state that is kept.
    """

    def __init__(self) -> None:
        self._since = RawValue("d", 0)

    def set(self) -> None:
        """Ask the children to end."""
        self._since.value = self._since.value or time.monotonic()

    def is_set(self) -> bool:
        """Whether they were asked."""
        return bool(self._since.value)

    def has_run_out(self) -> bool:
        """Whether they were asked so long ago that they are to break off."""
        return self.is_set() and time.monotonic() - self._since.value >= settings().drain_seconds


draining = DrainFlag()
"""Of this worker: Celery imports this before it forks its children."""
