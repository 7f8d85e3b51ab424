"""What several benchmarks are told in the same words. Imports the standard library only."""

import json
from collections.abc import Iterable
from typing import Any


def changes(told: Iterable[str]) -> dict[str, Any]:
    """Fields by name, each told as `FIELD=VALUE`: a value is JSON, or text where it is none."""
    return {field: _value(text) for field, _, text in (each.partition("=") for each in told)}


def _value(text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value  # as a configuration has it
