"""What protections take away, cell by cell.

    python -m benchmarks.strength TABLE --data ZIP [--full] [--results docs/results] [--cache DIR]
    python -m benchmarks.strength --weights NETWORK.pt --data ZIP …

ZIP holds `split/class/file`: for the committed tables 500 training and 200 test images a class of
CIFAR-10. `--weights` adds the rows of backbones that begin with that file, which is as the service
wants it (docs/operations.md). Prints the total cost, then measures what is missing; may be stopped
at any time and run by several processes at once. `python -m benchmarks.strength.page` writes
docs/results.md.
"""

import argparse
import sys
import tempfile
from functools import lru_cache, partial
from pathlib import Path

from benchmarks.data import read
from benchmarks.strength.cells import Bench, Cell, measure
from benchmarks.strength.tables import TABLES, bigger, pretrained
from benchmarks.strength.weights import Weights
from benchmarks.strength.work import missing_gflop
from sep_core.arithmetic import prepare
from sep_core.config import Plan


def main() -> int:
    """Measure a table."""
    options = _options()
    plan = Plan(device=options.device, precision=options.precision, threads=options.threads)
    prepare(plan)
    data = lru_cache(partial(read, options.data))
    bench = Bench(options.results, options.cache, data, plan, options.weights)
    tables = [TABLES[name] for name in options.tables] + [bigger] * options.full
    if options.weights:
        tables.append(partial(pretrained, options.weights.network))
    cells = list(dict.fromkeys(cell for table in tables for cell in table()))
    if options.only:
        cells = [cell for cell in cells if options.only in cell.path]
    _print_cost(cells, bench, options.gflops)
    diverged = False
    for number, cell in enumerate(cells, start=1):
        try:
            measured = measure(cell, bench)
        except FloatingPointError as error:
            print(f"{number}/{len(cells)} {cell.path}: {error}", flush=True)
            measured, diverged = False, True
        if measured:
            result = bench.done(cell)
            assert result is not None
            print(
                f"{number}/{len(cells)} {cell.path}: last {result['last']:.1%}, "
                f"peak {result['peak']:.1%}, {result['seconds']:.0f} s",
                flush=True,
            )
    return int(diverged)


def _print_cost(cells: list[Cell], bench: Bench, gflops: float) -> None:
    missing = sum(bench.done(cell) is None for cell in cells)
    cost = missing_gflop(cells, bench)
    print(
        f"{len(cells)} cells, {missing} missing: {cost / 1000:,.0f} TFLOP, "
        f"about {cost / gflops / 60:.0f} min at {gflops:g} GFLOP/s",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--full", action="store_true", help=bigger.__doc__)
    parser.add_argument("--weights", type=Weights, metavar="NETWORK.pt", help=pretrained.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="zip of split/class/file")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", help="cells whose path contains this")
    cache = Path(tempfile.gettempdir()) / "sepgate-strength"
    parser.add_argument("--cache", type=Path, default=cache, help="surrogates, released images")
    parser.add_argument("--gflops", type=float, default=120.0, help="speed, for the estimate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"TABLE: expected some of {', '.join(TABLES)}, got {', '.join(unknown)}")
    if not (options.tables or options.full or options.weights):
        parser.error("expected a TABLE, --full or --weights, got none")
    return options


if __name__ == "__main__":
    sys.exit(main())
