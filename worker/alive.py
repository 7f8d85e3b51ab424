"""Signs of life of a call that gives none itself."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import IO, TypeVar

T = TypeVar("T")
Progress = tuple[int, int]
"""Work that is done, and all of it."""
Item = TypeVar("Item")

SECONDS, MOST_SECONDS = 1.0, 60.0
TOGETHER = 16
"""Small images that a thread takes in a row: to hand over each costs as much as to decode it, and
wakes threads on cores on which another process may be computing."""
AT_ONCE_BYTES = 192_000_000
"""Of pixels that threads hold at once: no more than the largest accepted image takes."""


def computing(call: Callable[[], T]) -> Generator[None, None, T]:
    """The result of a call, made in a thread; yields every second until it is there.

    The call must be sure to end: one that waits for something outside could hang unseen.
    """
    with ThreadPoolExecutor(1) as pool:
        # What is logged there is about the same step.
        return (yield from _result(pool.submit(copy_context().run, call)))


def about_this(call: Callable[[Item], T]) -> Callable[[Item], T]:
    """A call for other threads, several at once: what is logged there is about the same step."""
    here = copy_context()
    return lambda item: here.copy().run(call, item)


def groups(
    number: int, bytes_each: int, threads: int, together: int | None = None
) -> tuple[int, Iterator[range]]:
    """How many threads take images 0 to `number - 1`, and which of them each takes in a row.

    Fewer of both where images are large.

    Args:
        bytes_each: that the largest takes while a thread is at it.
        threads: the most.
        together: the most that one takes in a row; `TOGETHER` unless it is told.
    """
    room = AT_ONCE_BYTES // bytes_each
    threads = max(1, min(threads, room))
    together = max(1, min(together or TOGETHER, room // threads))
    return threads, (range(at, min(at + together, number)) for at in range(0, number, together))


def in_order(
    call: Callable[[Item], T], items: Iterable[Item], threads: int
) -> Generator[T | None, None, None]:
    """The result of the call for each item in order, and None as a sign of life in between.

    So many calls are made at once; results that were not taken count among them. What one raises
    comes where its result would; nothing further is begun then, nor when the generator is closed.
    A call that takes longer than MOST_SECONDS gives no more signs: it may hang.
    """
    following: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "in order") as pool:
        try:
            for item in items:
                following.append(pool.submit(copy_context().run, call, item))
                if len(following) >= threads:
                    yield from _signs_and_result(following.popleft())
            while following:
                yield from _signs_and_result(following.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _signs_and_result(running: Future[T]) -> Generator[T | None, None, None]:
    result = yield from _result(running, MOST_SECONDS)
    yield result


def _result(running: Future[T], most_seconds: float = math.inf) -> Generator[None, None, T]:
    until = time.monotonic() + most_seconds
    while not wait([running], SECONDS).done and time.monotonic() < until:
        yield
    return running.result()


def at(progress: Progress, work: Generator[object, None, T]) -> Generator[Progress, None, T]:
    """Signs of life of work that is no progress by itself."""
    try:
        while True:
            next(work)
            yield progress
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()


def reading(call: Callable[[], T], file: IO[bytes]) -> Generator[None, None, T]:
    """The result of a call that reads a real file: yields only when it has got on with that.

    If the generator is closed the file is, too, so that the call ends as well.
    """
    work, at = computing(call), -1
    try:
        while True:
            next(work)
            before, at = at, os.lseek(file.fileno(), 0, os.SEEK_CUR)
            if at != before:
                yield
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        file.close()
        raise
    finally:
        work.close()
