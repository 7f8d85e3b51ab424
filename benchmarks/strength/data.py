"""The images that cells are measured on: a zip of `split/class/file`, or one half of it."""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Split = tuple[Tensor, Tensor]  # pixels (n, 3, s, s) uint8 and labels (n) int64

HALVES = ("choose", "judge", "whole")
"""Recipes are chosen on the first half of every class and judged on the second."""


@dataclass(frozen=True)
class Data:
    """Training and test images of like size, and what they are known by."""

    train: Split
    test: Split
    classes: int
    sha256: str


def read(path: Path, half: str) -> Data:
    """One half of the archive, or the whole.

    Raises:
        ValueError: images of more than one size.
    """
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.count("/") == 2 and not n.endswith("/"))
        classes = sorted({PurePosixPath(name).parent.name for name in names})
        train, test = (
            _split(archive, [name for name in names if name.startswith(split)], classes, half)
            for split in ("train/", "test/")
        )
    digest = hashlib.sha256()
    for tensor in (*train, *test):
        digest.update(tensor.numpy().tobytes())
    return Data(train, test, len(classes), digest.hexdigest())


def _split(archive: zipfile.ZipFile, names: list[str], classes: list[str], half: str) -> Split:
    chosen: list[str] = []
    for name in classes:
        members = [n for n in names if PurePosixPath(n).parent.name == name]
        middle = len(members) // 2
        chosen += {"choose": members[:middle], "judge": members[middle:], "whole": members}[half]
    decoded = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in chosen]
    if len({pixels.shape for pixels in decoded}) != 1:
        raise ValueError(f"expected images of one size, got { ({p.shape for p in decoded}) }")
    labels = [classes.index(PurePosixPath(name).parent.name) for name in chosen]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels)
