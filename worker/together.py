"""The surrogate's training on several GPUs of a host: a process for each but this one's own.

`python -m worker.together` is such a process: it trains along until the training ends.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from uuid import UUID

from structlog.contextvars import bound_contextvars
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]

from api import logs
from api.processes import die_with_parent
from sep_core import surrogate
from sep_core.ranks import ALONE, Backend, Ranks, joined
from sep_core.training import prepare
from worker import decoded, faults, tensors
from worker.data import Job, load_planned
from worker.faults import RankLost

log = logging.getLogger(__name__)

END_SECONDS = 30
"""That the others have to end in once the training has."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
# All are on this host, and nobody else is to be heard.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class Followers:
    """A context for the processes that train along: as many as were planned.

    Where fewer GPUs are free than were, some share one: slower, to the same bytes.

    Args:
        gpus: of others, for CUDA to see; beside them everyone's own.
    """

    def __init__(self, job: Job, gpus: Sequence[str]) -> None:
        self._job, self._size = job, job.plan.world_size
        devices = [os.environ.get(VISIBLE), *gpus]
        self._devices = [devices[number % len(devices)] for number in range(self._size)]
        own_each = job.plan.device == "cuda" and len(devices) >= self._size
        self._backend: Backend = "nccl" if own_each else "gloo"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, error: object, *_: object) -> None:
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
            RankLost: one of them died.
        """
        if self._size == 1:
            return
        os.environ.update(LOOPBACK)
        path = Path(self._folder.name, "meeting")
        self._store = FileStore(str(path), self._size)
        for number in range(1, self._size):
            words = [str(self._job.protection_id), number, path, self._backend, os.getpid()]
            command = [sys.executable, "-m", "worker.together", *map(str, words)]
            device = self._devices[number]
            environment = os.environ | ({} if device is None else {VISIBLE: device})
            self._processes.append(subprocess.Popen(command, env=environment))  # noqa: S603  ours
        while not self._store.check([_ready(number) for number in range(1, self._size)]):
            self._look()
            time.sleep(0.2)
            yield 0, 0

    @contextmanager
    def join(self) -> Iterator[Ranks]:
        """Train with them, as the first.

        Raises:
            RankLost: one of them died.
        """
        if self._size == 1:
            yield ALONE
            return
        try:
            with joined(self._store, 0, self._size, self._backend) as ranks:
                yield ranks
        except RuntimeError:  # as the connection to one that died
            deadline = time.monotonic() + END_SECONDS
            while time.monotonic() < deadline and not any(p.poll() for p in self._processes):
                time.sleep(0.1)
            self._look()
            raise

    def _look(self) -> None:
        for process in self._processes:
            if process.poll():
                raise RankLost(process.returncode)


def _ready(number: int) -> str:
    return f"{number} is ready"


def follow(protection_id: UUID, number: int, meeting: Path, backend: Backend) -> None:
    """Train along as that rank."""
    job = load_planned(protection_id)
    prepare(job.plan)
    train, _ = tensors.split(job.index, job.config.held_out_percent, job.dataset_sha256)
    pixels = _read(job, train)
    labels = tensors.labels(train, job.index)
    store = FileStore(str(meeting), job.plan.world_size)
    store.set(_ready(number), "")
    with joined(store, number, job.plan.world_size, backend) as ranks:
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
    """The exit status."""
    protection_id, number, meeting, backend, parent = sys.argv[1:]
    die_with_parent(signal.SIGKILL, int(parent))
    logs.configure()
    with bound_contextvars(protection_id=protection_id, rank=int(number)):
        try:
            follow(
                UUID(protection_id),
                int(number),
                Path(meeting),
                "nccl" if backend == "nccl" else "gloo",
            )
        except Exception as error:
            log.exception("training along was broken off")
            return faults.EXIT_GPU_LOST if faults.is_gpu_lost(error) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
