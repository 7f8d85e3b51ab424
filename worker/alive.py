"""Signs of life of a call that gives none itself."""

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import IO, TypeVar

T = TypeVar("T")

SECONDS = 1.0


def computing(call: Callable[[], T]) -> Generator[None, None, T]:
    """The result of a call, made in a thread; yields every second until it is there.

    The call must be sure to end: one that waits for something outside could hang unseen.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call)
        while not wait([running], SECONDS).done:
            yield
        return running.result()


def reading(call: Callable[[], T], file: IO[bytes]) -> Generator[None, None, T]:
    """The same of a call that reads a real file: yields only when it has got on with that.

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
