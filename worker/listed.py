"""What is said of every file of an archive, in little memory."""

import json
from collections.abc import Callable, Iterator
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, indent=1, ensure_ascii=False)
"""The one JSON form of everything whose bytes count."""


class Listed(list[Any]):
    """In JSON a list; its items are made one by one, when they are written.

    By the encoder that is in Python: it goes through them, where the one in C would find it empty,
    but makes no indents.
    """

    def __init__(self, number: int, item: Callable[[int], Any]) -> None:
        super().__init__()
        self._number, self._item = number, item

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Any]:
        return map(self._item, range(self._number))


def write_json(value: object, write: Callable[[bytes], object]) -> None:
    """Calls `write` with the bytes of a value, piece by piece."""
    for piece in _ENCODER.iterencode(value):
        write(piece.encode())
