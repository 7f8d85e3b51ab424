"""The curve: gradient passes an image against what an appropriator still learns, as an SVG file."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, StrictUndefined

WIDTH, HEIGHT = 720, 520
LEFT, RIGHT, TOP, BOTTOM = 60, 588, 50, 460  # of the plot, in units of the file
BOX = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
LINE, LETTER, ASIDE, DOT = 14, 7, 9, 4
"""A label's height, a letter's width at most, how far it is from its point; a point's radius."""
SHIFTS = [shift for step in range(60) for shift in (step * LINE / 2, -step * LINE / 2)]
"""Of a label from its point's height, the nearest first."""
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)

COLOURS = {"sep-fa-vr": "#1b7837", "sep-fa": "#2166ac", "sep": "#b2182b"}
OTHER = "#555555"

TEMPLATE = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
    """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-family="sans-serif" font-size="12" fill="#333">
<title>{{ title }}</title>
<rect width="100%" height="100%" fill="#fff"/>
<text x="{{ left }}" y="22" font-size="14">{{ title }}</text>
{% for y, label in rows %}
<path d="M{{ left }} {{ y }}H{{ right }}" stroke="#e4e4e4"/>
<text x="{{ left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
{% for x, label in columns %}
<path d="M{{ x }} {{ top }}V{{ bottom }}" stroke="#e4e4e4"/>
<text x="{{ x }}" y="{{ bottom + 18 }}" text-anchor="middle">{{ label }}</text>
{% endfor %}
<text x="{{ right }}" y="{{ bottom + 38 }}" text-anchor="end">{{ costs }}</text>
<text x="{{ left }}" y="42">accuracy in percent: last (filled), peak (hollow)</text>
{% if clean %}
<path d="M{{ left }} {{ clean }}H{{ right }}" stroke="#333" stroke-dasharray="4 4"/>
<text x="{{ right + 8 }}" y="{{ clean + 4 }}">clean</text>
{% endif %}
{% for mark in marks %}
<g fill="{{ mark.colour }}" stroke="{{ mark.colour }}">
<path d="M{{ mark.x }} {{ mark.last }}V{{ mark.peak }}" stroke-opacity="0.4"/>
<circle cx="{{ mark.x }}" cy="{{ mark.last }}" r="4"/>
<circle cx="{{ mark.x }}" cy="{{ mark.peak }}" r="3" fill="#fff"/>
{% if mark.label_y != mark.last %}
<path d="M{{ mark.x }} {{ mark.last }}L{{ mark.label_x }} {{ mark.label_y }}" stroke-opacity="0.4"/>
{% endif %}
<text x="{{ mark.label_x }}" y="{{ mark.label_y + 4 }}" text-anchor="{{ mark.anchor }}" stroke="none">{{ mark.name }}</text>
</g>
{% endfor %}
</svg>
"""  # noqa: E501  a line of SVG
)


@dataclass(frozen=True)
class Point:
    """A recipe: what it costs an image, above 0, and accuracies in percent."""

    name: str
    cost: float
    last: float
    peak: float


def draw(points: Sequence[Point], clean: float | None, title: str, costs: str) -> str:
    """Cost to the right, on a logarithmic axis, accuracy upwards; `clean` is a dashed line.

    Args:
        costs: what the costs are of, in words.
    """
    x = _axis([point.cost for point in points])
    top = 10 * math.ceil(max([clean or 0, *(point.peak for point in points)]) / 10)
    marks = [
        {
            "name": point.name,
            "colour": next((c for n, c in COLOURS.items() if _is_of(n, point)), OTHER),
            "x": x(point.cost),
            "last": _y(point.last, top),
            "peak": _y(point.peak, top),
        }
        for point in points
    ]
    for mark, label in zip(marks, _labels(marks), strict=True):
        mark.update(label)
    return TEMPLATE.render(
        BOX,
        title=title.replace("`", ""),
        costs=costs,
        rows=[(_y(value, top), value) for value in range(0, top + 1, 10)],
        columns=[(x(tick), tick) for tick in TICKS if LEFT <= x(tick) <= RIGHT],
        clean=None if clean is None else _y(clean, top),
        marks=marks,
    )


def _is_of(family: str, point: Point) -> bool:
    return point.name == family or point.name.startswith(f"{family}-")


def _axis(costs: Sequence[float]) -> Callable[[float], float]:
    """Logarithmic, a third of a decade of room on either side."""
    low, high = math.log10(min(costs)) - 1 / 3, math.log10(max(costs)) + 1 / 3
    return lambda value: round(LEFT + (math.log10(value) - low) / (high - low) * (RIGHT - LEFT), 1)


def _y(value: float, top: float) -> float:
    return round(BOTTOM - value / top * (BOTTOM - TOP), 1)


@dataclass(frozen=True)
class _Area:
    """A rectangle that is taken, in units of the file."""

    left: float
    right: float
    middle: float
    height: float

    def meets(self, other: "_Area") -> bool:
        apart = abs(self.middle - other.middle) >= (self.height + other.height) / 2
        return not apart and self.left < other.right and other.left < self.right


def _labels(marks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the names are: beside their last accuracy, or the nearest place that is free."""
    taken = [
        _Area(mark["x"] - DOT, mark["x"] + DOT, mark[figure], 2 * DOT)
        for mark in marks
        for figure in ("last", "peak")
    ]
    placed: dict[int, dict[str, Any]] = {}
    for number, mark in sorted(enumerate(marks), key=lambda pair: pair[1]["last"]):
        width = LETTER * len(mark["name"])
        places = (
            (anchor, _Area(left, left + width, mark["last"] + shift, LINE))
            for shift in SHIFTS
            for anchor, left in (
                ("start", mark["x"] + ASIDE),
                ("end", mark["x"] - ASIDE - width),
            )
        )
        anchor, area = next(
            (anchor, area)
            for anchor, area in places
            if area.left >= LEFT and not any(map(area.meets, taken))
        )
        taken.append(area)
        at = area.left if anchor == "start" else area.right
        placed[number] = {"anchor": anchor, "label_x": at, "label_y": area.middle}
    return [placed[number] for number in range(len(marks))]
