"""What a process keeps from one `perturb` step to the next, while nothing else comes between."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from sep_core import allocator

T = TypeVar("T")
Key = tuple[Hashable, ...]

_kept: dict[Key, Any] = {}


def kept(key: Key, make: Callable[[], T]) -> T:
    """What `make` gave for this key; before it makes anything, what was kept for others goes."""
    if key not in _kept:
        forget()
        _kept[key] = make()
    value: T = _kept[key]
    return value


def forget() -> None:
    """Keep nothing: something else needs the memory, or there is nothing to do."""
    _kept.clear()
    allocator.give_back()
