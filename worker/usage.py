"""How much of its device a worker uses, between one heartbeat and the next."""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

STATM = Path("/proc/self/statm")


class Usage:
    """Remembers the last look, since a load is over a time."""

    def __init__(self) -> None:
        self._at, self._computed = time.monotonic(), _computed()

    def of(self, device: str) -> tuple[int | None, float | None]:
        """Bytes of memory in use, and the share of the time in which there was computing.

        Of a GPU by all processes, None where its driver tells no load; of a CPU by this process,
        of one core: more than 1 with more threads.
        """
        if device == "cuda":
            try:
                return _of_gpu()
            except Exception:  # what a driver can't tell is no reason to be taken for dead
                log.debug("the GPU's use is not known", exc_info=True)
                return None, None
        at, computed = time.monotonic(), _computed()
        load = (computed - self._computed) / max(at - self._at, 1e-3)
        self._at, self._computed = at, computed
        return _resident_bytes(), round(load, 4)


def _of_gpu() -> tuple[int, float | None]:
    import torch  # noqa: PLC0415  never in the parent

    free, total = torch.cuda.mem_get_info()
    try:
        load = torch.cuda.utilization() / 100
    except Exception:  # noqa: BLE001  a container without the driver's library, a part of a GPU
        load = None
    return total - free, load


def _computed() -> float:
    """Seconds of all threads."""
    times = os.times()
    return times.user + times.system


def _resident_bytes() -> int | None:
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return None
