"""Pixels on their way to the device: kept there where they fit, else read ahead by a thread."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

RESIDENT_SHARE = 0.5
"""Of a device's memory that training pixels may take for the length of a training."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def place(pixels: UInt8[Tensor, "n 3 s s"], device: str) -> UInt8[Tensor, "n 3 s s"]:
    """The pixels on `device` if they fit `RESIDENT_SHARE` of its memory, else where they are.

    They may be mapped from a file that is larger than memory. What is computed is the same.
    """
    if device == "cpu":
        return pixels
    _, memory_bytes = torch.cuda.mem_get_info()
    return pixels.to(device) if pixels.nbytes <= RESIDENT_SHARE * memory_bytes else pixels


def batches(
    pixels: UInt8[Tensor, "n 3 s s"], chosen: Iterable[Tensor], device: str
) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
    """The pixels of each of `chosen` (indices), on `device`."""

    def read(indices: Tensor) -> Tensor:
        return pixels[indices.to(pixels.device)].to(device)

    if pixels.device.type == device:
        return map(read, chosen)
    return read_ahead(read, chosen)


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """`read` of each item in order; the next is read by a thread while this one is used.

    One thread, so that `read` is never called twice at a time.
    """
    with ThreadPoolExecutor(1, "read ahead") as thread:
        following: Future[Read] | None = None
        for item in items:
            current, following = following, thread.submit(read, item)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()
