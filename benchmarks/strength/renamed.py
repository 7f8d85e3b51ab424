"""Section of docs/results.md: what networks recognise once their answers are renamed."""

from collections.abc import Iterator
from itertools import groupby
from statistics import fmean

from benchmarks.strength.recipes import CLEAN
from benchmarks.strength.results import Measured
from benchmarks.strength.sections import HALVES, Cells, table

INTRODUCTION = """
Every answer is read as the class that it mostly stands for, found on one half of the test images
and applied to the other: what a network has learned under other names (`sep_core/renaming.py`).
Means over the seeds, last / peak; of cells that were measured since this is counted.
"""
HEAD = ["images", "levels", "appropriator", "countermeasure", "changed by", "seeds", "as answered"]


def section(cells: Cells) -> Iterator[str]:
    """A row for every recipe, network and countermeasure."""
    counted = sorted((r for r in cells.all if "renamed_last" in r.record), key=_row_of)
    if counted:
        yield INTRODUCTION.strip()
        rows = [_row(list(results)) for _, results in groupby(counted, _row_of)]
        yield table([*HEAD, "renamed"], rows)


def _row_of(result: Measured) -> tuple[int, str, str, bool, str, int]:
    cell = result.cell
    half = list(HALVES).index(cell.half)
    return half, cell.network, cell.countermeasure, cell.recipe != CLEAN, cell.recipe, cell.levels


def _row(results: list[Measured]) -> list[str]:
    cell, records = results[0].cell, [result.record for result in results]
    row = [HALVES[cell.half], str(cell.levels or "-"), f"`{cell.network}`"]
    row += [f"`{cell.countermeasure}`", f"`{cell.recipe}`", str(len(results))]
    for before in ("", "renamed_"):
        figures = (
            fmean(100 * r[f"{before}{which}"] for r in records) for which in ("last", "peak")
        )
        row.append(" / ".join(f"{figure:.1f}" for figure in figures))
    return row
