"""What a checkpoint is shown of an image that is being perturbed (`SEPConfig.views`).

A network is never trained on the image as it is stored, but on random crops of it; and whoever
wants to get round a protection compresses, greys or blurs first. Gradients taken through the same
changes (expectation over transformation; Athalye et al. 2018) move the image where all of them
agree. One view serves a whole batch, so that no image depends on its neighbours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from sep_core.config import SEPConfig, drawn_seed
from sep_core.jpeg import compress
from sep_core.pixels import to_input
from sep_core.randomness import generator

Seen = Float32[Tensor, "b c s s"]
"""Images, or what is a sum of their gradients, at the networks' input size."""
PLAIN = "plain"


@dataclass(frozen=True)
class View:
    """The image changed, zero-padded, cropped, and mirrored or not.

    Attributes:
        change: one of `CHANGES`.
        top, left: corner of the crop in the padded image, in pixels.
    """

    change: str
    top: int
    left: int
    mirrored: bool


def draw(config: SEPConfig, step: int, checkpoint: int) -> View | None:
    """The view of one step through one checkpoint; None is the image itself."""
    if config.views == "identity":
        return None
    draws = generator(drawn_seed(config), "view", step, checkpoint)
    top, left = torch.randint(0, 2 * config.crop_padding + 1, (2,), generator=draws).tolist()
    mirrored = config.flip and bool(torch.randint(0, 2, (1,), generator=draws))
    return View(draw_change(config, draws), top, left, mirrored)


def draw_change(config: SEPConfig, draws: torch.Generator) -> str:
    """One of `CHANGES`."""
    if config.views != "hardened":
        return PLAIN
    return HARDENED[int(torch.randint(0, len(HARDENED), (1,), generator=draws))]


def show(images: Seen, view: View | None, padding: int) -> Seen:
    """The images as `view` has them, differentiably."""
    if view is None:
        return images
    side = images.shape[-1]
    padded = functional.pad(CHANGES[view.change](images), [padding] * 4)
    crop = padded[..., view.top : view.top + side, view.left : view.left + side]
    return crop.flip(-1) if view.mirrored else crop


def _halved(images: Seen) -> Seen:
    side = images.shape[-1]
    return to_input(to_input(images, side // 2), side)


def _plain(images: Seen) -> Seen:
    return images


CHANGES: Mapping[str, Callable[[Seen], Seen]] = MappingProxyType(
    {
        PLAIN: _plain,
        "grey": partial(transforms.rgb_to_grayscale, num_output_channels=3),
        "halved": _halved,
        "jpeg-10": partial(compress, quality=10),
        "jpeg-30": partial(compress, quality=30),
        "jpeg-60": partial(compress, quality=60),
    }
)
HARDENED = (PLAIN, *3 * ("grey",), "halved", "jpeg-10", "jpeg-30", "jpeg-60")
"""Drawn with equal chance; grey oftener, or the change is one of colours alone."""
