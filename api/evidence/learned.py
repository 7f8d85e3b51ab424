"""How much of what clean images teach a way to train got out of protected ones. Pure.

A row is one of `matrix.build`, with `test_images`: how many its accuracies are of.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

Record = dict[str, Any]

WORKED_BELOW_SHARE = 0.6
"""Of what clean images teach beyond guessing, the share above which the report says that a
protection did not work; of the last epoch and of the best, which early stopping gets at best."""
ROUNDING = 1e-9
DECIDES_BEYOND = 0.1
"""A baseline decides nothing that beats guessing by less than this, than half of guessing, and than
half of what there is to learn beyond it."""
ONE_SIDED_95 = 1.6449
"""Standard deviations of the normal distribution."""


def decides(row: Record, guessing: float) -> bool:
    """Whether the baseline learned something, so that protected data could take it away."""
    least = min(DECIDES_BEYOND, guessing / 2, (1 - guessing) / 2)
    last = row["clean"]["last"]["mean"]
    beyond_chance = bound(last, row["test_images"], -ONE_SIDED_95) > guessing
    return bool(last - guessing >= least - ROUNDING) and least > 0 and beyond_chance


def failing(rows: Sequence[Record], guessing: float) -> list[Record]:
    """Rows of which too much was learned.

    Those too whose own baseline learned nothing, where they got more than is allowed of the best
    that did.
    """
    baselines = [_clean(row) for row in rows if decides(row, guessing)]
    limit = WORKED_BELOW_SHARE * (max(baselines, default=1.0) - guessing) + ROUNDING

    def is_high(row: Record) -> bool:
        protected = max(_learned(row, which) for which in ("last", "peak"))
        return bool(baselines) and protected - guessing > limit

    return [
        row
        for row in rows
        if (not is_low(row, guessing) if decides(row, guessing) else is_high(row))
    ]


def unsure(rows: Sequence[Record], guessing: float) -> list[Record]:
    """Rows of which little was learned, as far as so few test images tell."""
    return [
        row
        for row in rows
        if decides(row, guessing) and is_low(row, guessing) and not is_surely_low(row, guessing)
    ]


def is_low(row: Record, guessing: float) -> bool:
    """Whether little was, early stopping and renaming included."""
    return most(row, guessing) <= WORKED_BELOW_SHARE


def is_surely_low(row: Record, guessing: float) -> bool:
    """Whether it was by 95 % bounds of both accuracies, too."""
    protected = max(_learned(row, of) for of in ("last", "peak"))
    return _is_below(protected, _clean(row), row["test_images"], guessing)


def can_tell(images: int, guessing: float) -> bool:
    """Whether so many test images do where clean ones teach everything, protected ones nothing."""
    return _is_below(guessing, 1.0, images, guessing)


def most(row: Record, guessing: float) -> float:
    """The share of the last epoch, or of the best."""
    return max(share(row, guessing, which) for which in ("last", "peak"))


def share(row: Record, guessing: float, which: str) -> float:
    """Of what clean images teach beyond guessing, how much protected ones do.

    Of several trainings the one that learned most counts: whoever trains can do so again. Who is
    always wrong in the same way has learned the classes, and only calls them otherwise. At most 1
    where clean images teach nothing beyond guessing: such a row decides nothing.
    """
    return of_accuracy(row, guessing, _learned(row, which))


def of_accuracy(row: Record, guessing: float, accuracy: float) -> float:
    """The share that such an accuracy is, see `share`."""
    clean = _clean(row) - guessing
    protected = max(accuracy - guessing, 0.0)
    return float(round(protected / clean, 4)) if clean > ROUNDING else min(round(protected, 4), 1.0)


def withstood(rows: Sequence[Record], guessing: float) -> bool:
    """Whether all that decide something are, surely, and nothing about any is open."""
    measured = [row for row in rows if row["ratio"] is not None]
    beaten = failing(measured, guessing) or unsure(measured, guessing)
    return not beaten and not any(is_open(row) for row in rows)


def got(row: Record) -> tuple[float, float]:
    """What the ways to train are ordered by."""
    return _learned(row, "peak"), _learned(row, "last")


def is_open(row: Record) -> bool:
    """Whether what a countermeasure takes from the originals, or from what leaves, is not known.

    Where nothing was learned from either, since all trainings diverged, it is no way to learn.
    """
    if row["clean"] is None:
        return row["protected"] is not None
    return bool(row["diverged"]["protected"])


def bound(accuracy: float, images: int, deviations: float) -> float:
    """Of the accuracy on ever more such images: Wilson's score bound (1927), the upper one above 0.

    Args:
        images: that it was measured on, at least 1.
        deviations: of the normal distribution, below 0 for the lower bound.
    """
    square = deviations**2 / images
    spread = sqrt(accuracy * (1 - accuracy) / images + square / images / 4)
    return (accuracy + square / 2 + deviations * spread) / (1 + square)


def _is_below(protected: float, clean: float, images: int, guessing: float) -> bool:
    beyond = bound(clean, images, -ONE_SIDED_95) - guessing
    return bound(protected, images, ONE_SIDED_95) - guessing <= WORKED_BELOW_SHARE * beyond


def _clean(row: Record) -> float:
    return float(max(row["clean"][which]["mean"] for which in ("last", "peak")))


def _learned(row: Record, which: str) -> float:
    protected = row["protected"]
    return float(max(protected[which]["max"], protected["renamed"][which]["max"]))
