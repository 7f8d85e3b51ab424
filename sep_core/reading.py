"""Pixels on their way to the device: kept there where they fit, else read ahead by threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

RESIDENT_SHARE = 0.5
"""Of a device's memory that pixels may take, training and test part together."""
READ_THREADS = 4
"""Batches that are read ahead, each by a thread, so that a disk has several requests to serve."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def place(
    parts: Sequence[UInt8[Tensor, "_ 3 s s"]], device: str, sharing: int = 1
) -> list[UInt8[Tensor, "_ 3 s s"]]:
    """Each part on `device` if it fits `RESIDENT_SHARE` of its memory beside those before it.

    The others stay where they are, perhaps mapped from a file that is larger than memory: `batches`
    reads them ahead. What is computed is the same.

    Args:
        sharing: processes that do so on the same device, this one included.
    """
    if device == "cpu":
        return list(parts)
    _, memory_bytes = torch.cuda.mem_get_info()
    room, placed = RESIDENT_SHARE * memory_bytes / sharing, []
    for pixels in parts:
        fits = pixels.nbytes <= room
        room -= pixels.nbytes if fits else 0
        placed.append(pixels.to(device) if fits else pixels)
    return placed


def batches(
    pixels: UInt8[Tensor, "n 3 s s"], chosen: Iterable[Int64[Tensor, " _"]], device: str
) -> Generator[UInt8[Tensor, "b 3 s s"], None, None]:
    """The pixels of each of `chosen` (indices, on the CPU), on `device`, in that order.

    All but what is resident on an accelerator is read ahead by threads, which end when the
    generator is closed: pixels on the CPU may be mapped from a file, and a tensor does not tell.
    """
    if device == "cpu":
        yield from read_ahead(partial(_rows, pixels), chosen, READ_THREADS)
    elif pixels.device.type != device:
        yield from _copied(pixels, chosen, device)
    else:
        for indices in chosen:
            yield pixels[indices.to(device, non_blocking=True)]


def _copied(
    pixels: UInt8[Tensor, "n 3 s s"], chosen: Iterable[Int64[Tensor, " _"]], device: str
) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
    """Through pinned memory and on a stream of their own, beside what is being computed."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own

    def read(indices: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        taken = _rows(pixels, indices, pinned=True)
        with torch.cuda.stream(stream):
            return taken.to(device, non_blocking=True), stream.record_event()

    for batch, copied in read_ahead(read, chosen, READ_THREADS):
        computing = torch.cuda.current_stream()
        computing.wait_event(copied)
        # Its memory belongs to the copying stream, which else might use it again too early.
        batch.record_stream(computing)
        yield batch


def _rows(
    pixels: UInt8[Tensor, "n 3 s s"], indices: Int64[Tensor, " b"], *, pinned: bool = False
) -> UInt8[Tensor, "b 3 s s"]:
    # By NumPy, which stays in this thread: torch would start a team of threads in every reader,
    # and the network would wait for its own.
    taken = torch.from_numpy(np.take(pixels.numpy(), indices.numpy(), axis=0, mode="clip"))
    return taken.pin_memory() if pinned else taken


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], threads: int = 1
) -> Generator[Read, None, None]:
    """`read` of each item in order; as many as there are threads are read while one is used.

    With one thread `read` is never called twice at a time. What `read` raises comes where its
    result would; then, and when the generator is closed, nothing further is begun and the threads
    have ended.
    """
    following: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(threads, "read ahead") as pool:
        try:
            for item in items:
                following.append(pool.submit(read, item))
                if len(following) > threads:
                    yield following.popleft().result()
            while following:
                yield following.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
