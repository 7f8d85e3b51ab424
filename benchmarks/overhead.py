"""What the service costs: the whole job through it against the same calls of `sep_core` alone.

    python -m benchmarks.overhead --data ZIP [--rounds 2] [--set epochs=10 ...] [--record FILE]
                                  [--in-turns]

One side is `benchmarks.service`: upload, poll, download, with everything in between. The other
reads the same zip, trains the surrogate, perturbs every image and trains both appropriators, by
the configuration, the plan and the draws that the service decided on; it writes and checks no
archive. Both find the same accuracies. They run at the same time, so that whatever slows the
machine slows both, the whole service on one core and the script on another; every ten seconds they
change cores. With `--in-turns` each has all cores, and what the machine does meanwhile counts.

After each round come the seconds of every phase on either side. Figures come last, one a line,
`name: value unit`; the overhead is that of the median round. Exits 1 where it exceeds
`--max-overhead`.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks import service, trial
from benchmarks.figures import record, show
from benchmarks.files import versions
from benchmarks.options import changes

Phases = dict[str, tuple[float, float]]
LOOK_SECONDS, LOOKS = 0.5, 600
CHANGE_SECONDS = 10


class Alone(NamedTuple):
    """What the script found, and its seconds, in all and by phase."""

    accuracies: dict[str, tuple[float, float]]
    seconds: float
    phases: dict[str, float]


def main() -> int:
    """Run the rounds, print, judge."""
    options = _options()
    rounds = [_round(options) for _ in range(options.rounds)]
    ratios = [through / alone for through, alone, *_ in rounds]
    figures = {
        "through the service": (statistics.median(through for through, *_ in rounds), "s"),
        "sep_core alone": (statistics.median(alone for _, alone, *_ in rounds), "s"),
        "images": (rounds[0][2], "images"),
        "overhead": (100 * (statistics.median(ratios) - 1), "%"),
        "least overhead": (100 * (min(ratios) - 1), "%"),
        "most overhead": (100 * (max(ratios) - 1), "%"),
    }
    if options.record:
        beside = {
            "at the same time": not options.in_turns,
            "seconds, and alone": [(through, alone) for through, alone, *_ in rounds],
            "seconds of steps, and alone": [phases for *_, phases in rounds],
            "versions": versions(),
        }
        record(options.record, figures, **beside)
    show(figures)
    return int(figures["overhead"][0] > options.max_overhead)


def _round(options: argparse.Namespace) -> tuple[float, float, int, Phases]:
    """Seconds through the service and alone, the number of images, and the seconds by phase."""
    if options.in_turns:
        report, through, _ = _through_the_service(options)
        accuracies, alone, bare = _alone(options.data, report["config"], report["plan"])
    else:
        with _a_core_each() as other:
            report, through, beside = _through_the_service(options, other)
            assert beside is not None
            accuracies, alone, bare = beside.result()
    steps = _steps(report).items()
    phases = {name: (round(s, 1), round(bare.get(name, 0.0), 1)) for name, s in steps}
    for name, (in_steps, in_script) in phases.items():
        print(f"{name}: {in_steps} s of steps, {in_script} s alone")
    for side, (last, peak) in accuracies.items():
        found = report["accuracy"][side]
        expected = found["accuracy_last"], found["accuracy_peak"]
        print(f"{side}: {expected} through the service, {(last, peak)} alone")
        if expected != (round(last, 6), round(peak, 6)):
            sys.exit("expected the same accuracies: both sides did not do the same")
    images: int = report["change"]["images"]
    print(f"{through:.0f} s through the service, {alone:.0f} s alone", flush=True)
    return through, alone, images, phases


@contextmanager
def _a_core_each() -> Iterator[Executor]:
    """This process, with all that it starts, on one core, and the executor's process on another.

    One core may be slower than the other, by a part of what is to be measured, for minutes.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("expected two cores, got one: --in-turns needs no more")
    os.environ["SEPGATE_THREADS"] = "1"
    over = threading.Event()
    os.sched_setaffinity(0, cores[:1])  # what is started before the first change inherits it
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), _die_with, (os.getpid(),)) as executor:
            beside = executor.submit(os.getpid).result()
            threading.Thread(target=_change_cores, args=[beside, cores[:2], over]).start()
            yield executor
    finally:
        over.set()
        os.sched_setaffinity(0, cores)


def _die_with(parent: int) -> None:
    """What goes on unseen when the benchmark is killed would spoil the next one."""
    from api.processes import die_with_parent  # noqa: PLC0415

    die_with_parent(signal.SIGKILL, parent)


