"""Rows in a file of the temporary folder: of any number of them a process needs no memory."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt


class Rows:
    """Takes values of one kind, into a file that has no name."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  `close` closes it

    def __len__(self) -> int:
        return self._file.tell() // self._dtype.itemsize

    def append(self, row: object) -> None:
        """The next one: a number, or where a row has fields a tuple of them."""
        self.extend([row])

    def extend(self, rows: Sequence[object] | npt.NDArray[Any]) -> None:
        """The next ones."""
        self._file.write(np.asarray(rows, self._dtype).tobytes())

    def array(self) -> npt.NDArray[Any]:
        """(n): all that were taken so far. Read-only, mapped, and there when this is closed."""
        return mapped(self._file, self._dtype, 0, len(self))

    def close(self) -> None:
        """Take no more."""
        with suppress(OSError):  # a full disk: nobody misses what is not flushed now
            self._file.close()


def mapped(file: IO[bytes], dtype: np.dtype[Any], offset: int, number: int) -> npt.NDArray[Any]:
    """(number) of a file; read-only, and there for as long as the array is."""
    file.flush()
    if not number:  # of which the system makes no map
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r", offset, (number,)))
