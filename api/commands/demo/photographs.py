"""The demo's data set: patches of photographs that wheels carry, one class a photograph.

Training and test patches are cut from disjoint bands of rows, so that no pixel is in both. Every
photograph ships inside scikit-image's or scikit-learn's wheel; nothing is downloaded.

Patches have one mean colour: a dark rocket and a green flower are told apart by theirs alone, which
no change of a few levels hides. What is left to learn is texture and shape, as in data that anybody
would protect.
"""

import io
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "flower.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

SIDE = 32
BAND = 48  # rows; one band in four is cut for the test split
MIN_CONTRAST = 6.0  # grey levels of standard deviation; below it a patch is sky, not photograph

MIDDLE = 128


def write_zip(path: Path, per_class: int, test_per_class: int) -> list[str]:
    """Write `train/CLASS/00001.png` and `test/CLASS/00001.png`, stored; the same bytes every time.

    Args:
        path: of the archive.
        per_class, test_per_class: patches of every photograph, at least 1.

    Returns:
        The class names, sorted.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in PHOTOGRAPHS:
            photograph = _read(name)
            for split, count in (("train", per_class), ("test", test_per_class)):
                for number, patch in enumerate(patches(photograph, split, count), start=1):
                    member = zipfile.ZipInfo(f"{split}/{_class(name)}/{number:05}.png")
                    archive.writestr(member, _png(_evened(patch)))
    return sorted(map(_class, PHOTOGRAPHS))


def _class(name: str) -> str:
    return Path(name).stem


def _read(name: str) -> Pixels:
    """The photograph, RGB, height x width x 3."""
    folders = (files("skimage") / "data", files("sklearn") / "datasets" / "images")
    path = next(folder / name for folder in folders if (folder / name).is_file())
    with path.open("rb") as stream, Image.open(stream) as image:
        return np.asarray(image.convert("RGB"))


def patches(photograph: Pixels, split: str, count: int) -> Iterator[Pixels]:
    """`count` patches at random places of the split's bands that have texture."""
    height, width, _ = photograph.shape
    in_test = np.arange(height) // BAND % 4 == 1
    wanted = in_test if split == "test" else ~in_test
    tops = [top for top in range(height - SIDE + 1) if wanted[top : top + SIDE].all()]
    draws = np.random.default_rng([height, width, split == "test"])
    while count:
        top, left = draws.choice(tops), draws.integers(width - SIDE + 1)
        patch = photograph[top : top + SIDE, left : left + SIDE]
        if patch.mean(2).std() >= MIN_CONTRAST:
            count -= 1
            yield patch


def _evened(patch: Pixels) -> Pixels:
    """Every channel shifted to the mean MIDDLE, and clipped."""
    shifted = patch - patch.mean((0, 1)) + MIDDLE
    evened: Pixels = shifted.round().clip(0, 255).astype(np.uint8)
    return evened


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
