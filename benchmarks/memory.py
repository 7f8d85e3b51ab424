"""What every process holds at most, for data sets of more and more images.

    python -m benchmarks.memory [--images 1000 10000 100000] [--side 32] [--record docs/memory.json]

Every kind of step runs in a process of its own, by the worker's own code, on images made for it:
no two are alike. Then the service is started on what is there, the data set uploaded to it a second
time, and the protection's archive, report and picture fetched: `api`, `sweep`, and `parent`, of the
process that takes the upload in. `private` is what the process itself holds and no other could drop
(RssAnon, looked at every 20 ms); files that are mapped come and go with the memory that there is.
Figures come last, one a line, `name: value unit`; `growth` is what one more image costs, between
the two largest numbers: fewer may still be held whole. Exits 1 where that exceeds `--max-growth`.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

CLASSES = 10
LOOK_SECONDS = 0.02
CONFIG = {
    "seed": "0" * 32,
    "epochs": 1,
    "checkpoints": 1,
    "batch_size": 128,
    "appropriator_epochs": 1,
    "steps": 1,
    "class_steps": 2,
    "input_pixels": 32,
}
KINDS = ("ingest", "train", "perturb", "encode", "package", "evaluate")
SERVED = "service"
PROCESSES = (*KINDS, "api", "sweep", "parent")

Peaks = dict[str, float]
"""Of each process, MiB."""


def main() -> int:
    """Measure every number of images, print, judge."""
    options = _options()
    if options.step:
        return _step(options.step)
    peaks = {number: measure(number, options.side) for number in sorted(options.images)}
    fewer, most = sorted(peaks)[-2:]
    growth = {
        kind: (peaks[most][kind] - peaks[fewer][kind]) * 2**10 / (most - fewer)
        for kind in PROCESSES
    }
    if options.record:
        _record(options.record, options.side, peaks, growth)
    for number, by_kind in peaks.items():
        for kind, peak in by_kind.items():
            print(f"private {kind} {number} images: {peak:.0f} MiB")
    for kind, kibibytes in growth.items():
        print(f"growth {kind}: {kibibytes:.2f} KiB an image")
    return int(max(growth.values()) > options.max_growth)


def measure(images: int, side: int) -> Peaks:
    """A data set from its upload to its report, in a service's folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "SEPGATE_DATA_DIR": folder,
            "SEPGATE_THREADS": "1",
            "SEPGATE_LOG_LEVEL": "WARNING",
        }
        data = Path(folder) / "data.zip"
        _write(data, images, side)
        peaks: Peaks = {}
        for kind in (*KINDS, SERVED):
            words = [sys.executable, "-m", "benchmarks.memory", "--step", kind]
            began = time.monotonic()
            ran = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE)
            found: Peaks = json.loads(ran.stdout.splitlines()[-1])
            seconds = time.monotonic() - began
            told = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in found.items())
            print(f"{images} images of {side}: {told}, {seconds:.0f} s", flush=True)
            peaks |= found
    return peaks


def _write(path: Path, images: int, side: int) -> None:
    """Smooth random colours, as PNG."""
    draws = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(images):
            small = draws.integers(0, 256, (4, 4, 3), np.uint8)
            image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            image.save(buffer, "png", compress_level=1)
            split = "test" if number % 10 == 9 else "train"
            name = f"{split}/{number % CLASSES}/{number:07d}.png"
            archive.writestr(name, buffer.getvalue())


def _step(kind: str) -> int:
    """All steps of a kind, in this process, or the service in others; prints the peaks."""
    if kind == SERVED:
        print(json.dumps(_serve()))
        return 0
    _begin(kind)
    with _Peaks({kind: os.getpid()}) as peaks:
        _run_all(kind)
    print(json.dumps(peaks.mebibytes))
    return 0


