"""Rows on disk: what was taken is there, read-only, for as long as somebody has it."""

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest

from api.archive import Rows

FIELDS = np.dtype([("digest", "V32"), ("levels", "u1")])


class Ended(Exception):
    """What happened while rows were taken."""


def test_what_was_taken_outlives_what_took_it() -> None:
    with closing(Rows(FIELDS)) as rows:
        assert rows.array().tolist() == []
        rows.append((b"a" * 32, 1))
        rows.extend(np.array([(b"b" * 32, 2), (b"c" * 32, 3)], FIELDS))
        before = rows.array()
        rows.append((b"d" * 32, 4))
        after = rows.array()
        assert len(rows) == 4
    assert before["levels"].tolist() == [1, 2, 3]
    assert after["levels"].tolist() == [1, 2, 3, 4]
    assert after[3]["digest"].tobytes() == b"d" * 32
    with pytest.raises(ValueError, match="read-only"):
        after["levels"][0] = 0


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 256), (np.uint32, 2**32), (FIELDS, 1.5)])
def test_what_does_not_fit_is_refused(dtype: np.dtype[np.generic], value: object) -> None:
    with closing(Rows(dtype)) as rows, pytest.raises((OverflowError, TypeError, ValueError)):
        rows.append(value)


def test_many_take_little_memory() -> None:
    with closing(Rows(FIELDS)) as rows:
        tracemalloc.start()
        for number in range(50_000):
            rows.append((b"x" * 32, number % 256))
        assert rows.array()["levels"][49_999] == 49_999 % 256
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 100_000


def test_a_full_disk_is_told_but_hides_nothing_that_happened_before() -> None:
    with _files_of_at_most(8192):
        with pytest.raises(Ended):
            _take(8192 // FIELDS.itemsize + 1)  # the last of which is in no file yet
        with pytest.raises(OSError, match="File too large"):
            _take(1000)


def _take(number: int) -> None:
    with closing(Rows(FIELDS)) as rows:
        for _ in range(number):
            rows.append((b"x" * 32, 0))
        raise Ended


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
