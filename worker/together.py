"""The surrogate's training on several GPUs of a host: a process for each but this one's own.

`python -m worker.together` is such a process: it trains along until the training ends.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Self
from uuid import UUID

from structlog.contextvars import bound_contextvars, get_contextvars
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

from api import logs
from api.processes import die_with_parent
from api.settings import settings
from api.workers import VISIBLE
from sep_core import surrogate
from sep_core.arithmetic import prepare
from sep_core.ranks import ALONE, Backend, Ranks, joined
from worker import decoded, faults, tensors
from worker.data import Job, load_planned
from worker.faults import RankLost

log = logging.getLogger(__name__)

END_SECONDS = 30
"""That the others have to end in once the training has."""
LOOK_SECONDS, NOTICE_SECONDS = 1.0, 60.0
"""Between two looks at the others, and in which the death of one should have ended the training."""
# All are on this host, and nobody else is to be heard.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class Followers:
    """A context for the processes that train along: as many as were planned.

    Where fewer GPUs are free than were, some share one: slower, to the same bytes.

    Args:
        gpus: that others have lent, for CUDA to see; the first process uses this one's own.
        lost: called from a thread, to end this process, where a follower's death did not end the
            training: who waits for a dead one's gradients may wait for ever.
    """

    def __init__(self, job: Job, gpus: Sequence[str], lost: Callable[[RankLost], None]) -> None:
        self._job, self._size, self._lost = job, job.plan.world_size, lost
        devices = [os.environ.get(VISIBLE), *gpus]
        self._devices = [devices[number % len(devices)] for number in range(self._size)]
        own_each = job.plan.device == "cuda" and len(devices) >= self._size
        self._backend: Backend = "nccl" if own_each else "gloo"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._over.set()
        for process in self._processes:
            try:
                process.wait(0 if error else END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def start(self) -> Generator[tuple[int, int], None, None]:
        """Start them, and wait until they have read their pixels; yields signs of life.

        Raises:
            RankLost: one of them died, or takes too long.
        """
        if self._size == 1:
            return
        os.environ.update(LOOPBACK)
        path = Path(self._folder.name, "meeting")
        self._store = FileStore(str(path), self._size)
        for number in range(1, self._size):
            self._processes.append(self._start(number, path))
        until = time.monotonic() + settings().stall_seconds
        while not self._store.check([_ready(number) for number in range(1, self._size)]):
            if (dead := self._dead()) is not None:
                raise RankLost(dead)
            if time.monotonic() > until:
                raise RankLost(None)
            time.sleep(0.2)
            yield 0, 0

    def _start(self, number: int, path: Path) -> subprocess.Popen[bytes]:
        device = self._devices[number]
        words: list[object] = [
            self._job.protection_id,
            number,
            path,
            self._backend,
            self._sharing(number),
        ]
        words += [os.getpid(), json.dumps(get_contextvars())]
        command = [sys.executable, "-m", "worker.together", *map(str, words)]
        environment = os.environ | ({} if device is None else {VISIBLE: device})
        return subprocess.Popen(command, env=environment)  # noqa: S603  our own command

    def _sharing(self, number: int) -> int:
        return self._devices.count(self._devices[number])

    @contextmanager
    def join(self) -> Iterator[Ranks]:
        """Train with them, as the first.

        Raises:
            RankLost: one of them died.
        """
        if self._size == 1:
            yield ALONE
            return
        watch = partial(copy_context().run, self._watch)  # which logs about the same step
        threading.Thread(target=watch, daemon=True, name="followers").start()
        try:
            with joined(self._store, 0, self._size, self._backend, self._sharing(0)) as ranks:
                yield ranks
        except RuntimeError as error:  # as the connection to one that died
            if faults.is_out_of_memory(error) or faults.is_gpu_lost(error):
                raise  # the others die of ours
            deadline = time.monotonic() + END_SECONDS
            while (dead := self._dead()) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            if dead is not None:
                raise RankLost(dead) from error
            raise

    def _watch(self) -> None:
        """Whoever waits for one that died hears of it, or not: by NCCL, and before all have met."""
        while (dead := self._dead()) is None:
            if self._over.wait(LOOK_SECONDS):
                return
        if not self._over.wait(NOTICE_SECONDS):
            self._lost(RankLost(dead))

    def _dead(self) -> int | None:
        """The status of one that ended before its work did."""
        return next((process.returncode for process in self._processes if process.poll()), None)


def _ready(number: int) -> str:
    return f"{number} is ready"


def follow(protection_id: UUID, number: int, meeting: Path, backend: Backend, sharing: int) -> None:
    """Train along as that rank."""
    job = load_planned(protection_id)
    prepare(job.plan)
    train = tensors.split(job.index, job.config.held_out_percent, job.dataset_sha256).train
    pixels = _read(job, train)
    labels = tensors.labels(train, job.index)
    store = FileStore(str(meeting), job.plan.world_size)
    store.set(_ready(number), "")
    with joined(store, number, job.plan.world_size, backend, sharing) as ranks:
        surrogate.follow(pixels, labels, len(job.index.classes), job.config, job.plan, ranks)


def _read(job: Job, part: tensors.Part) -> Tensor:
    reading = decoded.originals(job, part)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            pixels: Tensor = end.value
            return pixels


def main() -> int:
    """The exit status of one that failed."""
    protection_id, number, meeting, backend, sharing, parent, about = sys.argv[1:]
    die_with_parent(signal.SIGKILL, int(parent))
    logs.configure()
    with bound_contextvars(**json.loads(about), rank=int(number)):
        try:
            follow(
                UUID(protection_id),
                int(number),
                Path(meeting),
                "nccl" if backend == "nccl" else "gloo",
                int(sharing),
            )
        except Exception as error:
            log.exception("training along was broken off")
            return faults.exit_status(error)
    os._exit(0)  # whatever libraries do at their end is no fault of the training's


if __name__ == "__main__":
    sys.exit(main())
