"""How much an image changed, measured on decoded pixels, and what that makes of a data set.

An image may have 64 million pixels, so everything goes through strips of rows.
"""

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from api.archive import Pixels
from sep_core.config import MAX_EPSILON_LEVELS

STRIP_PIXELS = 2**18
WINDOW = 7
"""Side of the square over which scikit-image takes SSIM's means and variances."""

SHOWS_BELOW_SSIM = 0.92
MAY_SHOW_BELOW_SSIM = 0.95
"""Half of the viewers of Flynn, Ward, Abich and Poole ("Image Quality Assessment Using the SSIM and
the Just Noticeable Difference Paradigm", HCI International 2013) could not tell a compressed image
from its original at 0.95 on average of six images, and at 0.92 for the two most patient of them."""


@dataclass(frozen=True, slots=True)
class Change:
    """Of one image.

    Attributes:
        histogram: how many values changed by 0, 1, 2 ... grey levels, up to the largest change.
        changed_share: of the pixels, in [0, 1]; one has changed if any of its channels has.
        ssim: structural similarity (Wang et al. 2004), at most 1.
    """

    histogram: tuple[int, ...]
    changed_share: float
    ssim: float

    @property
    def largest_levels(self) -> int:
        """The L-infinity distance in grey levels, 0 to 255."""
        return len(self.histogram) - 1

    @property
    def squared_error(self) -> float:
        """Mean over the values, in squared levels."""
        squares = sum(count * levels**2 for levels, count in enumerate(self.histogram))
        return squares / sum(self.histogram)

    @property
    def psnr_db(self) -> float | None:
        """Peak signal-to-noise ratio in decibels; None without a change."""
        return _psnr_db(self.squared_error)


def compare(original: Pixels, released: Pixels) -> Change:
    """Change between two images (h, w, c) of like shape, sides of at least 7."""
    histogram = np.zeros(256, np.int64)
    changed = 0
    for before, after in _strips(original, released):
        difference = _difference(before, after)
        histogram += np.bincount(difference.ravel(), minlength=256)
        changed += int(np.count_nonzero(difference.any(axis=2)))
    counts = tuple(np.trim_zeros(histogram, "b").tolist())
    height, width, _ = original.shape
    return Change(counts, changed / (height * width), _ssim(original, released))


def summarise(changes: Iterable[Change]) -> dict[str, Any]:
    """Of a data set's protected images: the worst, means over them, the fifth percentile of SSIM.

    PSNR, in decibels, is that of the mean squared error. The histogram is over all values and has
    an entry for each change from 0 to 64 levels, the largest budget there is.
    """
    histogram = np.zeros(256, np.int64)
    similar = array("d")
    unchanged, shares, errors = 0, 0.0, 0.0
    for change in changes:
        histogram[: len(change.histogram)] += change.histogram
        similar.append(change.ssim)
        unchanged += change.largest_levels == 0
        shares += change.changed_share
        errors += change.squared_error
    images, ssim = len(similar), np.frombuffer(similar)
    return {
        "largest_change_levels": int(np.flatnonzero(histogram).max()),
        "unchanged_images": unchanged,
        "changed_share": round(shares / images, 6),
        "ssim_mean": round(float(ssim.mean()), 6),
        "ssim_p5": round(float(np.percentile(ssim, 5)), 6),
        "psnr_db": _psnr_db(errors / images),
        "histogram": histogram[: MAX_EPSILON_LEVELS + 1].tolist(),
        "shows": _below(ssim, SHOWS_BELOW_SSIM),
        "may_show": _below(ssim, MAY_SHOW_BELOW_SSIM),
    }


def _below(ssim: NDArray[np.float64], limit: float) -> dict[str, float]:
    images = int((ssim < limit).sum())
    return {"ssim_below": limit, "images": images, "share": round(images / len(ssim), 6)}


def _psnr_db(squared_error: float) -> float | None:
    return round(10 * math.log10(255**2 / squared_error), 3) if squared_error else None


def _ssim(original: Pixels, released: Pixels) -> float:
    """scikit-image's for the whole image, which takes 120 bytes a pixel if it is taken at once.

    It is the mean over the windows that lie inside the image: that of strips which overlap by all
    rows of a window but one, weighted by the rows of windows in each.
    """
    total = 0.0
    for strips in _strips(original, released, overlap=WINDOW - 1):
        mean = structural_similarity(  # type: ignore[no-untyped-call]  # the library has no types
            *strips, win_size=WINDOW, channel_axis=2, data_range=255
        )
        total += float(mean) * (len(strips[0]) - WINDOW + 1)
    return total / (len(original) - WINDOW + 1)


def _strips(
    original: Pixels, released: Pixels, overlap: int = 0
) -> Iterator[tuple[Pixels, Pixels]]:
    """Strips of rows; each begins with the last `overlap` rows of the one before."""
    height, width, _ = original.shape
    rows = max(STRIP_PIXELS // width, 8 * WINDOW)
    for top in range(0, height - overlap, rows):
        strip = slice(top, top + rows + overlap)
        yield original[strip], released[strip]


def _difference(original: Pixels, released: Pixels) -> Pixels:
    """Absolute, without a wider type."""
    return np.maximum(original, released) - np.minimum(original, released)
