"""The images that benchmarks measure on: a zip of `split/class/file`, or one half of it."""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]  # pixels (n, 3, s, s) uint8 and labels (n) int64

HALVES = ("choose", "judge", "confirm", "twice", "whole")
"""Recipes are chosen on the first half of every class and judged on the second. What comes after
`HALVED` in a larger archive is in neither: there they are judged once more (`confirm`), and after
`CONFIRMED` once more, on what is left (`twice`)."""
HALVED = {"train": 500, "test": 200}
"""Images of a class in the archive that the committed halves are of."""
CONFIRMED = {"train": 750, "test": 300}
"""Images of a class in the archive that the committed `confirm` is of."""


@dataclass(frozen=True, eq=False)
class Data:
    """Training and test images of like size, and their number of classes."""

    train: Split
    test: Split
    classes: int

    @cached_property
    def sha256(self) -> str:
        """What they are known by: of pixels and labels."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def read(path: Path, half: str = "whole") -> Data:
    """One half of the archive, or the whole; tested on `test/` or else `val/`, as in the service.

    Raises:
        ValueError: images of more than one size in a split, or none; to `confirm` and `twice`, none
            that the others leave.
    """
    with zipfile.ZipFile(path) as archive:
        files = [n for n in archive.namelist() if n.count("/") == 2 and not n.endswith("/")]
        test_split = "test/" if any(name.startswith("test/") for name in files) else "val/"
        names = sorted(name for name in files if name.startswith(("train/", test_split)))
        classes = sorted({PurePosixPath(name).parent.name for name in names})
        train, test = (
            _split(archive, [n for n in names if n.startswith(prefix)], classes, half, split)
            for prefix, split in (("train/", "train"), (test_split, "test"))
        )
    return Data(train, test, len(classes))


def _split(
    archive: zipfile.ZipFile, names: Sequence[str], classes: Sequence[str], half: str, split: str
) -> Split:
    chosen: list[str] = []
    for name in classes:
        members = [n for n in names if PurePosixPath(n).parent.name == name]
        middle = len(members) // 2
        chosen += {
            "choose": members[:middle],
            "judge": members[middle:],
            "confirm": members[HALVED[split] : CONFIRMED[split]],
            "twice": members[CONFIRMED[split] :],
            "whole": members,
        }[half]
    if not chosen and (before := {"confirm": HALVED, "twice": CONFIRMED}.get(half)):
        expected = f"data: expected more than {before[split]} images of a class"
        raise ValueError(f"{expected}, got no more")
    decoded = [_decode(archive.read(name)) for name in chosen]
    if len(sizes := {pixels.shape for pixels in decoded}) != 1:
        raise ValueError(
            f"data: expected split/class/file, images of one size, got {sorted(sizes)}"
        )
    labels = [classes.index(PurePosixPath(name).parent.name) for name in chosen]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels)


def _decode(content: bytes) -> np.ndarray:
    from PIL import Image  # noqa: PLC0415  benchmarks.paper runs without, where its data are no zip

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
