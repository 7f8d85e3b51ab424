"""What is said of every file of an archive, in little memory."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from api.archive import Rows

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


class Files:
    """Of each file in the archive its digest and its largest change in levels, on disk.

    All are taken before any is asked for.
    """

    def __init__(self) -> None:
        self._rows = Rows([("sha256", "V32"), ("largest_levels", "u1")])

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, digest: bytes, largest_levels: int) -> None:
        """SHA-256 of the next file, and 0 to 255."""
        assert "_all" not in vars(self)
        self._rows.append((digest, largest_levels))

    def sha256(self, index: int) -> str:
        """In hexadecimal digits."""
        digest: bytes = self._all[index]["sha256"].tobytes()
        return digest.hex()

    def largest_levels(self, index: int) -> int:
        """0 to 255."""
        return int(self._all[index]["largest_levels"])

    @cached_property
    def _all(self) -> npt.NDArray[np.void]:
        return self._rows.array()

    def close(self) -> None:
        """Take no more."""
        self._rows.close()
