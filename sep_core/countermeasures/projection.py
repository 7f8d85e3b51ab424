"""Orthogonal projection (Sandoval-Segura et al. 2023): what tells classes apart by lines goes.

A change common to the images of a class is linearly separable. A linear model that is trained on
the released images finds it before anything else; its weights span the directions that are removed
from every image, before a network sees it.
"""

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from sep_core.config import Plan, SEPConfig
from sep_core.pixels import to_images, to_pixels
from sep_core.training import Epoch, Progress, Recipe, fit

EPOCHS = 20
RECIPE = Recipe("linear", EPOCHS, "projection")


def directions(
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    config: SEPConfig,
    plan: Plan,
) -> Iterator[Progress | Float32[Tensor, "d y"]]:
    """Yields progress, and at last an orthonormal basis of a linear model's weights; d is 3 s s.

    Args:
        pixels, labels: what was released, at input size; trained on without augmentation.
    """
    events = fit(pixels, labels, classes, RECIPE, config=config, plan=plan, countermeasure="none")
    for event in events:
        match event:
            case Progress():
                yield event
            case Epoch(network=network):
                last = network
    std = cast(Tensor, last.std).expand(1, *pixels.shape[1:]).flatten().cpu()
    weights = last.head.weight.detach().float().cpu() / std
    basis: Tensor = torch.linalg.qr(weights.T).Q
    yield basis


def remove(
    basis: Float32[Tensor, "d y"], pixels: UInt8[Tensor, "n 3 s s"]
) -> UInt8[Tensor, "n 3 s s"]:
    """Pixels without their part in the basis, clipped and rounded."""
    images = to_images(pixels).flatten(1)
    return to_pixels((images - images @ basis @ basis.T).view(pixels.shape))
