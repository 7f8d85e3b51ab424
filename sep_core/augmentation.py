"""Random crops and mirror images, of a whole batch at once."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from sep_core.config import SEPConfig


def augment(
    images: Float32[Tensor, "b 3 s s"], crops: Int64[Tensor, "b 3"], padding: int
) -> Float32[Tensor, "b 3 s s"]:
    """Zero-pad, crop at (top, left) and mirror where the third is 1: one gather, no loop."""
    side = images.shape[-1]
    padded = functional.pad(images, [padding] * 4)
    steps, crops = torch.arange(side, device=images.device), crops.to(images.device)
    rows = crops[:, :1] + steps
    columns = crops[:, 1:2] + torch.where(crops[:, 2:] == 1, side - 1 - steps, steps)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def draw_crops(images: int, config: SEPConfig, draws: torch.Generator) -> Int64[Tensor, "n 3"]:
    """Of each image the crop's top and left corner, and whether it is mirrored; see `augment`."""
    corners = torch.randint(0, 2 * config.crop_padding + 1, (images, 2), generator=draws)
    mirrored = torch.randint(0, 2, (images, 1), generator=draws) * int(config.flip)
    return torch.cat([corners, mirrored], dim=1)
