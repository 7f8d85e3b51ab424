"""How much a protection takes away: an appropriator on clean pixels, then on protected ones.

    python -m benchmarks.trial [--data ZIP] [--preset quick] [--set epochs=20 ...] [--seeds 3]

ZIP holds `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, all images of one size. Presets are read as
the service reads them: steps follow the budget, input size and `auto` the data. Figures come last,
one a line, `name: value unit`. Exits 1 where protected / clean exceeds `--max-ratio`.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from api.commands.demo.photographs import write_zip
from api.commands.demo.run import PER_CLASS, TEST_PER_CLASS
from api.plans import planning
from benchmarks.data import Split, read
from benchmarks.options import changes
from sep_core import evaluation, protection, surrogate
from sep_core.arithmetic import prepare
from sep_core.config import Plan, SEPConfig, resolve
from sep_core.patterns import class_patterns
from sep_core.pixels import to_images, to_input, to_pixels
from sep_core.presets import PRESETS

Figures = dict[str, float]


def main() -> int:
    """Measure every seed; figures are means over them, and the worst ratio."""
    options = _options()
    data = read(options.data or _photographs())
    train, test, classes = data.train, data.test, data.classes
    config = configured(options.preset, options.set, options.device, train[0])
    plan = Plan(device=options.device, precision=options.precision, threads=options.threads)
    prepare(plan)
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        resolved = resolve(_seeded(config, seed), classes)
        runs.append(measure(train, test, classes, resolved, plan, enlarge=options.enlarge))
        print(f"seed {seed}: {_one_line(runs[-1])}", flush=True)
    worst = max(run["ratio"] for run in runs)
    for name in runs[0]:
        print(f"{name}: {statistics.fmean(run[name] for run in runs):.4g} {_unit(name)}")
    print(f"worst ratio: {worst:.4g} 1")
    return int(worst > options.max_ratio)


def measure(
    train: Split,
    test: Split,
    classes: int,
    config: SEPConfig,
    plan: Plan,
    *,
    enlarge: bool = False,
) -> Figures:
    """One surrogate, one protection of its images, an appropriator on clean and on protected."""
    figures: Figures = {}
    clean = seen(train, config)
    with timed(figures, "surrogate time"):
        kept = list(surrogate.train(*clean, classes, config, plan))
        ensemble = [event for event in kept if isinstance(event, surrogate.Checkpoint)]
    with timed(figures, "perturb time"):
        protect = _protect_enlarged if enlarge else perturbed
        patterns = patterns_of(clean, classes, ensemble, config, plan)
        released = protect(train, ensemble, config, plan, patterns)
    for name, split in (("clean", clean), ("protected", seen(released, config))):
        with timed(figures, f"{name} training time"):
            curve = list(accuracies(split, seen(test, config), classes, config, plan))
        plain, renamed = zip(*curve, strict=True)
        figures |= {f"{name} last": plain[-1], f"{name} peak": max(plain)}
        figures |= {f"{name} renamed last": renamed[-1], f"{name} renamed peak": max(renamed)}
    figures["largest change"] = (released[0].int() - train[0].int()).abs().max().item()
    figures["total time"] = sum(value for name, value in figures.items() if name.endswith("time"))
    figures["ratio"] = figures["protected last"] / figures["clean last"]
    return figures


def configured(preset: str, told: list[str], device: str, pixels: Tensor) -> SEPConfig:
    """The preset with `field=value` changes, for training on `pixels`; a value is JSON, or text."""
    return planning.configure(preset, changes(told), device, len(pixels), min(pixels.shape[-2:]))


def seen(split: Split, config: SEPConfig) -> Split:
    """A split at input size."""
    pixels, labels = split
    return to_pixels(to_input(to_images(pixels), config.input_pixels)), labels


def patterns_of(
    clean: Split,
    classes: int,
    ensemble: list[surrogate.Checkpoint],
    config: SEPConfig,
    plan: Plan,
) -> Tensor | None:
    """The classes' patterns, where the recipe has any."""
    if not config.class_steps:
        return None
    *_, patterns = class_patterns(*clean, classes, ensemble, config, plan)
    assert isinstance(patterns, Tensor)
    return patterns


def perturbed(
    split: Split,
    ensemble: list[surrogate.Checkpoint],
    config: SEPConfig,
    plan: Plan,
    patterns: Tensor | None,
) -> Split:
    """All images of a split, perturbed as planned."""
    pixels, labels = split
    *_, height, width = pixels.shape
    size = max(1, min(plan.batch_size, plan.max_batch_pixels // (height * width)))
    protected = []
    for part, own in zip(torch.split(pixels, size), torch.split(labels, size), strict=True):
        *_, done = protection.protect([part], own, ensemble, config, plan, patterns)
        assert isinstance(done, Tensor)
        protected.append(done)
    return torch.cat(protected), labels


def _protect_enlarged(
    split: Split,
    ensemble: list[surrogate.Checkpoint],
    config: SEPConfig,
    plan: Plan,
    patterns: Tensor | None,
) -> Split:
    """Perturb at the surrogate's size and enlarge the change: what the product does not do."""
    pixels, labels = split
    small = seen(split, config)
    change = perturbed(small, ensemble, config, plan, patterns)[0].int() - small[0].int()
    size = pixels.shape[-2:]
    enlarged = functional.interpolate(change.float(), size, mode="bilinear").round()
    return (pixels.float() + enlarged).clamp(0, 255).to(torch.uint8), labels


def accuracies(
    train: Split, test: Split, classes: int, config: SEPConfig, plan: Plan
) -> Iterator[tuple[float, float]]:
    """Of an appropriator on `test`, after every epoch: plain, and with its answers renamed."""
    for event in evaluation.appropriate(train, test, classes, config, plan):
        if isinstance(event, evaluation.Accuracy):
            yield event.accuracy, sum(event.renamed) / len(test[1])


@dataclasses.dataclass
class timed:  # noqa: N801  used as a statement, like contextlib's
    """Add the seconds that a block takes to `figures`."""

    figures: Figures
    name: str

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.figures[self.name] = time.perf_counter() - self.start


def _seeded(config: SEPConfig, seed: int) -> SEPConfig:
    return dataclasses.replace(config, seed=f"{seed:032x}")


def _unit(name: str) -> str:
    if name.endswith("time"):
        return "s"
    return {"ratio": "1", "largest change": "levels"}.get(name, "1")


def _one_line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _photographs() -> Path:
    path = Path(tempfile.gettempdir()) / "sepgate-photographs.zip"
    write_zip(path, PER_CLASS, TEST_PER_CLASS)
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--data", type=Path, help="zip of split/class/image; else the demo's photographs"
    )
    parser.add_argument("--preset", choices=["auto", *sorted(PRESETS)], default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument(
        "--enlarge", action="store_true", help="perturb at the surrogate's size, enlarge the change"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--max-ratio", type=float, default=float("inf"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
