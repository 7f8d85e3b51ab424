"""What a checkpoint is shown of an image that is being perturbed (`SEPConfig.views`).

A network is never trained on the image as it is stored, but on random crops of it. Gradients taken
through the same crops (expectation over transformation; Athalye et al. 2018) move the image where
all of them agree. One view serves a whole batch, so that no image depends on its neighbours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from sep_core.config import SEPConfig, drawn_seed
from sep_core.randomness import generator


@dataclass(frozen=True)
class View:
    """A crop of the zero-padded image, and whether it is mirrored."""

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
    return View(top, left, mirrored)


def show(
    images: Float32[Tensor, "b c s s"], view: View | None, padding: int
) -> Float32[Tensor, "b c s s"]:
    """The images as `view` has them, differentiably."""
    if view is None:
        return images
    side = images.shape[-1]
    padded = functional.pad(images, [padding] * 4)
    crop = padded[..., view.top : view.top + side, view.left : view.left + side]
    return crop.flip(-1) if view.mirrored else crop
