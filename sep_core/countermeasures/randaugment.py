"""RandAugment (Cubuk et al. 2020) of a batch: images that draw the same operation go together."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from sep_core.pixels import LEVELS, to_images, to_pixels

OPERATIONS_AN_IMAGE = 2
STRENGTH = 9 / 30
"""N and M as torchvision has them by default."""


def _affine(
    pixels: Tensor, shear: tuple[float, float] = (0, 0), shift: tuple[float, float] = (0, 0)
) -> Tensor:
    """Shear as a slope, shift as a share of the side; what comes in from outside is black."""
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    translate = [int(share * pixels.shape[-1]) for share in shift]
    centre = [0.0, 0.0]
    moved: Tensor = transforms.affine(pixels, 0.0, translate, 1.0, degrees, center=centre)
    return moved


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda pixels, _: pixels,
    "shear-x": lambda pixels, s: _affine(pixels, shear=(0.3 * s, 0)),
    "shear-y": lambda pixels, s: _affine(pixels, shear=(0, 0.3 * s)),
    "translate-x": lambda pixels, s: _affine(pixels, shift=(150 / 331 * s, 0)),
    "translate-y": lambda pixels, s: _affine(pixels, shift=(0, 150 / 331 * s)),
    "rotate": lambda pixels, s: transforms.rotate(pixels, 30 * s),
    "brightness": lambda pixels, s: transforms.adjust_brightness(pixels, 1 + 0.9 * s),
    "colour": lambda pixels, s: transforms.adjust_saturation(pixels, 1 + 0.9 * s),
    "contrast": lambda pixels, s: transforms.adjust_contrast(pixels, 1 + 0.9 * s),
    "sharpness": lambda pixels, s: transforms.adjust_sharpness(pixels, 1 + 0.9 * s),
    "posterize": lambda pixels, s: transforms.posterize(pixels, 8 - round(4 * abs(s))),
    "solarize": lambda pixels, s: transforms.solarize(pixels, LEVELS * (1 - abs(s))),
    "autocontrast": lambda pixels, _: transforms.autocontrast(pixels),
    "equalize": lambda pixels, _: transforms.equalize(pixels),
}
"""Each with its strength in [-1, 1]; where a direction means nothing, its size alone counts."""


def rand_augment(
    images: Float32[Tensor, "b 3 s s"], draws: torch.Generator
) -> Float32[Tensor, "b 3 s s"]:
    """Two operations an image, one after the other, each of uniform kind and direction."""
    pixels = to_pixels(images)
    for _ in range(OPERATIONS_AN_IMAGE):
        pixels = apply(pixels, torch.randint(2 * len(OPERATIONS), (len(pixels),), generator=draws))
    return to_images(pixels)


def apply(pixels: UInt8[Tensor, "b 3 s s"], drawn: Tensor) -> UInt8[Tensor, "b 3 s s"]:
    """Operation number `drawn` // 2 of every image, with negative strength where it is odd."""
    result = torch.empty_like(pixels)
    operations = list(OPERATIONS.values())
    for number in torch.unique(drawn).tolist():
        members = torch.nonzero(drawn == number).flatten().to(pixels.device)
        strength = -STRENGTH if number % 2 else STRENGTH
        result[members] = operations[number // 2](pixels[members], strength)
    return result
