"""Which cells make which table."""

from collections.abc import Iterator
from itertools import product

from benchmarks.strength.cells import Cell
from benchmarks.strength.recipes import CLEAN, RECIPES
from sep_core.config import COUNTERMEASURES, Countermeasure, NetworkName

FAST = "fast"
HARDENED = "hardened"
FULL = "sep-fa-vr"
ROWS: tuple[Countermeasure, ...] = tuple(
    name for name in COUNTERMEASURES if not name.startswith("pretrained")
)


def choose() -> Iterator[Cell]:
    """Candidates, on the first half of the images."""
    for recipe in [CLEAN, "last", "sep-fa-vr", *(n for n in RECIPES if "x" in n)]:
        yield from _cells("choose", [recipe], [8], [1], ["small"], ["crop-flip"], [11])


def _cells(
    half: str,
    recipes: list[str],
    levels: list[int],
    surrogate_seeds: list[int],
    networks: list[NetworkName],
    countermeasures: list[Countermeasure],
    seeds: list[int],
) -> Iterator[Cell]:
    for recipe, level, first, network, countermeasure, seed in product(
        recipes, levels, surrogate_seeds, networks, countermeasures, seeds
    ):
        if recipe == CLEAN:  # one for all budgets and surrogates
            yield Cell(half, recipe, 0, 0, network, countermeasure, seed)
        else:
            yield Cell(half, recipe, level, first, network, countermeasure, seed)


TABLES = {"choose": choose}
