"""Rows in a file of the temporary folder: a process holds none, however many there are."""

import tempfile
from typing import IO, Any

import numpy as np
import numpy.typing as npt


class Rows:
    """Takes values of one kind into a file that has no name; the system holds what it has room for.

    Whoever has taken `array` has what was there then: `close` doesn't take it away.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  `close` closes it

    def __len__(self) -> int:
        return self._file.tell() // self.dtype.itemsize

    def append(self, values: object) -> None:
        """The next row, or several in an array."""
        self._file.write(np.asarray(values, self.dtype).tobytes())

    def array(self) -> npt.NDArray[Any]:
        """All that were taken so far: (n), read-only."""
        return mapped(self._file, self.dtype, 0, len(self))

    def close(self) -> None:
        """Take no more."""
        self._file.close()


def mapped(file: IO[bytes], dtype: np.dtype[Any], offset: int, number: int) -> npt.NDArray[Any]:
    """(number) of a file; read-only, and there for as long as the array is."""
    file.flush()
    if not number:  # of which the system makes no map
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r", offset, (number,)))
