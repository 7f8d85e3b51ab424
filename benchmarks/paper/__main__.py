"""The paper's CIFAR-10 row, on one GPU, in pieces that resume.

    python -m benchmarks.paper [STAGE ...] --data PATH --out FOLDER [--limit-minutes M]

PATH is CIFAR-10: `cifar-10-binary.tar.gz` or its folder, a zip of `split/class/file`, or a `.npz`
(`--convert` makes one). Stages, in order of worth: `two` levels, `eight`, the other `networks`, the
`rest`. Prints what is left and what it costs, then works it off. It may be stopped at any time, and
the same command goes on: at most a shard of images is lost (10 PFLOP at most) or half a minute of a
training. Exits 75 while work is left, 1 where the limit was too short for any of it to last, or
where all that is left are trainings that diverge.
`cp -r FOLDER/results/paper docs/results/` hands over what is measured so far.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.files import versions, write_whole
from benchmarks.options import changes
from benchmarks.paper.data import read, write
from benchmarks.paper.pieces import RESUME, Bench, Piece, pieces
from benchmarks.paper.trials import STAGES, SURROGATE_SEED
from benchmarks.strength.recipes import hex_seed
from sep_core.arithmetic import prepare
from sep_core.config import Plan, SEPConfig, as_dict, resolve
from sep_core.presets import paper_for

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again
PFLOP = 1e6  # in GFLOP
REPORT_SECONDS = 10


def main() -> int:
    """Work off what is missing; 0 when nothing is left."""
    options = _options()
    data = read(options.data)
    if options.convert:
        write(data, options.convert)
        return 0
    plan = Plan(
        device=options.device,
        precision=options.precision,
        batch_size=options.batch,
        threads=options.threads,
    )
    base = resolve(_base(data.train[0].shape[-1], options.set), data.classes)
    bench = Bench(options.out, data, base, plan, options.shard)
    _prepare(plan)
    _claim(bench)
    work = pieces(bench, options.stages or list(STAGES))
    limit = time.monotonic() + 60 * options.limit_minutes
    _announce(work, options.tflops)
    began, clock = time.monotonic(), time.time()
    computed, diverged = _work_off(work, lambda: time.monotonic() > limit)
    _print_figures(bench, work, computed, time.monotonic() - began)
    if all(piece.done or piece in diverged for piece in work):
        return int(bool(diverged))
    if computed or any(file.stat().st_mtime > clock for file in (bench.out / RESUME).glob("*.pt")):
        return UNFINISHED
    print(f"limit: nothing that lasts was done in {options.limit_minutes:g} minutes; allow more")
    return 1


def _base(side: int, told: list[str]) -> SEPConfig:
    """The paper's configuration, by which everything is trained."""
    config = dataclasses.replace(paper_for("sep"), input_pixels=side, seed=hex_seed(SURROGATE_SEED))
    return dataclasses.replace(config, **changes(told))


def _prepare(plan: Plan) -> None:
    """The same bytes from the same run, where the device has a way; a warning where not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    prepare(plan)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _claim(bench: Bench) -> None:
    """The folder is of one run: its data, configuration and plan; card and PyTorch may change.

    Raises:
        ValueError: the folder holds another run's.
    """
    ours = {
        "data_sha256": bench.data.sha256,
        "config": as_dict(bench.base),
        "plan": as_dict(bench.plan),
        "shard_images": bench.shard_images,
    }
    run = json.loads(json.dumps(ours))
    path, here = bench.out / "run.json", versions(bench.plan.device)
    known = json.loads(path.read_text()) if path.exists() else {"versions": []}
    told = known.pop("versions")
    before = told if isinstance(told, list) else [told]
    if path.exists() and known != run:
        raise ValueError(f"out: expected a run as in {path}, got\n{json.dumps(run, indent=1)}")
    if before and here not in before:
        print(f"run: goes on with {here}, was begun with {before[0]}", flush=True)
    told = before if here in before else [*before, here]
    write_whole(path, json.dumps(run | {"versions": told}, indent=1).encode() + b"\n")


def _announce(work: list[Piece], tflops: float) -> None:
    left = [piece for piece in work if not piece.done]
    cost = sum(piece.gflop for piece in left)
    print(
        f"{len(left)} of {len(work)} pieces left: {cost / PFLOP:.4g} of {_pflop(work):.4g} PFLOP, "
        f"about {cost / (60_000 * tflops):.0f} min at {tflops:g} TFLOP/s",
        flush=True,
    )


def _work_off(work: list[Piece], late: Callable[[], bool]) -> tuple[float, list[Piece]]:
    """Do what is missing until it is late.

    Returns:
        The PFLOP that finished pieces took here, and trainings that diverged.
    """
    left = [piece for piece in work if not piece.done]
    began = reported = time.monotonic()
    computed, to_do = 0.0, _pflop(left)
    diverged: list[Piece] = []
    for piece in left:
        cost, begun = piece.gflop / PFLOP, None
        try:
            for share in piece.work():
                if late():
                    return computed, diverged
                begun = share if begun is None else begun  # some of it was done before
                if time.monotonic() > reported + REPORT_SECONDS:
                    reported = time.monotonic()
                    done = computed + (share - begun) * cost
                    told = _left(to_do - share * cost, done, reported - began)
                    print(f"{piece.name}: {share:.0%}{told}", flush=True)
        except FloatingPointError as error:
            if not piece.judges:
                raise
            diverged.append(piece)
            print(f"{piece.name}: {error}", flush=True)
        else:
            computed += (1 - (begun or 0)) * cost
            print(f"{piece.name}: done after {(time.monotonic() - began) / 60:.1f} min", flush=True)
        to_do -= cost
    return computed, diverged


def _left(to_do: float, done: float, seconds: float) -> str:
    """How long it will take by the PFLOP that are done; nothing to say of none."""
    return f"; about {to_do / done * seconds / 60:.0f} min left" if done > 0 else ""


def _pflop(work: list[Piece]) -> float:
    return sum(piece.gflop for piece in work) / PFLOP


def _print_figures(bench: Bench, work: list[Piece], computed: float, seconds: float) -> None:
    for path in sorted(bench.out.glob("results/paper/*/*.json")):
        result = json.loads(path.read_text())
        for figure in ("last", "peak"):
            name = f"{result['recipe']} {result['levels']} levels {result['network']} {figure}"
            print(f"{name}: {100 * result[figure]:.2f} %")
    print(f"computed: {computed:.4g} PFLOP")
    print(f"time: {seconds:.1f} s")
    print(f"left: {_pflop([piece for piece in work if not piece.done]):.4g} PFLOP")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("paper-run"))
    parser.add_argument(
        "--convert", type=Path, metavar="NPZ", help="write the data, measure nothing"
    )
    parser.add_argument("--limit-minutes", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=2500, help="images perturbed together")
    parser.add_argument("--shard", type=int, default=5000, help="images a piece")
    parser.add_argument("--tflops", type=float, default=200.0, help="speed, for the estimate")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"stages: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
