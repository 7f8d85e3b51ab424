"""How busy many GPUs are kept: the service's own scheduling, on virtual time.

    python -m benchmarks.simulate [--gpus 64] [--images 1300000] [--record docs/simulation.json]

Rows, turns, leases, sweep and joins are the real code on a real SQLite database, whose clock is
the simulation's; only the computing is not done. Steps take what `api.plans.speeds` says that they
take at the speeds of the options, and `--overhead` besides. Each GPU is lost once in
`--loss-hours` on average, with what its step has not kept; its worker is back after `--restart`
seconds, the step when its lease has run out. Figures come last, one a line, `name: value unit`.
`busy` is the GPU time of work that counted over all GPU time from the first shard of one protection
to its last evaluation, or of `--mixed` ones until the last step begins: after that there is nothing
left to give to who is idle. `whole` is the same of one protection from its request to its end, with
its training and its archive. Exits 1 where a `busy` is below `--min-busy`.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event

from api import db, revision
from api.models import StepKind
from api.settings import settings
from benchmarks.figures import record, show
from benchmarks.simulate import requests
from benchmarks.simulate.clock import Clock, set_clock
from benchmarks.simulate.cluster import Cluster


def main() -> int:
    """Simulate, print, judge."""
    logging.disable(logging.WARNING)  # each loss is told
    options = _options()
    one = [requests.request(options.images, "paper", seeds=options.seeds)]
    figures: dict[str, tuple[float, str]] = {}
    with _cluster(options, one) as cluster:
        figures |= _of_one(cluster, options)
    with _cluster(options, list(requests.mixed(options))) as cluster:
        figures |= _of_queue(cluster, options)
    if options.record:
        asked = {name: value for name, value in vars(options).items() if name != "record"}
        record(options.record, figures, options=asked)
    show(figures)
    least = min(value for name, (value, _) in figures.items() if name.startswith("busy"))
    return int(least < options.min_busy)


def _of_one(cluster: Cluster, options: argparse.Namespace) -> dict[str, tuple[float, str]]:
    cluster.run()
    totals = cluster.totals
    phases = {kind: at for (_, kind), at in totals.phases.items()}
    lasted = {kind: phases[kind][1] - phases[kind][0] for kind in phases}
    start = phases[StepKind.PERTURB][0]
    end = max(last for _, last in phases.values())

    def busy(since: float, until: float) -> float:
        whole: float = options.gpus * (until - since)
        return totals.useful_between(since, until) / whole

    return {
        **{f"{kind} takes": (lasted[kind] / 3600, "h") for kind in phases},
        "busy in perturb": (busy(*phases[StepKind.PERTURB]), "1"),
        "busy from perturb to evaluate of one": (busy(start, end), "1"),
        "whole protection": (busy(0, end), "1"),
        "lost workers": (totals.losses, "1"),
        "a claim takes": (1000 * totals.claim_seconds / totals.claims, "ms"),
    }


def _of_queue(cluster: Cluster, options: argparse.Namespace) -> dict[str, tuple[float, str]]:
    cluster.run()
    totals = cluster.totals
    end = max(last for _, last in totals.phases.values())
    last = totals.last_claim
    return {
        f"busy over {options.mixed} mixed": (
            totals.useful_between(0, last) / (options.gpus * last),
            "1",
        ),
        f"{options.mixed} mixed, to the last end": (
            totals.useful_between(0, end) / (options.gpus * end),
            "1",
        ),
        f"{options.mixed} mixed take": (end / 3600, "h"),
        "lost workers, mixed": (totals.losses, "1"),
    }


@contextmanager
def _cluster(options: argparse.Namespace, asked: Sequence[dict[str, Any]]) -> Iterator[Cluster]:
    """A cluster on a database of its own, with what was asked for."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SEPGATE_DATA_DIR": folder, "SEPGATE_LOG_LEVEL": "ERROR"}
        settings.cache_clear()
        db.engine.cache_clear()
        revision.migrate()
        event.listen(db.engine(), "connect", lambda connection, _: set_clock(connection, clock))
        db.engine().dispose()
        for request in asked:
            requests.ask(request)
        yield Cluster(options, clock)
        db.engine().dispose()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--cpu-workers", type=int, default=16, help="two for eight GPUs")
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--seeds", type=int, default=12, help="of each row of the one's evidence")
    parser.add_argument("--mixed", type=int, default=20, help="protections in the queue")
    parser.add_argument("--gradient-gflops", type=float, default=125_000)
    parser.add_argument("--training-gflops", type=float, default=60_000)
    parser.add_argument(
        "--cpu-gflops", type=float, default=2000, help="of a CPU worker: 6 of its 16 cores"
    )
    parser.add_argument(
        "--decoded-per-second", type=float, default=2000, help="images, by the cores of a host"
    )
    parser.add_argument("--overhead", type=float, default=2.0, help="seconds a step")
    parser.add_argument("--loss-hours", type=float, default=50)
    parser.add_argument("--restart", type=float, default=300, help="seconds until a host is back")
    parser.add_argument("--lease", type=float, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--min-busy", type=float, default=0.9)
    parser.add_argument("--record", type=Path, help="docs/simulation.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
