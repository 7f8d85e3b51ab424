"""How much of what clean images teach a way to train got out of protected ones. Pure.

A row is one of `matrix.build`, with `two_classes`: whether the data have two, and all are meant.
"""

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

WORKED_BELOW_SHARE = 0.6
"""Of what clean images teach beyond guessing, the share above which the report says that a
protection did not work; of the last epoch and of the best, which early stopping gets at best."""
ROUNDING = 1e-9
DECIDES_BEYOND = 0.1
"""A baseline decides nothing that beats guessing by less than this, than half of guessing, and than
half of what there is to learn beyond it."""


def decides(row: Record, guessing: float) -> bool:
    """Whether the baseline learned something, so that protected data could take it away."""
    least = min(DECIDES_BEYOND, guessing / 2, (1 - guessing) / 2)
    return bool(row["clean"]["last"]["mean"] - guessing >= least - ROUNDING) and least > 0


def failing(rows: Sequence[Record], guessing: float) -> list[Record]:
    """Rows that decide something, and of which too much was learned."""
    return [row for row in rows if decides(row, guessing) and not is_low(row, guessing)]


def is_low(row: Record, guessing: float) -> bool:
    """Whether little was, early stopping included."""
    return most(row, guessing) <= WORKED_BELOW_SHARE


def most(row: Record, guessing: float) -> float:
    """The share of the last epoch, or of the best."""
    return max(share(row, guessing, which) for which in ("last", "peak"))


def share(row: Record, guessing: float, which: str) -> float:
    """Of what clean images teach beyond guessing, how much protected ones do.

    Of several trainings the one that learned most counts: whoever trains can do so again. Who is
    always wrong about two classes has learned them, and only to be asked for the other. At most 1
    where clean images teach nothing beyond guessing: such a row decides nothing.
    """
    clean = max(row["clean"][of]["mean"] for of in ("last", "peak")) - guessing
    learned = row["protected"][which]["max"]
    if row["two_classes"]:
        wrong = row["protected"]["last" if which == "last" else "lowest"]
        learned = max(learned, 1 - wrong["min"])
    protected = max(learned - guessing, 0.0)
    return float(round(protected / clean, 4)) if clean > ROUNDING else min(round(protected, 4), 1.0)


def got(row: Record) -> tuple[float, float]:
    """What the ways to train are ordered by."""
    return row["protected"]["peak"]["max"], row["protected"]["last"]["max"]


def is_open(row: Record) -> bool:
    """Whether what a countermeasure takes from the originals, or from what leaves, is not known.

    Where nothing was learned from either, since all trainings diverged, it is no way to learn.
    """
    if row["clean"] is None:
        return row["protected"] is not None
    return bool(row["diverged"]["protected"])
