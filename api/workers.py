"""A worker for each GPU that is there: `sepgate worker`, and what `sepgate serve` starts."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from api.models import Queue
from api.processes import Part, stop, watch

STOP_SECONDS = 100
"""For a step to be given back and PyTorch to end: less than docker waits (`stop_grace_period`)."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def command(queue: Queue, several: str = "") -> list[str]:
    """A worker of one queue, one process.

    Without Celery's own heartbeat (ours is on the row): it waits for ever for a broker that is
    gone, at the end of the worker, too.
    """
    return [
        *("celery", "--quiet", "-A", "worker.main", "worker", "--pool=prefork", "--concurrency=1"),
        *(f"--queues={queue}", f"--hostname={queue}{several}@%h", "--loglevel=INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def parts(queue: Queue) -> Iterator[Part]:
    """One for each GPU, if there are any; else one."""
    told = os.environ.get("SEPGATE_DEVICE", "cuda")
    devices = gpus() if queue is Queue.GPU and told != "cpu" else []
    for number, device in enumerate(devices or [""]):
        environment: dict[str, str] = {"SEPGATE_WORKER_QUEUE": queue}
        if device:  # which it serves, or nothing: a GPU that is lost is not made up for by the CPU
            environment |= {VISIBLE: device, "SEPGATE_DEVICE": told}
        elif told == "cpu":
            environment |= {VISIBLE: ""}
        several = f"-{number}" if len(devices) > 1 else ""
        words = [sys.executable, "-m", *command(queue, several)]
        yield Part(f"worker-{queue}{several}", words, environment)


def gpus() -> list[str]:
    """What CUDA is to see: as the environment says, else all that the driver has.

    By UUID: numbers change when one is lost.
    """
    told = os.environ.get(VISIBLE)
    if told is not None:
        return [device.strip() for device in told.split(",") if device.strip() not in {"", "-1"}]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listed = subprocess.run(  # noqa: S603  the driver's own tool
        [tool, "-L"], capture_output=True, text=True, check=False, timeout=60
    )
    return re.findall(r"^GPU .*\(UUID: (GPU-[^)]+)\)", listed.stdout, re.MULTILINE)


def work(queue: Queue) -> None:
    """Serve a queue by all GPUs until SIGTERM or SIGINT; what dies is started again."""
    started = list(parts(queue))
    if len(started) == 1:  # this process becomes the worker
        os.environ.update(started[0].environment)
        os.execv(sys.executable, list(started[0].command))  # noqa: S606  our own command
    watch(started)
    stop([part.process for part in started if part.process is not None], STOP_SECONDS)
