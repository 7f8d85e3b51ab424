"""Which cells make which table."""

from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.strength.cells import Cell
from benchmarks.strength.recipes import CLEAN, NOISES, RECIPES
from sep_core.config import COUNTERMEASURES, PRETRAINED, Countermeasure, NetworkName

FAST = "fast"
HARDENED = "hardened"
FLOAT32 = "fast-float32"
FULL = "sep-fa-vr"
PLAIN: Countermeasure = "crop-flip"  # the recipe's own augmentation
BARE: Countermeasure = "none"  # not even that
BRIEF: Countermeasure = "short"
ROWS: tuple[Countermeasure, ...] = tuple(name for name in COUNTERMEASURES if name not in PRETRAINED)


# The last two only on a bigger machine.
NETWORKS: tuple[NetworkName, ...] = (
    *("small", "vgg16", "linear", "mlp", "vit", "resnet18", "senet18"),
    *("densenet121", "googlenet"),
)
JUDGES: tuple[NetworkName, ...] = ("small", "senet18")
"""The surrogate's like, and one unlike it that the full recipe lowers by enough to decide."""
CLAIMS: tuple[Countermeasure, ...] = (PLAIN, "grey", "jpeg-10")
"""Rows on which a claim rests: three seeds."""
BESIDE_OTHERS: tuple[Countermeasure, ...] = (BARE, *CLAIMS)
"""Rows in which other methods are measured."""
SEEDS = (1, 2, 3)
"""Of the surrogate; the appropriator's are ten more."""
CONFIRM_SEEDS = (21, 22, 23)
"""Chosen before anything was measured by them."""
TWICE_SEEDS = (41, 42, 43)
"""Likewise."""


def choose() -> Iterator[Cell]:
    """Candidates, on the first half of the images."""
    for recipe in [CLEAN, "last", FULL, "sep-fa", "sep", *(n for n in RECIPES if "x" in n)]:
        yield from _cells("choose", [recipe], [8], [1], ["small"], [PLAIN])
    for recipe in (CLEAN, FULL, "sep-4x15", "class-4x15", "class-4x4", "class-1x4"):
        yield from _cells("choose", [recipe], [8], [1], ["small"], ["projection"])
    for recipe in ("sep-4x15", "class-4x15", "class-4x4", "class-1x4"):
        yield from _cells("choose", [recipe], [4], [1], ["small"], [PLAIN])


def harden() -> Iterator[Cell]:
    """`hardened`, on the first half, against what undoes SEP most."""
    recipes = [CLEAN, "sep-4x15", "class-4x15", "class-4x4", HARDENED]
    yield from _cells("choose", recipes, [8], [1], ["small"], CLAIMS)


def judge() -> Iterator[Cell]:
    """The preset `fast`, and what it was before, against the full recipe, on the second half."""
    yield from _cells("judge", ["sep-4x15"], [8], SEEDS, ["small"], [PLAIN])
    yield from _cells("judge", ["sep-4x15"], [4], SEEDS[:1], ["small"], [PLAIN])
    for network, level, seed in product(JUDGES, [8, 4], SEEDS):
        yield from _cells("judge", [CLEAN, FAST, FULL], [level], [seed], [network], [PLAIN])


def confirm() -> Iterator[Cell]:
    """The same, once, on images of neither half and by seeds of their own."""
    yield from _cells("confirm", [CLEAN, FAST, FULL], [8], CONFIRM_SEEDS, ["small"], [PLAIN])


def twice() -> Iterator[Cell]:
    """The same on twice as many images, at 4 levels, too."""
    for seed in TWICE_SEEDS:
        yield from _cells("twice", [CLEAN, FAST, FULL], [4, 8], [seed], ["small", "mlp"], [PLAIN])
        yield from _cells("twice", [CLEAN, FAST, FULL], [8], [seed], ["small"], [BRIEF])


def precision() -> Iterator[Cell]:
    """`fast` computed in float32 and in bfloat16."""
    yield from _cells("judge", [CLEAN, FAST, FLOAT32], [8], SEEDS, ["small"], [PLAIN])


def two_levels() -> Iterator[Cell]:
    """All of CIFAR-10 at the paper's two levels; one seed."""
    yield from _cells("whole", [CLEAN, "last", FAST], [2], [1], ["small"], [PLAIN])


def matrix() -> Iterator[Cell]:
    """Every countermeasure; three seeds where a claim rests on the row, elsewhere one."""
    for row in ROWS:
        seeds = SEEDS if row in CLAIMS else SEEDS[:1]
        yield from _cells("judge", [CLEAN, FULL, FAST, HARDENED], [8], seeds, ["small"], [row])


def pretrained(network: NetworkName) -> Iterator[Cell]:
    """Backbones that begin with a file of weights, frozen and tuned; one seed."""
    recipes = [CLEAN, FULL, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], SEEDS[:1], [network], PRETRAINED)


def networks() -> Iterator[Cell]:
    """Other appropriators, those that take under an hour of a shared core; one seed."""
    recipes = [CLEAN, FULL, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], [1], NETWORKS[1:-2], [PLAIN, BARE])


def baselines() -> Iterator[Cell]:
    """Other methods at the same budget, one seed."""
    recipes = [CLEAN, *NOISES, FULL, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], [1], ["small"], BESIDE_OTHERS)


def bigger() -> Iterator[Cell]:
    """What takes a bigger machine: every network, three seeds in every cell, 2 levels whole."""
    recipes = [CLEAN, FULL, FAST, HARDENED]
    yield from _cells("judge", recipes, [8], SEEDS, ["small"], ROWS)
    yield from _cells("judge", recipes, [8, 4], SEEDS, NETWORKS, [PLAIN, BARE])
    yield from _cells("judge", [*NOISES], [8], SEEDS, ["small"], BESIDE_OTHERS)
    yield from _cells("whole", [CLEAN, "last", FULL, FAST], [2], SEEDS, NETWORKS, [PLAIN])


def _cells(
    half: str,
    recipes: list[str],
    levels: list[int],
    seeds: Sequence[int],
    networks: Sequence[NetworkName],
    countermeasures: Sequence[Countermeasure],
) -> Iterator[Cell]:
    for recipe, level, seed, network, row in product(
        recipes, levels, seeds, networks, countermeasures
    ):
        if recipe == CLEAN:  # one for all budgets and surrogates
            yield Cell(half, recipe, 0, 0, network, row, seed + 10)
        else:
            yield Cell(half, recipe, level, seed, network, row, seed + 10)


TABLES = {
    "choose": choose,
    "harden": harden,
    "judge": judge,
    "confirm": confirm,
    "twice": twice,
    "precision": precision,
    "two-levels": two_levels,
    "matrix": matrix,
    "networks": networks,
    "baselines": baselines,
}
