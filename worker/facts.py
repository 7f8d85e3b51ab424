"""What a worker process is: its device, memory and versions, as they stand in its row."""

import logging
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from itertools import product
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.db import now, transaction
from api.models import Queue, Worker, fresh_since
from api.plans.speeds import MEASURED_NETWORKS, MEASURED_SIDES, Device, Speed
from api.settings import settings
from api.workers import VISIBLE
from worker import faults
from worker.hearing import ear
from worker.lease import DrainFlag, WorkerDraining
from worker.usage import Usage

HEARTBEAT_SECONDS = 15
_instance = uuid4().hex[:8]  # Celery imports this before it forks its children
log = logging.getLogger(__name__)
# In memory that the parent shares with its children: who follows a child measures nothing again.
_MEASURED = ("gradient_gflops", "training_gflops", "walked_pixels")
_speeds = RawArray(
    "d", len(_MEASURED) * len(MEASURED_SIDES) * max(map(len, MEASURED_NETWORKS.values()))
)

# Control groups, version 2 and 1, as a container sees its own.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Facts:
    """Measured in the child that will compute; speeds by `calibrated`, where that is called.

    Attributes:
        gpu: what CUDA is to see, where it is told to see one device: others may compute there, too.
    """

    device: str
    device_name: str
    memory_bytes: int
    bfloat16: bool
    threads: int
    versions: dict[str, str]
    speeds: list[Speed] | None = None
    gpu: str | None = None

    @property
    def plan_device(self) -> Device:
        """The part of it that a plan depends on."""
        speeds = tuple(self.speeds or ())
        return Device(self.device, self.bfloat16, self.threads, self.memory_bytes, speeds)


def worker() -> str:
    """Of the worker that this process belongs to, with all its children, while it lives."""
    return f"{socket.gethostname()}/{_instance}"


def name() -> str:
    """Of this process: unique while it lives."""
    return f"{worker()}:{os.getpid()}"


def threads() -> int:
    """That this process computes with."""
    return settings().threads or len(os.sched_getaffinity(0))


def measure(queue: Queue) -> Facts:
    """Look at this machine; imports torch only where a GPU queue is served."""
    versions = {"python": platform.python_version()} | {
        package: version(package) for package in ("sepgate", "numpy", "pillow")
    }
    if queue is Queue.CPU:
        return Facts("cpu", platform.processor(), _memory_bytes(), False, threads(), versions)
    import torch  # noqa: PLC0415  never in the parent, and never for the cpu queue

    versions |= {"torch": torch.__version__, "torchvision": version("torchvision")}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        versions["cuda"] = str(torch.version.cuda)
        return Facts(
            "cuda",
            card.name,
            card.total_memory,
            torch.cuda.is_bf16_supported(including_emulation=False),
            threads(),
            versions,
            gpu=_told_gpu(),
        )
    return Facts(
        "cpu", _processor_name(), _memory_bytes(), _cpu_has_bfloat16(), threads(), versions
    )


def _told_gpu() -> str | None:
    told = os.environ.get(VISIBLE, "")
    return told if told and "," not in told else None


def calibrated(facts: Facts, drain: DrainFlag) -> Facts:
    """With this device's speed, measured by the first child of this process in a few seconds.

    Raises:
        RuntimeError: the GPU is there and does not compute; it may have, for a child before.
    """
    if facts.device == "cuda":
        import torch  # noqa: PLC0415  never in the parent

        torch.ones(1, device="cuda").add_(1).item()
    if not _speeds[0]:
        from worker import calibration  # noqa: PLC0415  imports torch, which the parent must not

        try:
            for number, speed in enumerate(calibration.measure(facts.plan_device, drain)):
                _speeds[_places(number)] = [getattr(speed, name) for name in _MEASURED]
        except WorkerDraining:
            return facts
        except Exception as error:  # a worker that can't tell its speed may still do its work
            if faults.is_gpu_lost(error):
                raise
            log.exception("the speed of %s was not measured", name())
            return facts
    return remembered(facts)


def remembered(facts: Facts) -> Facts:
    """With this device's speed, where it was measured."""
    if not _speeds[0]:
        return facts
    measured = product(MEASURED_NETWORKS[facts.device], MEASURED_SIDES)
    return replace(
        facts,
        speeds=[
            Speed(
                side, network=network, **dict(zip(_MEASURED, _speeds[_places(number)], strict=True))
            )
            for number, (network, side) in enumerate(measured)
        ],
    )


def _places(number: int) -> slice:
    return slice(len(_MEASURED) * number, len(_MEASURED) * (number + 1))


def alike(session: Session, queue: Queue) -> int:
    """How many workers serve a queue now, this one included."""
    fresh = fresh_since(now(session))
    there = select(func.count()).where(Worker.queue == queue, Worker.heartbeat_at > fresh)
    return max(session.scalar(there) or 0, 1)


def register(queue: Queue, facts: Facts, on_deaf: Callable[[], None]) -> None:
    """Write the row, and keep its heartbeat fresh from a thread for as long as this process is.

    Or until it hears no messages any more: then `on_deaf` is called in its place.
    """
    ear.listen()
    beat = threading.Thread(
        target=_beat, args=(queue, facts, on_deaf), daemon=True, name="heartbeat"
    )
    beat.start()


def _beat(queue: Queue, facts: Facts, on_deaf: Callable[[], None]) -> None:
    began: datetime | None = None
    usage = Usage()
    device = facts.device if queue is Queue.GPU else None
    while True:
        used = usage.of(facts.device)
        try:
            if ear.is_deaf(queue, device, name(), facts.gpu):
                break
            with transaction() as session:
                at = now(session)
                began = began or at
                row = Worker(name=name(), queue=queue, started_at=began, heartbeat_at=at)
                for field, value in asdict(facts).items():
                    setattr(row, field, value)
                row.memory_used_bytes, row.load = used
                session.merge(row)
        except Exception:  # the database is away: the next beat may find it
            log.exception("the heartbeat of %s was not written", name())
        time.sleep(HEARTBEAT_SECONDS)
    on_deaf()


def _memory_bytes(limits: Iterable[Path] = CONTAINER_LIMITS) -> int:
    """Of this machine, or of this container where that has less."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        try:
            known.append(int(path.read_text()))
        except (OSError, ValueError):  # not this version of control groups, or "max"
            continue
    return min(known)


def _cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  not a path of ours
            return file.read()
    except OSError:
        return ""


def _processor_name() -> str:
    lines = (line for line in _cpuinfo().splitlines() if line.startswith("model name"))
    return next(lines, f": {platform.processor() or platform.machine()}").split(": ", 1)[1]


def _cpu_has_bfloat16() -> bool:
    flags = next((line for line in _cpuinfo().splitlines() if line.startswith("flags")), "")
    return bool(BFLOAT16_FLAGS & set(flags.split()))
