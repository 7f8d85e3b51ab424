"""Pixels to images and back, the projection on the budget, what a network sees: nowhere else."""

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
    return resize(images, side).expand(-1, 3, -1, -1)


def resize(images: Float32[Tensor, "b c h w"], side: int) -> Float32[Tensor, "b c s s"]:
    """R x C^T: torch's antialiased bilinear resize, as two matrix products.

    The gradient of `interpolate` is summed in any order on a GPU, and protections there would not
    repeat.
    """
    height, width = images.shape[-2:]
    if (height, width) == (side, side):
        return images
    rows, columns = _weights(height, side), _weights(width, side)
    return rows.to(images.device) @ images @ columns.T.to(images.device)


def pull_back(
    gradients: Float32[Tensor, "b c s s"], height: int, width: int
) -> Float32[Tensor, "b c h w"]:
    """R^T g C: gradients at the images that `resize` was given, from those at what it made.

    It is linear, as `resize` is: sums may be taken, and kept, at input size.
    """
    side = gradients.shape[-1]
    if (height, width) == (side, side):
        return gradients
    rows, columns = _weights(height, side), _weights(width, side)
    return rows.T.to(gradients.device) @ (gradients @ columns.to(gradients.device))


def _weights(length: int, side: int) -> Float32[Tensor, "side length"]:
    """Of every pixel along one dimension in every pixel after the resize: a triangle's share.

    The triangle is as wide as two pixels of whichever grid is coarser.
    """
    scale = length / side
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(length, dtype=torch.float64) + 0.5 - centres[:, None]).abs()
    triangle = (1 - distance / max(scale, 1)).clamp(min=0)
    return (triangle / triangle.sum(1, keepdim=True)).float()
