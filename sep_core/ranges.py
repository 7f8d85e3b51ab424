"""Ranges of numbers, beside their annotations: checked, and told to who writes a request."""

from dataclasses import dataclass
from typing import Any, get_args, get_type_hints


@dataclass(frozen=True)
class Within:
    """The smallest and the largest value of a number: `Annotated[int, Within(1, 64)]`."""

    low: float
    high: float


def of_annotation(kind: Any) -> Within | None:
    """The range that an annotation has, if any."""
    return next((note for note in get_args(kind) if isinstance(note, Within)), None)


def check_ranges(config: Any) -> None:
    """Raise ValueError where a field of a dataclass is not `Within` its range."""
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        within = of_annotation(kind)
        if within is not None:
            in_range(name, getattr(config, name), within.low, within.high)


def in_range(field: str, value: float, low: float, high: float) -> None:
    """Raise ValueError, naming the field, where a value is outside; NaN is."""
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{field}: expected {low:g} to {high:g}, got {value}")
