"""What a network says of many images."""

import math
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from sep_core.arithmetic import autocast
from sep_core.config import Plan
from sep_core.pixels import to_images
from sep_core.reading import batches

INFERENCE_BATCH, INFERENCE_PIXELS = 256, 64 * 224**2
"""Images of a batch, and pixels: so few that two cores take a ResNet-18 through one in 5 s."""


def infer(
    function: Callable[[Tensor], Tensor], pixels: UInt8[Tensor, "n 3 s s"], plan: Plan
) -> Iterator[Float32[Tensor, "b d"]]:
    """`function` of every image, without gradients, a batch at a time in the images' order."""
    number = inference_batches(len(pixels), pixels.shape[-1])
    chosen = torch.arange(len(pixels)).tensor_split(number)
    with closing(batches(pixels, chosen, plan.device)) as read:
        for batch in read:
            with torch.no_grad(), autocast(plan):
                outputs = function(to_images(batch))
            yield outputs.float()


def inference_batches(images: int, side: int) -> int:
    """How many batches `infer` yields of images of this side."""
    return math.ceil(images / max(1, min(INFERENCE_BATCH, INFERENCE_PIXELS // side**2)))
