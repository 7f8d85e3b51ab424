"""How much an image changed, measured on decoded pixels."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from api.archive import Pixels


@dataclass(frozen=True)
class Change:
    """Of one image.

    Attributes:
        largest_levels: the L-infinity distance in grey levels, 0 to 255.
        changed_share: of the values, in [0, 1].
        squared_error: mean over the values, in squared levels.
        ssim: structural similarity (Wang et al. 2004), at most 1.
    """

    largest_levels: int
    changed_share: float
    squared_error: float
    ssim: float


def compare(original: Pixels, released: Pixels) -> Change:
    """Change between two images (h, w, c) of like shape, sides of at least 7."""
    difference = _difference(original, released)
    ssim = structural_similarity(  # type: ignore[no-untyped-call]  # the library has no types
        original, released, channel_axis=2, data_range=255
    )
    return Change(
        int(difference.max()),
        float((difference > 0).mean()),
        float((difference.astype(np.float64) ** 2).mean()),
        float(ssim),
    )


def largest(original: Pixels, released: Pixels) -> int:
    """The L-infinity distance in grey levels."""
    return int(_difference(original, released).max())


def _difference(original: Pixels, released: Pixels) -> NDArray[np.int16]:
    return np.abs(released.astype(np.int16) - original.astype(np.int16))


def summarise(changes: list[Change]) -> dict[str, float | None]:
    """Of a data set: the worst, means, and the fifth percentile of SSIM. PSNR in decibels."""
    ssim = np.array([change.ssim for change in changes])
    error = float(np.mean([change.squared_error for change in changes]))
    return {
        "largest_change_levels": max(change.largest_levels for change in changes),
        "unchanged_images": sum(change.largest_levels == 0 for change in changes),
        "changed_share": round(float(np.mean([c.changed_share for c in changes])), 6),
        "ssim_mean": round(float(ssim.mean()), 6),
        "ssim_p5": round(float(np.percentile(ssim, 5)), 6),
        "psnr_db": round(10 * math.log10(255**2 / error), 3) if error else None,
    }
