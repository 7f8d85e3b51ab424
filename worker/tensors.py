"""From decoded pixels to the tensors that sep_core takes. The only bridge, and it needs PyTorch."""

import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from api import archive
from api.archive import ImageRecord, IngestResult, Pixels
from api.plans.workload import sizes_bytes
from sep_core.costs import held_out_images
from sep_core.evaluation import held_out
from sep_core.pixels import to_images, to_input, to_pixels
from sep_core.reading import read_ahead
from worker import alive
from worker.data import Reader

MAPPED_BYTES = 2**22
"""Pixels that take more are mapped from a file, so that a data set may be larger than memory."""


@dataclass(frozen=True, eq=False)
class Part(Sequence[ImageRecord]):
    """Some of a data set's records, in their order, of which only the indices are held."""

    records: Sequence[ImageRecord]
    indices: archive.Numbers

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        if isinstance(index, slice):
            return [self.records[at] for at in self.indices[index].tolist()]
        return self.records[int(self.indices[index])]

    def sizes(self) -> archive.Numbers:
        """See `archive.sizes`."""
        return archive.sizes(self.records)[self.indices]

    def words(self, field: archive.Field) -> tuple[Sequence[str], archive.Numbers]:
        """See `archive.words`."""
        known, numbers = archive.words(self.records, field)
        return known, numbers[self.indices]

    def sha256(self) -> str:
        """Of which records they are."""
        return hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()

    def pixel_digests(self) -> archive.Numbers:
        """See `archive.pixel_digests`."""
        return archive.pixel_digests(self.records)[self.indices]


class Split(NamedTuple):
    """How a data set is divided.

    Attributes:
        train: what networks are trained on.
        held_out: what they are judged by; at least one image.
        copies: how many had the pixels of a training image: they are left out of `held_out`,
            unless all are (`seen`).
    """

    train: Part
    held_out: Part
    copies: int
    seen: bool


def split(index: IngestResult, percent: int, digest: str) -> Split:
    """Training part and held-out part: the upload's `test/` or else `val/`, else a share set aside.

    Neither surrogate nor class means nor appropriator ever sees the held-out part. `percent` of
    each class is drawn from the upload's `digest`: the same for every protection of a data set, so
    that they have their baselines in common.
    """
    names, numbers = archive.words(index.records, "split")
    number = {name: at for at, name in enumerate(names)}
    train, val, test = (
        Part(index.records, np.flatnonzero(numbers == number.get(name)))
        for name in ("train", "val", "test")
    )
    if test or val:
        return _apart(train, test or val)
    aside = _drawn(train, labels(train, index), percent, digest)
    left, drawn = (Part(index.records, train.indices[which]) for which in (~aside, aside))
    return _apart(left, drawn)


def _drawn(train: Part, labels: Tensor, percent: int, digest: str) -> npt.NDArray[np.bool_]:
    """Which are set aside: of equal images all or none.

    None of which there are more than a class is to set aside at all: a picture that stands for many
    that are missing, say, would be what everything is judged by.
    """
    pixels, known = train.pixel_digests(), labels.numpy()
    _, first, times = np.unique(pixels, return_index=True, return_counts=True)
    wanted = [held_out_images(int(count), percent) for count in np.bincount(known)]
    first = np.sort(first[times <= np.maximum(1, np.array(wanted)[known[first]])])
    drawn = first[held_out(labels[first], percent, digest).numpy()]
    if not len(drawn):
        return held_out(labels, percent, digest).numpy()
    aside = np.isin(pixels, pixels[drawn])
    emptied = np.setdiff1d(known, known[~aside])
    return aside & ~np.isin(known, emptied)


def _apart(train: Part, held_out: Part) -> Split:
    """Who has learned an image by heart knows its copy."""
    known = np.isin(held_out.pixel_digests(), train.pixel_digests())
    copies, seen = int(known.sum()), bool(known.all())
    unknown = Part(held_out.records, held_out.indices[~known])
    return Split(train, held_out if seen else unknown, copies, seen)


def labels(records: Sequence[ImageRecord], index: IngestResult) -> Tensor:
    """(n,) int64."""
    names, numbers = archive.words(records, "class_name")
    label = {name: at for at, name in enumerate(index.classes)}
    return torch.from_numpy(np.array([label[name] for name in names], np.int64)[numbers])


def at_input_size(
    reader: Reader, records: Sequence[ImageRecord], side: int
) -> Generator[Tensor, None, None]:
    """Each image at the size that networks see, (3, s, s) uint8, in the order of the records.

    As many threads as PyTorch has decode them, but fewer where the images are large. Until the
    generator ends PyTorch has one: to share a single image is slower than to take turns.
    """

    def read(group: range) -> list[Tensor]:
        images = (to_images(tensor([reader.pixels(records[index])])) for index in group)
        return [to_pixels(to_input(image, side).contiguous())[0] for image in images]

    largest = int(sizes_bytes(records).max(initial=1))
    threads, groups = alive.groups(len(records), largest, torch.get_num_threads())
    with _one_thread(), warnings.catch_warnings():
        # `read_pixels` silences Pillow in the whole process and puts back what it found: threads
        # that do so in any order leave it silenced, until here.
        warnings.simplefilter("ignore")
        with closing(read_ahead(alive.about_this(read), groups, threads)) as decoded:
            for images in decoded:
                yield from images


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, in threads that are begun meanwhile, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def room(shape: Sequence[int]) -> Tensor:
    """uint8, not filled: in memory, or above MAPPED_BYTES in a file of the temporary folder.

    The file has no name and goes with the tensor. Its blocks are taken at once: a disk
    that is full is an error here, and not the end of the process where a page is written.
    """
    size = math.prod(shape)
    if size <= MAPPED_BYTES:
        return torch.empty(*shape, dtype=torch.uint8)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)
        path = f"/proc/self/fd/{file.fileno()}"
        mapped = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    return mapped.view(*shape)


def tensor(pixels: Sequence[Pixels]) -> Tensor:
    """Images of like shape, (h, w, c) each, to (b, c, h, w) uint8.

    By NumPy, which stays in this thread: torch would start a team of threads in every one that
    reads ahead, and those that compute would no longer have the processor to themselves.
    """
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def parts(pixels: Sequence[Pixels]) -> list[Tensor]:
    """Images of any shapes, (h, w, c) each: neighbours of like shape as one (b, c, h, w) uint8."""
    return [tensor(list(alike)) for _, alike in groupby(pixels, key=np.shape)]


def arrays(batch: Tensor) -> Sequence[Pixels]:
    """The way back: (b, c, h, w) uint8 to (h, w, c) each."""
    return list(batch.permute(0, 2, 3, 1).contiguous().numpy())
