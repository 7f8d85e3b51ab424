"""Which cells make which table."""

from collections.abc import Iterator
from itertools import product

from benchmarks.strength.cells import Cell
from benchmarks.strength.recipes import CLEAN, NOISES, RECIPES
from sep_core.config import COUNTERMEASURES, PRETRAINED, Countermeasure, NetworkName

FAST = "fast"
HARDENED = "hardened"
FULL = "sep-fa-vr"
PLAIN: Countermeasure = "crop-flip"  # the recipe's own augmentation
ROWS: tuple[Countermeasure, ...] = tuple(name for name in COUNTERMEASURES if name not in PRETRAINED)


def choose() -> Iterator[Cell]:
    """Candidates, on the first half of the images."""
    for recipe in [CLEAN, "last", "sep-fa-vr", *(n for n in RECIPES if "x" in n)]:
        yield from _cells("choose", [recipe], [8], [1], ["small"], [PLAIN], [11])


def harden() -> Iterator[Cell]:
    """Candidates for `hardened`, on the first half, against what undoes SEP most."""
    recipes = [CLEAN, "sep-4x15", "class-4x15", "hardened", "class-hardened"]
    for countermeasure in (PLAIN, "grey", "jpeg-10"):
        yield from _cells("choose", recipes, [8], [1], ["small"], [countermeasure], [11])


def judge() -> Iterator[Cell]:
    """The preset `fast` against the full recipe, once, on the second half of the images."""
    networks: list[NetworkName] = ["small", "vgg16"]
    recipes = [CLEAN, FAST, FULL]
    for network, level, seed in product(networks, [8, 4], [1, 2, 3]):
        yield from _cells("judge", recipes, [level], [seed], [network], [PLAIN], [10 + seed])


def two_levels() -> Iterator[Cell]:
    """All of CIFAR-10 at the paper's two levels; one seed."""
    yield from _cells("whole", [CLEAN, "last", FAST], [2], [1], ["small"], [PLAIN], [11])


def matrix() -> Iterator[Cell]:
    """Every countermeasure, one seed; the plain row has the three of `judge`."""
    yield from _cells("judge", [CLEAN, FULL, FAST, HARDENED], [8], [1], ["small"], list(ROWS), [11])


def pretrained(network: NetworkName) -> Iterator[Cell]:
    """Backbones that begin with a file of weights, frozen and tuned; one seed."""
    recipes = [CLEAN, FULL, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], [1], [network], list(PRETRAINED), [11])


def networks() -> Iterator[Cell]:
    """Other appropriators, those that 30 minutes of one core suffice for; one seed."""
    names: list[NetworkName] = ["linear", "mlp", "vit", "vgg16", "resnet18", "senet18"]
    yield from _cells("judge", [CLEAN, FULL, FAST, HARDENED], [8], [1], names, [PLAIN], [11])


def baselines() -> Iterator[Cell]:
    """Other methods at the same budget, one seed."""
    recipes = [CLEAN, *NOISES, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], [1], ["small"], ["crop-flip", "grey", "jpeg-10"], [11])


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


TABLES = {
    "choose": choose,
    "harden": harden,
    "judge": judge,
    "two-levels": two_levels,
    "matrix": matrix,
    "networks": networks,
    "baselines": baselines,
}
