"""Sections of docs/results.md that show cells, and the curves."""

from collections.abc import Callable, Iterable, Iterator
from statistics import fmean

from benchmarks.strength.curve import Point, draw
from benchmarks.strength.recipes import CLEAN, NOISES, OTHERWISE, OWN, known
from benchmarks.strength.results import (
    DASH,
    FIGURES,
    Measured,
    at_least_as_well,
    excess,
    mean,
    over_seeds,
)
from benchmarks.strength.tables import (
    BARE,
    BESIDE_OTHERS,
    CLAIMS,
    FAST,
    FLOAT32,
    FULL,
    HARDENED,
    PLAIN,
    ROWS,
)
from sep_core.config import PRETRAINED

HALVES = {
    "choose": "First half of the images, where recipes are chosen",
    "judge": "Second half, where they are judged",
    "confirm": "Images of neither half, judged once by seeds of their own",
    "twice": "Twice as many images, of neither half, judged once by seeds of their own",
    "whole": "All images",
    "paper": "The paper's row (`benchmarks.paper`)",
}
COLUMNS = (CLEAN, FULL, FAST, HARDENED)
PAPER = "120 PFLOP: 100 for 900 passes an image, 20 for the surrogate"
LEAST_EFFECT = 10.0  # points that the full recipe has to take away, or a cell decides nothing

RECIPES = f"""Differences are to the full recipe, `{FULL}`, in points, seed by seed; in brackets the
one-sided 95 % bound of their mean (Student's t). A recipe protects at least as well where the mean
is at most 1 point and the bound at most 3 points higher, for last and for peak. `class-4x4` is the
preset `fast`; decision 0011 says how it and its judges were chosen."""
COLUMN_NOTE = "Each column is what the images were changed by, each row what was tried against it."
UNTRIED_NOTE = """Nothing is tried against the change: networks are trained with the recipe's own
augmentation (`crop-flip`), or with none. DenseNet-121 and GoogLeNet, the slowest of all, are
measured by `--full` alone, and have not been yet."""

Group = tuple[str, int, str]
"""Half of the images, budget in levels, appropriator."""


class Cells:
    """The results, asked for by what they were measured on."""

    def __init__(self, results: Iterable[Measured]) -> None:
        self.all = list(results)

    def at(self, group: Group, recipe: str, countermeasure: str = PLAIN) -> list[Measured]:
        """Every seed of a recipe; clean images are the same at all levels."""
        half, levels, network = group
        wanted = (half, recipe, 0 if recipe == CLEAN else levels, network, countermeasure)
        return [
            result
            for result in self.all
            for cell in [result.cell]
            if (cell.half, cell.recipe, cell.levels, cell.network, cell.countermeasure) == wanted
        ]

    def groups(self, wanted: Callable[[Measured], bool] = lambda _: True) -> list[Group]:
        """Where changed images were measured that `wanted` holds for."""
        cells = [r.cell for r in self.all if r.cell.recipe != CLEAN and wanted(r)]
        found = {(cell.half, cell.levels, cell.network) for cell in cells}
        return sorted(found, key=lambda group: (list(HALVES).index(group[0]), *group[1:]))

    def recipes(self, group: Group) -> list[str]:
        """Those measured on a group under the recipe's own augmentation, in their usual order."""
        names = dict.fromkeys([*known(), *(result.cell.recipe for result in self.all)])
        other = {*NOISES, FLOAT32}
        return [name for name in names if name not in other and self.at(group, name)]


def recipes(cells: Cells) -> Iterator[str]:
    """Every recipe beside the full one."""
    groups = _plain_groups(cells)
    if groups:
        yield RECIPES
    for group in groups:
        yield _heading(group)
        undecided = _undecided(cells, group)
        head = ["recipe", "passes an image", "GFLOP an image", "seeds", "last", "peak"]
        head += ["last, to full", "peak, to full", "at least as well"]
        rows = [_recipe_row(cells, group, name, undecided) for name in cells.recipes(group)]
        yield table(head, rows)
        if undecided:
            yield undecided
        yield _total(cells, group)


def _plain_groups(cells: Cells) -> list[Group]:
    return cells.groups(lambda r: r.cell.countermeasure == PLAIN and r.cell.recipe not in NOISES)


