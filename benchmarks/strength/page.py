"""Writes docs/results.md and its curves from the committed result files, and from nothing else.

    python -m benchmarks.strength.page [--results docs/results] [--page docs/results.md] [--check]

`--check` writes nothing and exits 1 where a file is not what the results say.
"""

import argparse
import sys
from itertools import chain
from pathlib import Path

from benchmarks.strength import records, renamed, sections
from benchmarks.strength.results import DASH, read
from benchmarks.strength.sections import Cells

INTRODUCTION = f"""# Results

Written by `python -m benchmarks.strength.page` from the files in [results](results), not by hand.

A figure is the accuracy, in percent, of a network that was trained on changed images, on clean
test images: lower is better protection. `last` is after the last epoch, `peak` the best epoch's,
which is what breaking this schedule off gets at best (one that is `short` from the start may get
more); where a cell has two figures, they are last / peak. With
several seeds it is mean ± standard deviation. A `{DASH}` is not measured.
"""
NOTHING = "Nothing measured yet."
PICTURE = """![Original, protected, and the change made visible](before-after.png)

A patch of each of the first eight classes of `make demo`, at 8 levels."""


def main() -> int:
    """Write the page, or check it."""
    options = _options()
    files = build(options.results, options.page)
    stale = {path: text for path, text in files.items() if not _holds(path, text)}
    for path, text in stale.items():
        print(f"{path}: {'not what the results say' if options.check else 'written'}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return int(options.check and bool(stale))


def build(results: Path, page: Path) -> dict[Path, str]:
    """Contents of every file that is made from the results, by its path: page and curves."""
    cells = Cells(read(results))
    curves = {
        results / f"curve-{'-'.join(map(str, group))}.svg": text
        for group, text in sections.curves(cells)
    }
    links = [f"![{path.stem}]({path.relative_to(page.parent)})" for path in curves]
    titled = {
        "Recipes": sections.recipes(cells),
        "What it costs": iter(["\n".join(links) or NOTHING]),
        "What it looks like": iter([PICTURE]),
        "Countermeasures": sections.matrix(cells),
        "Answers renamed": renamed.section(cells),
        "Arithmetic": sections.precisions(cells),
        "Other networks": sections.networks(cells),
        "Other methods": sections.baselines(cells),
        "Photographs, through the service": records.service(page.parent / "service"),
        "Speed of a gradient pass": records.speed(page.parent / "speed"),
        "The data and the versions": chain(sections.provenance(cells), records.times(cells.all)),
        "How to reproduce": records.commands(),
    }
    parts = [INTRODUCTION.strip()]
    for title, blocks in titled.items():
        parts += [f"## {title}", *(list(blocks) or [NOTHING])]
    return {page: "\n\n".join(parts) + "\n", **curves}


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