class _Peaks(threading.Thread):
    """Looks at processes' private memory until its context ends.

    Attributes:
        mebibytes: the most that was seen of each.
    """

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes, self._over = processes, threading.Event()
        self._lost: str | None = None
        self.mebibytes = dict.fromkeys(processes, 0.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        if self._lost:
            raise RuntimeError(f"{self._lost} has ended")

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for name, process in self._processes.items():
                try:
                    status = Path(f"/proc/{process}/status").read_text()
                except FileNotFoundError:
                    status = ""
                found = re.search(r"RssAnon:\s+(\d+) kB", status)
                if found is None:
                    self._lost = name
                    return
                self.mebibytes[name] = max(self.mebibytes[name], int(found[1]) / 2**10)


def _serve() -> Peaks:
    """The whole service on what is there, asked for all that there is."""
    from sqlalchemy import select  # noqa: PLC0415

    from api.commands import launcher  # noqa: PLC0415
    from api.db import reading  # noqa: PLC0415
    from api.models import Protection  # noqa: PLC0415
    from api.settings import settings  # noqa: PLC0415
    from benchmarks.service import Curl  # noqa: PLC0415

    folder = settings().data_dir
    with reading() as session:
        protection = f"/v1/protections/{session.scalars(select(Protection.id)).one()}"
    with launcher.service("127.0.0.1", 0) as running:
        pids = {part.name: part.process.pid for part in running.parts if part.process}
        named = {"api": pids["api"], "sweep": pids["sweep"], "parent": pids["worker-cpu"]}
        with _Peaks(named) as peaks:
            curl = Curl(running.url, launcher.new_key("tester"))
            uploaded = curl.json("/v1/datasets", "-X", "POST", "-T", str(folder / "data.zip"))
            *_, ingested = curl.poll(f"/v1/datasets/{uploaded['id']}")
            assert ingested["state"] == "ready", ingested
            for name in ("", "/events", "/archive", "/report", "/report.html", "/before-after.png"):
                curl.save(protection + name, folder / "saved")
            time.sleep(2 * settings().sweep_seconds)
    return peaks.mebibytes


def _begin(kind: str) -> None:
    """What a request would have done before the first step of a kind."""
    from uuid import uuid4  # noqa: PLC0415

    from sqlalchemy import select  # noqa: PLC0415

    from api import datasets, keys, protections, revision, storage  # noqa: PLC0415
    from api.db import transaction  # noqa: PLC0415
    from api.models import Dataset, Owner  # noqa: PLC0415
    from api.settings import settings  # noqa: PLC0415

    if kind == "ingest":
        revision.migrate()
        path, dataset_id = settings().data_dir / "data.zip", uuid4()
        with path.open("rb") as file:
            digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), file)
        with transaction() as session:
            keys.create(session, "tester")
            owner = session.scalars(select(Owner.id)).one()
            datasets.create(session, owner, dataset_id, "data", digest, path.stat().st_size)
    if kind == "train":
        with transaction() as session:
            dataset = session.scalars(select(Dataset)).one()
            request = protections.Request(dataset.id, "quick", CONFIG)
            protections.create(session, dataset.owner_id, request, None)


def _run_all(kind: str) -> None:
    from api import steps  # noqa: PLC0415
    from api.db import transaction  # noqa: PLC0415
    from api.scheduling import leases  # noqa: PLC0415
    from worker import facts, tasks  # noqa: PLC0415

    for step_id in _ready(kind):
        with transaction() as session:
            claim = leases.claim(session, step_id, facts.name())
            if claim is not None and claim.protection_id is not None:
                steps.start(session, claim)
        assert claim is not None
        tasks.run_claimed(claim)
    assert next(_ready(kind), None) is None, f"a step of kind {kind} did not end"


def _ready(kind: str) -> Iterator[Any]:
    from sqlalchemy import select  # noqa: PLC0415

    from api.db import reading  # noqa: PLC0415
    from api.models import Step, StepKind, StepState  # noqa: PLC0415

    with reading() as session:
        ready = select(Step.id).where(Step.kind == StepKind(kind), Step.state == StepState.READY)
        yield from session.scalars(ready).all()


def _record(path: Path, side: int, peaks: dict[int, Peaks], growth: Peaks) -> None:
    from benchmarks.files import versions  # noqa: PLC0415  imports torch, which not every step does

    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[str(side)] = {"private_mib": peaks, "growth_kib": growth, "versions": versions()}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--max-growth", type=float, default=0.75, help="KiB an image")
    parser.add_argument("--record", type=Path, help="docs/memory.json")
    parser.add_argument("--step", choices=(*KINDS, SERVED), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