def _recipe_row(cells: Cells, group: Group, recipe: str, undecided: str | None) -> list[str]:
    ours, full = cells.at(group, recipe), cells.at(group, FULL)
    row = [f"`{recipe}`", _cost(ours[0].passes), _cost(ours[0].gflop)]
    row += [str(len(ours)), over_seeds(ours, "last"), over_seeds(ours, "peak")]
    if recipe in (CLEAN, FULL) or not full:
        return [*row, DASH, DASH, DASH]
    row += [excess(ours, full, "last"), excess(ours, full, "peak")]
    return [*row, "undecided" if undecided else at_least_as_well(ours, full)]


def _undecided(cells: Cells, group: Group, row: str = PLAIN) -> str | None:
    """Why a group decides nothing about its recipes under a countermeasure."""
    clean, full = cells.at(group, CLEAN, row), cells.at(group, FULL, row)
    missing = [name for name, results in ((CLEAN, clean), (FULL, full)) if not results]
    if missing:
        return f"Decides nothing: `{'` and `'.join(missing)}` not measured here."
    effect = _effect(clean, full)
    if effect >= LEAST_EFFECT:
        return None
    return (
        f"Decides nothing: the full recipe lowers clean by {effect:.1f} points, "
        f"less than {LEAST_EFFECT:g}."
    )


def _effect(clean: list[Measured], full: list[Measured]) -> float:
    """Points that the full recipe takes away, of the same appropriator's seeds where there are."""
    by_seed = {result.cell.seed: result.last for result in clean}
    paired = [by_seed[r.cell.seed] - r.last for r in full if r.cell.seed in by_seed]
    return fmean(paired) if paired else mean(clean, "last") - mean(full, "last")


def _total(cells: Cells, group: Group) -> str:
    """What the surrogate and the images take together."""
    measured = [cells.at(group, name)[0] for name in cells.recipes(group) if name != CLEAN]
    totals = {
        result.cell.recipe: (result.surrogate_gflop + result.gflop) * result.images / 1e6
        for result in measured
        if result.cell.recipe in (FULL, "last", FAST, OWN) and result.gflop is not None
    }
    told = ", ".join(f"`{recipe}` {total:.2g} PFLOP" for recipe, total in totals.items())
    images = measured[0].images
    others = [result for result in measured if result.cell.recipe == OWN]
    own = "".join(f" (`{OWN}`'s {result.surrogate_gflop:,.1f})" for result in others)
    beside = next((result for result in measured if result not in others), measured[0])
    return (
        f"The surrogate's training costs {beside.surrogate_gflop:,.1f} GFLOP an image{own} beside "
        + (f"that: for these {images:,} images {told} all told." if told else "that.")
        + (f" The paper's, through ResNet-18, costs {PAPER}." if group[0] == "whole" else "")
    )


def curves(cells: Cells) -> Iterator[tuple[Group, str]]:
    """Of every group in which recipes of more than one cost were measured."""
    for group in _plain_groups(cells):
        measured = {name: cells.at(group, name) for name in cells.recipes(group)}
        paid = {name: results for name, results in measured.items() if results[0].passes}
        each = {2 * results[0].forward_gflop for results in paid.values()}
        alike = len(each) == 1  # passes through several surrogates are not
        costs = "GFLOP of gradient passes an image"
        if alike:
            costs = f"gradient passes an image, of {max(each):.2g} GFLOP each"
        points = [
            Point(name, cost, mean(results, "last"), mean(results, "peak"))
            for name, results in paid.items()
            if (cost := results[0].passes if alike else results[0].gflop)
        ]
        if len({point.cost for point in points}) > 1:
            clean = measured.get(CLEAN)
            line = mean(clean, "last") if clean else None
            yield group, draw(points, line, _title(group), costs)


def matrix(cells: Cells) -> Iterator[str]:
    """Recipes against countermeasures."""
    groups = cells.groups(
        lambda r: r.cell.countermeasure not in (PLAIN, BARE) and r.cell.recipe not in NOISES
    )
    if groups:
        yield COLUMN_NOTE
    for group in groups:
        yield _heading(group)
        names, wanted = _candidates(cells, group)
        if group[0] == "judge":  # elsewhere only what was tried
            names, wanted = list(COLUMNS), [*ROWS, *PRETRAINED]
        rows = [[row, *(_both(cells.at(group, name, row)) for name in names)] for row in wanted]
        yield table(["countermeasure", *names], rows)
        yield from _claims(cells, group)
        begun = [r for row in PRETRAINED for name in names for r in cells.at(group, name, row)]
        for digest in dict.fromkeys(result.record["weights_sha256"] for result in begun):
            yield f"The `pretrained` rows begin with weights of SHA-256 `{digest}`."


