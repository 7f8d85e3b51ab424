"""What a benchmark has measured."""

import json
from collections.abc import Mapping
from pathlib import Path

Figures = Mapping[str, tuple[float, str]]
"""Value and unit, by name."""


def show(figures: Figures) -> None:
    """One a line, `name: value unit`."""
    for name, (value, unit) in figures.items():
        print(f"{name}: {value:.4g} {unit}")


def record(path: Path, figures: Figures, **beside: object) -> None:
    """As JSON, with what else is told of them."""
    whole = {"figures": {name: list(figure) for name, figure in figures.items()}, **beside}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
