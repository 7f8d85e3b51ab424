"""Pixels to images and back, the projection on the budget, what a network sees: nowhere else."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

LEVELS = 255


def to_images(pixels: UInt8[Tensor, "b c h w"]) -> Float32[Tensor, "b c h w"]:
    """uint8 pixels to float images in [0, 1]."""
    return pixels.to(torch.float32) / LEVELS


def to_pixels(images: Float32[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Images in [0, 1] to the nearest level. Rounding, not truncation, which breaks the budget."""
    return (images * LEVELS).round().clamp(0, LEVELS).to(torch.uint8)


def project(
    images: Float32[Tensor, "b c h w"],
    originals: Float32[Tensor, "b c h w"],
    epsilon_levels: int,
) -> Float32[Tensor, "b c h w"]:
    """P of the paper: onto the L-infinity ball round the originals, then onto [0, 1]."""
    epsilon = epsilon_levels / LEVELS
    return images.clamp(originals - epsilon, originals + epsilon).clamp(0, 1)


def to_input(images: Float32[Tensor, "b c h w"], side: int) -> Float32[Tensor, "b 3 s s"]:
    """What a network sees: three channels, `side` x `side`, by a differentiable resize."""
    return Resize.of(images, side)(images).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Resize:
    """R x C^T: torch's antialiased bilinear resize of images of one shape, as two matrix products.

    The gradient of `interpolate` is summed in any order on a GPU, and protections there would not
    repeat.

    Attributes:
        height, width: of the images, in pixels.
        side: of the square that a network sees, in pixels.
        device: of the images and of what it makes of them.
    """

    height: int
    width: int
    side: int
    device: torch.device

    @staticmethod
    def of(images: Float32[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"], side: int) -> "Resize":
        """That of images which have this shape."""
        height, width = images.shape[-2:]
        return Resize(height, width, side, images.device)

    def __call__(self, images: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b c s s"]:
        """What a network sees, in the images' own channels."""
        return images if self._is_identity else self._rows @ images @ self._columns.T

    def pull_back(self, gradients: Float32[Tensor, "b c s s"]) -> Float32[Tensor, "b c h w"]:
        """R^T g C: gradients at the images, from those at what was made of them.

        It is linear, as the resize is: sums may be taken, and kept, at input size.
        """
        return gradients if self._is_identity else self._rows.T @ (gradients @ self._columns)

    @property
    def _is_identity(self) -> bool:
        return self.height == self.width == self.side

    # A walk of many steps needs them once, and images of input size never.
    @cached_property
    def _rows(self) -> Float32[Tensor, "side height"]:
        return _weights(self.height, self.side).to(self.device)

    @cached_property
    def _columns(self) -> Float32[Tensor, "side width"]:
        return _weights(self.width, self.side).to(self.device)


def _weights(length: int, side: int) -> Float32[Tensor, "side length"]:
    """Of every pixel along one dimension in every pixel after the resize: a triangle's share.

    The triangle is as wide as two pixels of whichever grid is coarser.
    """
    scale = length / side
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    triangle = (1 - distance / max(scale, 1)).clamp(min=0)
    return (triangle / triangle.sum(1, keepdim=True)).float()
