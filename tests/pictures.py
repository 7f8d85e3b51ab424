"""Small data sets with something to learn in them, made for the tests."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def image(label: int, number: int, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    """(h, w, 3): noise in which the class has a colour of its own."""
    draws = np.random.default_rng([label, number])
    pixels = draws.integers(0, 160, (*size, 3))
    pixels[:, :, label] += 90
    return pixels.astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], form: str = "PNG", **options: object) -> bytes:
    """Pixels as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def class_folders(
    per_class: int, test_per_class: int = 0, size: tuple[int, int] = (32, 32)
) -> dict[str, bytes]:
    """Names and contents of a data set of three classes."""
    files = {}
    for split, count in (("train", per_class), ("test", test_per_class)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                pixels = image(label, number + 10_000 * (split == "test"), size)
                files[f"{split}/{name}/{number:04d}.png"] = encoded(pixels)
    return files


def zipped(files: Mapping[str, bytes]) -> bytes:
    """An uploadable archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()