def _claims(cells: Cells, group: Group) -> Iterator[str]:
    """Whether recipes stand beside the full one under what undoes it most, too."""
    rows, reasons = [], []
    for row in CLAIMS:
        full, undecided = cells.at(group, FULL, row), _undecided(cells, group, row)
        tested = [name for name in (FAST, HARDENED) if full and cells.at(group, name, row)]
        for recipe in tested:
            ours = cells.at(group, recipe, row)
            verdict = "undecided" if undecided else at_least_as_well(ours, full)
            figures = (excess(ours, full, figure) for figure in FIGURES)
            rows.append([row, f"`{recipe}`", str(len(ours)), *figures, verdict])
        if tested and undecided:
            reasons.append(f"`{row}`: {undecided}")
    if rows:
        yield "The same test as above, in the rows on which a claim rests:"
        head = ["countermeasure", "recipe", "seeds", "last, to full", "peak, to full"]
        yield table([*head, "at least as well"], rows)
    yield from reasons


def _candidates(cells: Cells, group: Group) -> tuple[list[str], list[str]]:
    """Recipes and countermeasures that were tried together."""
    rows: list[str] = [row for row in ROWS if any(cells.at(group, name, row) for name in known())]
    hard = [row for row in rows if row != PLAIN]
    return [name for name in known() if any(cells.at(group, name, row) for row in hard)], rows


def precisions(cells: Cells) -> Iterator[str]:
    """`fast` in float32 and in bfloat16."""
    for group in cells.groups(lambda result: result.cell.recipe == FLOAT32):
        yield _heading(group)
        rows = [
            [name, str(len(found)), over_seeds(found, "last"), over_seeds(found, "peak")]
            for name, recipe in (("bfloat16", FAST), ("float32", FLOAT32))
            for found in [cells.at(group, recipe)]
        ]
        yield table([f"`{FAST}` computed in", "seeds", "last", "peak"], rows)


def networks(cells: Cells) -> Iterator[str]:
    """Recipes against appropriators."""
    groups = cells.groups(lambda result: result.cell.recipe in COLUMNS)
    if groups:
        yield UNTRIED_NOTE
    for half, levels in dict.fromkeys(group[:2] for group in groups):
        names = [name for *place, name in groups if (half, levels) == tuple(place)]
        for row in (PLAIN, BARE):
            found = {
                name: [cells.at((half, levels, name), recipe, row) for recipe in COLUMNS]
                for name in names
            }
            rows = [[name, *map(_both, results)] for name, results in found.items() if any(results)]
            if len(rows) > 1:
                yield f"### {HALVES[half]}: {levels} levels, `{row}`"
                yield table(["appropriator", *COLUMNS], rows)


def baselines(cells: Cells) -> Iterator[str]:
    """Other methods' changes at the same budget."""
    groups = cells.groups(lambda result: result.cell.recipe in NOISES)
    if groups:
        yield OTHERWISE
    for group in groups:
        yield _heading(group)
        rows = [
            [f"`{name}`", *(_both(cells.at(group, name, column)) for column in BESIDE_OTHERS)]
            for name in (*COLUMNS, *NOISES)
        ]
        yield table(["images changed by", *BESIDE_OTHERS], rows)


def provenance(cells: Cells) -> Iterator[str]:
    """Of what images and by what libraries the results are."""
    seen = dict.fromkeys(
        (
            HALVES[record["half"]],
            f"{record['train_images']:,}",
            f"{record['test_images']:,}",
            f"`{record['data_sha256'][:16]}`",
            f"{record['plan']['device']}, {record['plan']['precision']}",
            ", ".join(f"{name} {value}" for name, value in record["versions"].items()),
        )
        for result in cells.all
        for record in [result.record]
    )
    if seen:
        head = ["images", "training", "test", "SHA-256 of the pixels", "arithmetic", "versions"]
        yield table(head, [list(row) for row in seen])


def _heading(group: Group) -> str:
    return f"### {_title(group)}"


def _title(group: Group) -> str:
    half, levels, network = group
    return f"{HALVES[half]}: {levels} levels, `{network}` trained on them"


def _both(results: list[Measured]) -> str:
    return f"{over_seeds(results, 'last')} / {over_seeds(results, 'peak')}" if results else DASH


def _cost(value: float | None) -> str:
    return DASH if value is None else f"{value:,.1f}".removesuffix(".0")


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
