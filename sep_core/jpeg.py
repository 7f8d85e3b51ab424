"""JPEG as a differentiable function: what its compression leaves of an image.

Baseline JPEG (ITU-T T.81) as libjpeg does it by default: YCbCr, chroma halved both ways, an 8 x 8
DCT, the tables of annex K scaled by the quality. Rounding passes gradients as if it were not there
(straight through; Bengio et al. 2013); entropy coding is lossless and left out.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from sep_core.pixels import LEVELS

BLOCK = 8
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF 1.02, page 3; the inverse is computed.
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

Image = Float32[Tensor, "b 3 h w"]


def compress(images: Image, quality: int) -> Image:
    """Images in [0, 1] as they come back from a JPEG of this quality.

    Args:
        images: three channels.
        quality: 1 to 100, as libjpeg counts.
    """
    height, width = images.shape[-2:]
    # Whole blocks of halved chroma; libjpeg repeats the last row and column too.
    padding = [0, -width % (2 * BLOCK), 0, -height % (2 * BLOCK)]
    known = _constants(quality, str(images.device))
    padded = functional.pad(images * LEVELS, padding, mode="replicate")
    colours = _mix(padded, known.to_ycbcr)
    luma = _quantised(colours[:, :1] - 128, known.luminance, known.dct) + 128
    halved = functional.avg_pool2d(colours[:, 1:], 2)
    chroma = _quantised(halved, known.chrominance, known.dct)
    whole = torch.cat([luma, _doubled(chroma)], dim=1)
    decoded = _mix(whole, known.from_ycbcr)[..., :height, :width]
    return (decoded / LEVELS).clamp(0, 1)


class _Constants(NamedTuple):
    to_ycbcr: Float32[Tensor, "3 3"]
    from_ycbcr: Float32[Tensor, "3 3"]
    luminance: Float32[Tensor, "8 8"]
    chrominance: Float32[Tensor, "8 8"]
    dct: Float32[Tensor, "8 8"]


@lru_cache
def _constants(quality: int, device: str) -> _Constants:
    """Kept where they are used: the device would wait for them in every pass."""
    to_ycbcr = torch.tensor(TO_YCBCR)
    return _Constants(
        to_ycbcr.to(device),
        torch.linalg.inv(to_ycbcr).to(device),
        _table(LUMINANCE, quality).to(device),
        _table(CHROMINANCE, quality).to(device),
        _dct().to(device),
    )


def _mix(images: Image, matrix: Float32[Tensor, "3 3"]) -> Image:
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def _quantised(
    planes: Float32[Tensor, "b c h w"],
    table: Float32[Tensor, "8 8"],
    basis: Float32[Tensor, "8 8"],
) -> Float32[Tensor, "b c h w"]:
    *outer, height, width = planes.shape
    grid = planes.reshape(*outer, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = grid.transpose(-2, -3)
    steps = basis @ blocks @ basis.T / table
    steps = steps + (steps.round() - steps).detach()
    blocks = basis.T @ (steps * table) @ basis
    return blocks.transpose(-2, -3).reshape(planes.shape)


def _dct() -> Float32[Tensor, "8 8"]:
    """The orthonormal DCT-II as a matrix (T.81, A.3.3)."""
    k, x = torch.meshgrid(*[torch.arange(BLOCK, dtype=torch.float64)] * 2, indexing="ij")
    basis = torch.cos((2 * x + 1) * k * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.float()


def _table(base: tuple[tuple[int, ...], ...], quality: int) -> Float32[Tensor, "8 8"]:
    """libjpeg's jpeg_set_quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255).float()


def _doubled(chroma: Float32[Tensor, "b 2 h w"]) -> Float32[Tensor, "b 2 hh ww"]:
    """Twice the size, three parts of the nearer sample to one of the farther, as libjpeg does."""
    return _doubled_rows(_doubled_rows(chroma).mT).mT


def _doubled_rows(planes: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b c hh w"]:
    before = torch.cat([planes[:, :, :1], planes[:, :, :-1]], dim=2)
    after = torch.cat([planes[:, :, 1:], planes[:, :, -1:]], dim=2)
    both = torch.stack([3 * planes + before, 3 * planes + after], dim=3) / 4
    return both.flatten(2, 3)
