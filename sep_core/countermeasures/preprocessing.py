"""Countermeasures that change pixels before a network sees them.

They are deterministic, and who applies them to the training images applies them to whatever the
network is to recognise later: test images go through the same, so that there is no shift between
the two. They act at the network's input size, and always on the CPU: the same bytes everywhere.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from sep_core.config import Countermeasure
from sep_core.pixels import to_images, to_input, to_pixels

Pixels = UInt8[Tensor, "n 3 s s"]


def grey(pixels: UInt8[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n 3 s s"]:
    """Luma (ITU-R 601) in all three channels."""
    return to_pixels(transforms.rgb_to_grayscale(to_images(pixels), num_output_channels=3))


def reduce_depth(pixels: UInt8[Tensor, "n 3 s s"], bits: int = 2) -> UInt8[Tensor, "n 3 s s"]:
    """Every value to the nearest of 2^bits, 0 and 255 among them (Xu et al. 2018, section 3).

    Two bits, values 85 levels apart: the coarser of the usual two and three, which loses the most
    of a change of a few levels.
    """
    steps = 2**bits - 1
    return to_pixels((to_images(pixels) * steps).round() / steps)


def jpeg(pixels: UInt8[Tensor, "n 3 s s"], quality: int) -> UInt8[Tensor, "n 3 s s"]:
    """Through libjpeg and back, chroma at half the resolution; quality from 1 to 100."""
    with warnings.catch_warnings():
        # torchvision means to drop its codecs some day; our range of versions has them.
        warnings.simplefilter("ignore", DeprecationWarning)
        decoded: Tensor = transforms.jpeg(pixels, quality)
    return decoded


def rescale(pixels: UInt8[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n 3 s s"]:
    """Down to half the side and up again, bilinear with antialiasing."""
    side = pixels.shape[-1]
    return to_pixels(to_input(to_input(to_images(pixels), side // 2), side))


def blur(pixels: UInt8[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n 3 s s"]:
    """A Gaussian of sigma side / 32 (one pixel of 32), cut off beyond three sigma, mirrored edges.

    It leaves less than 1 % of the finest pattern. (A published benchmark's sigma of 0.1 is none.)
    """
    side = pixels.shape[-1]
    sigma = side / 32
    width = 2 * math.ceil(3 * sigma) + 1
    # Columns blurred by a product, then rows: at large sides many times as fast as convolving.
    weights = transforms.gaussian_blur(torch.eye(side)[None], [1, width], [sigma, sigma])[0]
    return to_pixels(weights @ to_images(pixels) @ weights.T)


PREPROCESSING: Mapping[Countermeasure, Callable[[Pixels], Pixels]] = MappingProxyType(
    {
        "grey": grey,
        "bit-depth": reduce_depth,
        "jpeg-90": partial(jpeg, quality=90),
        "jpeg-50": partial(jpeg, quality=50),
        "jpeg-10": partial(jpeg, quality=10),
        "rescale": rescale,
        "blur": blur,
    }
)
