"""What the committed result files say: means, spreads and differences over seeds, in percent."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.strength.cells import Cell
from sep_core.config import SEPConfig
from sep_core.costs import forward_gflop, pattern_passes

DASH = "-"
Figure = Literal["last", "peak"]
FIGURES: tuple[Figure, ...] = get_args(Figure)

# Points that "at least as well" allows a mean difference, and its bound.
MOST_EXCESS, MOST_BOUND = 1.0, 3.0

# Quantiles of Student's t at 0.95 for 1, 2, … degrees of freedom: a one-sided bound.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


@dataclass(frozen=True)
class Measured:
    """One result file.

    Attributes:
        last, peak: accuracy on clean test images, in percent.
        passes: gradient passes that each image cost, with its share of those for the patterns;
            None where the recipe counts none.
        gflop: of these passes, an image.
        surrogate_gflop: of the surrogate's training, an image.
        forward_gflop: of one forward pass of the surrogate, an image.
        images: that it was trained on.
        record: the whole file.
    """

    cell: Cell
    last: float
    peak: float
    passes: float | None
    gflop: float | None
    surrogate_gflop: float
    forward_gflop: float
    images: int
    record: dict[str, Any]


def read(folder: Path) -> list[Measured]:
    """Every result below `folder`, in the order of their paths.

    Raises:
        ValueError: a file does not lie where its cell belongs.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        measured = _measured(json.loads(path.read_text()))
        if folder / measured.cell.path != path:
            raise ValueError(f"path: expected {measured.cell.path}, got {path}")
        found.append(measured)
    return found


def _measured(record: dict[str, Any]) -> Measured:
    config, passes = record["config"], _passes(record)
    forward = forward_gflop(config["surrogate"], config["input_pixels"])
    return Measured(
        cell=Cell(**{field.name: record[field.name] for field in fields(Cell)}),
        last=100 * record["last"],
        peak=100 * record["peak"],
        passes=passes,
        gflop=None if passes is None else 2 * passes * forward,
        surrogate_gflop=3 * config["epochs"] * forward,
        forward_gflop=forward,
        images=record["train_images"],
        record=record,
    )


def _passes(record: dict[str, Any]) -> float | None:
    passes: int | None = record["release"].get("passes")
    if not passes or not record["config"].get("class_steps"):
        return passes
    config, images = SEPConfig(class_steps=record["config"]["class_steps"]), record["train_images"]
    classes = len(record["config"]["target_map"])
    return passes + pattern_passes(config, int(images), classes) / int(images)


def mean(results: Sequence[Measured], figure: Figure) -> float:
    """Over all of them, at least one."""
    return statistics.fmean(getattr(result, figure) for result in results)


def over_seeds(results: Sequence[Measured], figure: Figure) -> str:
    """Mean and standard deviation; the mean of one alone; a dash where nothing was measured."""
    if not results:
        return DASH
    text = f"{mean(results, figure):.1f}"
    if len(results) > 1:
        text += f" ± {statistics.stdev(getattr(result, figure) for result in results):.1f}"
    return text


def differences(
    ours: Sequence[Measured], theirs: Sequence[Measured], figure: Figure
) -> list[float]:
    """Ours less theirs in points, for every pair of seeds that both were measured with."""
    pairs = {_seeds(result): getattr(result, figure) for result in theirs}
    return [
        getattr(result, figure) - pairs[_seeds(result)]
        for result in ours
        if _seeds(result) in pairs
    ]


def _seeds(result: Measured) -> tuple[int, int]:
    return result.cell.surrogate_seed, result.cell.seed


def upper_bound(values: Sequence[float]) -> float | None:
    """Of their mean, one-sided, 95 %, by the t distribution; None for fewer than two.

    Raises:
        ValueError: more values than `T95` has quantiles for.
    """
    if len(values) < 2:
        return None
    if len(values) - 1 > len(T95):
        raise ValueError(f"values: expected at most {len(T95) + 1}, got {len(values)}")
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) + T95[len(values) - 2] * error


def excess(ours: Sequence[Measured], theirs: Sequence[Measured], figure: Figure) -> str:
    """Mean difference in points and its bound."""
    values = differences(ours, theirs, figure)
    if not values:
        return DASH
    bound = upper_bound(values)
    text = f"{statistics.fmean(values):+.1f}"
    return f"{text} (one seed: no bound)" if bound is None else f"{text} (≤ {bound:+.1f})"


def at_least_as_well(ours: Sequence[Measured], theirs: Sequence[Measured]) -> str:
    """Whether ours protects at least as well as theirs: `yes`, `no`, or why nobody knows."""
    both = [differences(ours, theirs, figure) for figure in FIGURES]
    bounds = [bound for values in both if (bound := upper_bound(values)) is not None]
    if len(bounds) < len(both):
        return "no bound" if both[0] else DASH
    well = all(statistics.fmean(values) <= MOST_EXCESS for values in both)
    return "yes" if well and max(bounds) <= MOST_BOUND else "no"
