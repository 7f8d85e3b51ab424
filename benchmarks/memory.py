"""What the processes of each step hold at most, for data sets of more and more images.

    python -m benchmarks.memory [--images 1000 10000 100000] [--side 32] [--record docs/memory.json]

Every kind of step runs in a process of its own, by the worker's own code, on images made for it:
no two are alike. `private` is what the process itself holds and no other could drop (RssAnon,
looked at every 20 ms); files that are mapped come and go with the memory that there is. Figures
come last, one a line, `name: value unit`; `growth` is what one more image costs, between the two
largest numbers: fewer may still be held whole. Exits 1 where that exceeds `--max-growth`.
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
from typing import Any

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
KINDS = ("ingest", "train", "perturb", "package", "evaluate")
STATUS = Path("/proc/self/status")

Peaks = dict[str, float]
"""Of each kind of step, MiB."""


def main() -> int:
    """Measure every number of images, print, judge."""
    options = _options()
    if options.step:
        return _step(options.step)
    peaks = {number: measure(number, options.side) for number in sorted(options.images)}
    fewer, most = sorted(peaks)[-2:]
    growth = {
        kind: (peaks[most][kind] - peaks[fewer][kind]) * 2**10 / (most - fewer) for kind in KINDS
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
        for kind in KINDS:
            words = [sys.executable, "-m", "benchmarks.memory", "--step", kind]
            began = time.monotonic()
            ran = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE)
            peaks[kind] = float(ran.stdout.split()[-1])
            seconds = time.monotonic() - began
            print(f"{images} images of {side}: {kind} {peaks[kind]:.0f} MiB, {seconds:.0f} s")
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
    """All steps of a kind, in this process; prints the peak."""
    peak = _Peak()
    _begin(kind)
    with peak:
        _run_all(kind)
    print(peak.mebibytes)
    return 0


class _Peak(threading.Thread):
    """Looks at this process's private memory until its context ends."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._kibibytes, self._over = 0, threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            found = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())
            self._kibibytes = max(self._kibibytes, int(found[1]) if found else 0)

    @property
    def mebibytes(self) -> float:
        """The most that was seen."""
        return self._kibibytes / 2**10


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
        path.unlink()
    if kind == "train":
        with transaction() as session:
            dataset = session.scalars(select(Dataset)).one()
            request = protections.Request(dataset.id, "quick", CONFIG)
            protections.create(session, dataset.owner_id, request, None)


def _run_all(kind: str) -> None:
    from api import leases, steps  # noqa: PLC0415
    from api.db import transaction  # noqa: PLC0415
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
    parser.add_argument("--step", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