def _change_cores(beside: int, cores: list[int], over: threading.Event) -> None:
    while not over.wait(CHANGE_SECONDS):
        cores.reverse()
        for process in _family(os.getpid()):
            core = cores[1] if process == beside else cores[0]
            for thread in Path(f"/proc/{process}/task").glob("*"):
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.sched_setaffinity(int(thread.name), {core})


def _family(process: int) -> Iterator[int]:
    """It, its children and theirs."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from _family(int(child))


def _through_the_service(
    options: argparse.Namespace, other: Executor | None = None
) -> tuple[service.Resource, float, Future[Alone] | None]:
    """The report and the seconds; and what `other` does as soon as the plan is there."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEPGATE_DATA_DIR"] = folder
        from api import db  # noqa: PLC0415  reads the environment set above
        from api.commands import launcher  # noqa: PLC0415  reads the environment set above
        from api.settings import settings  # noqa: PLC0415

        settings.cache_clear()
        db.engine.cache_clear()
        with launcher.service("127.0.0.1", 0) as running:
            time.sleep(15)  # until its workers have measured how fast they are
            curl = service.Curl(running.url, launcher.new_key())
            config = {"preset": "quick"} | changes(options.set)
            beside = other.submit(_alone_when_planned, options.data, folder) if other else None
            if beside is not None:
                beside.add_done_callback(_break_off)
            done = service.job(curl, options.data, config, Path(folder))
        return done.report, done.seconds, beside


def _break_off(beside: Future[Alone]) -> None:
    """What fails beside would be heard of only when the service has done its job."""
    if error := beside.exception():
        print(f"beside the service: {error!r}", flush=True)
        os.kill(os.getpid(), signal.SIGINT)


def _steps(report: service.Resource) -> dict[str, float]:
    """Seconds of the steps of each kind; `encode` and `package` run beside others."""
    found: dict[str, float] = {}
    for step in report["timing"]:
        began, ended = map(datetime.fromisoformat, (step["started_at"], step["finished_at"]))
        name = step["kind"]
        if name == "evaluate":
            name = ("clean", "protected")[step["index"]]
        found[name] = found.get(name, 0.0) + (ended - began).total_seconds()
    return found


def _alone_when_planned(path: Path, data_dir: str) -> Alone:
    os.environ["SEPGATE_DATA_DIR"] = data_dir  # this process began before there was one
    from sqlalchemy import select  # noqa: PLC0415

    from api.db import reading  # noqa: PLC0415
    from api.models import Protection  # noqa: PLC0415

    for _ in range(LOOKS):
        with reading() as session:
            asked = session.scalars(select(Protection)).first()
        if asked is not None and asked.config and asked.plan:
            return _alone(path, asked.config, asked.plan)
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"nothing was planned within {LOOKS * LOOK_SECONDS:.0f} s")


def _alone(path: Path, frozen: service.Resource, planned: service.Resource) -> Alone:
    """The same calls of `sep_core`, and nothing else."""
    began = time.monotonic()
    from api.plans.planning import load_config, load_plan  # noqa: PLC0415
    from benchmarks.data import read  # noqa: PLC0415
    from sep_core import surrogate  # noqa: PLC0415
    from sep_core.arithmetic import prepare  # noqa: PLC0415
    from sep_core.cells import Cell, cell_config  # noqa: PLC0415

    config, plan = load_config(frozen), load_plan(planned)
    prepare(plan)
    data = read(path)
    clean, held_out = trial.seen(data.train, config), trial.seen(data.test, config)
    phases: dict[str, float] = {}
    with trial.timed(phases, "train"):
        events = surrogate.train(*clean, data.classes, config, plan)
        ensemble = [event for event in events if isinstance(event, surrogate.Checkpoint)]
        patterns = trial.patterns_of(clean, data.classes, ensemble, config, plan)
    with trial.timed(phases, "perturb"):
        released, _ = (
            trial.perturbed(split, ensemble, config, plan, patterns)
            for split in (data.train, data.test)
        )
    accuracies = {}
    appropriator = cell_config(config, Cell(config.appropriator, "crop-flip", 1, clean=True))
    for side, split in (("clean", clean), ("protected", trial.seen(released, config))):
        with trial.timed(phases, side):
            appropriated = trial.accuracies(split, held_out, data.classes, appropriator, plan)
            curve = [plain for plain, _ in appropriated]
        accuracies[side] = curve[-1], max(curve)
    return Alone(accuracies, time.monotonic() - began, phases)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="zip of class folders")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--max-overhead", type=float, default=5.0, help="%%")
    parser.add_argument("--in-turns", action="store_true", help="each with all cores")
    parser.add_argument("--record", type=Path, help="docs/overhead.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
