"""Pixels at the networks' input size, decoded once for a protection and used by all its steps.

They lie among the protection's blobs and go with its shards: whatever removes those, at its end or
with the data set, removes them. A blob appears whole, and says in its name what it
depends on, so that steps on several workers may look, decode and store at once.
"""

import math
import mmap
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from api import digests, storage
from worker import alive, tensors
from worker.data import Job, Reader, decoded_key, open_released, open_source
from worker.lease import store
from worker.tensors import Part

FORMAT = 2
"""Of the blobs: pixels of (n, 3, s, s), raw. Another way to decode is another format."""
READ_BYTES = 2**26
"""Of a mapped blob between two signs of life."""

Signs = Generator[tuple[int, int], None, Tensor]
"""Yields (0, 0), signs of life, since a step's own work comes afterwards; returns the pixels."""


def prepare_originals(job: Job, part: Part) -> Generator[tuple[int, int], None, None]:
    """Have them lie there for others."""
    yield from _prepared(job, "originals", part, open_source(job.dataset_id))


def originals(job: Job, part: Part) -> Signs:
    """Uploaded images at the size that networks see: (n, 3, s, s) uint8, perhaps mapped."""
    return _pixels(job, "originals", part, open_source(job.dataset_id))


def released(job: Job, part: Part) -> Signs:
    """The same of the images in the finished archive: what leaves the house."""
    return _pixels(job, "released", part, open_released(job.protection_id))


def _pixels(job: Job, source: str, part: Part, opened: AbstractContextManager[Reader]) -> Signs:
    key = yield from _prepared(job, source, part, opened)
    return (yield from _load(key, _shape(job, part)))


def _prepared(
    job: Job, source: str, part: Part, opened: AbstractContextManager[Reader]
) -> Generator[tuple[int, int], None, str]:
    side = job.config.input_pixels
    key = decoded_key(job.protection_id, source, _digest(part, side))
    if not _is_whole(key, _shape(job, part)):
        yield from _decode(job, key, opened, part)
    return key


def _shape(job: Job, part: Part) -> tuple[int, int, int, int]:
    return len(part), 3, job.config.input_pixels, job.config.input_pixels


def _is_whole(key: str, shape: Sequence[int]) -> bool:
    """Before blobs were flushed first, a machine that lost power could leave one too short."""
    return storage.size_if_there(key) == math.prod(shape)


def _digest(part: Part, side: int) -> str:
    """Of all that pixels depend on beside data, configuration and plan, which do not change."""
    return digests.of({"format": FORMAT, "side": side, "part": part.sha256()})


def _decode(
    job: Job, key: str, opened: AbstractContextManager[Reader], part: Part
) -> Generator[tuple[int, int], None, None]:
    """By way of a temporary file without a name, which nothing that ends this process leaves."""
    with tempfile.TemporaryFile() as file:
        with opened as reader:
            for _ in reader.read_directory():
                yield 0, 0
            side = job.config.input_pixels
            with closing(tensors.at_input_size(reader, part, side)) as images:
                for image in images:
                    file.write(image.numpy().tobytes())
                    yield 0, 0
        # Steps that began together decode together: what another stored meanwhile may be mapped.
        if _is_whole(key, _shape(job, part)):
            return
        for _ in alive.reading(lambda: store(job.claim, key, file), file):
            yield 0, 0


def _load(key: str, shape: Sequence[int]) -> Signs:
    size, path = math.prod(shape), storage.local_path(key)
    if path is not None and size > tensors.MAPPED_BYTES:
        yield from _read_through(mapped := _mapped(path, size))
        return mapped.view(*shape)
    pixels = tensors.room(shape)
    values, at = pixels.view(-1).numpy(), 0
    for piece in storage.stream(key, 0, size):
        values[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
        yield 0, 0
    return pixels


def _mapped(path: Path, size: int) -> Tensor:
    """Read-only: the blob stays as it is, and the system promises no memory for pages of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.uint8, mode="r", shape=(size,)))


def _read_through(mapped: Tensor) -> Iterator[tuple[int, int]]:
    """Have the pages read, with signs of life: what comes next goes through all of them at once."""
    for piece in torch.split(mapped, READ_BYTES):
        piece[:: mmap.PAGESIZE].max()
        yield 0, 0
