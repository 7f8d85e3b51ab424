"""The demo's data: the same every time, training and test from disjoint places."""

import io
import zipfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from api.commands.demo.photographs import BAND, MIDDLE, patches, write_zip


def test_same_bytes_every_time_and_counts_as_asked(tmp_path: Path) -> None:
    classes = write_zip(tmp_path / "a.zip", 3, 2)
    write_zip(tmp_path / "b.zip", 3, 2)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert len(classes) == 10
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        first = np.asarray(Image.open(io.BytesIO(archive.read(names[0]))))
    assert len(names) == len(classes) * 5
    assert first.shape == (32, 32, 3)
    assert {name.split("/")[1] for name in names} == set(classes)


def test_no_patch_is_told_by_its_mean_colour(tmp_path: Path) -> None:
    """That would be what networks learn first, and what no change of a few levels hides."""
    write_zip(tmp_path / "a.zip", 5, 5)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        for name in archive.namelist():
            patch = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            assert np.abs(patch.mean((0, 1)) - MIDDLE).max() < 16  # what is clipped is missing
            assert patch.std() > 4


def test_no_test_patch_is_seen_in_training() -> None:
    """Rows of a photograph serve one split only; a patch's rows are found by looking for it."""
    whole = np.asarray(Image.open(Path(skimage.data.__file__).parent / "coffee.png"))
    rows: dict[str, set[int]] = {"train": set(), "test": set()}
    for split, found in rows.items():
        for patch in patches(whole, split, 20):
            top = find(whole, patch)
            found |= {(top + row) // BAND for row in range(32)}
    assert rows["train"]
    assert rows["test"]
    assert not rows["train"] & rows["test"]


def find(whole: np.ndarray, patch: np.ndarray) -> int:
    corners = np.argwhere((whole[:-31, :-31] == patch[0, 0]).all(2))
    return next(
        int(top)
        for top, left in corners
        if (whole[top : top + 32, left : left + 32] == patch).all()
    )
