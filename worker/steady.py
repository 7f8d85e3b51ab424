"""Whether the database's clock may be believed by who deletes what is old."""

import logging
import time
from datetime import datetime

TRUSTED_AFTER_SECONDS = 3600.0
JUMP_SECONDS = 300.0

log = logging.getLogger("sepgate.sweep")


class SteadyClock:
    """A host that starts with a wrong clock is put right within minutes; what was deleted is gone.

    So the clock is believed once it has gone for an hour as this process's own monotonic one does.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._last: tuple[datetime, float] | None = None

    def is_trusted(self, at: datetime) -> bool:
        """To be asked every few minutes, with what the database's clock says now."""
        tick = time.monotonic()
        if self._last is not None:
            jump = (at - self._last[0]).total_seconds() - (tick - self._last[1])
            if abs(jump) > JUMP_SECONDS:
                log.error(
                    "the database's clock jumped by %.0f s: nothing goes for its age for %.0f s",
                    *(jump, TRUSTED_AFTER_SECONDS),
                )
                self._since = tick
        self._last = at, tick
        return tick - self._since >= TRUSTED_AFTER_SECONDS
