"""Countermeasures that change every training batch after crop and flip, all images at once."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from sep_core.config import Countermeasure
from sep_core.countermeasures.randaugment import rand_augment

Images = Float32[Tensor, "b 3 s s"]
Shares = Float32[Tensor, "b y"]


def cutout(images: Float32[Tensor, "b 3 s s"], draws: torch.Generator) -> Images:
    """Hide a square of half the side in every image (DeVries and Taylor 2017, section 3.2).

    Centres are uniform over the pixels, so squares reach over the border. They take the batch's
    mean colour, which is what the paper's zero is: it comes after normalisation.
    """
    count, _, side, _ = images.shape
    centres = torch.randint(side, (count, 2, 1), generator=draws)
    distance = torch.arange(side) - centres
    inside = ((distance >= -(side // 4)) & (distance < side // 4)).to(images.device)
    square = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(square[:, None], images.mean((0, 2, 3), keepdim=True), images)


def mixup(
    images: Float32[Tensor, "b 3 s s"], shares: Float32[Tensor, "b y"], draws: torch.Generator
) -> tuple[Images, Shares]:
    """x = l x_i + (1 - l) x_j, y alike; l from Beta(1, 1) for the batch (Zhang et al. 2018)."""
    kept, partners = _draw_mixture(images, draws)
    return _blend(images, partners, kept), _blend(shares, partners, kept)


def cutmix(
    images: Float32[Tensor, "b 3 s s"], shares: Float32[Tensor, "b y"], draws: torch.Generator
) -> tuple[Images, Shares]:
    """A box of x_j in x_i, y by area (Yun et al. 2019, section 3.1), in every batch.

    The box has side sqrt(1 - l) of the image's, l from Beta(1, 1), its centre uniform; what
    reaches over the border is lost, and l is what is left of x_i.
    """
    kept, partners = _draw_mixture(images, draws)
    side = images.shape[-1]
    half = int(side * math.sqrt(1 - kept)) // 2
    row, column = torch.randint(side, (2,), generator=draws).tolist()
    rows = slice(max(row - half, 0), min(row + half, side))
    columns = slice(max(column - half, 0), min(column + half, side))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partners, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, _blend(shares, partners, 1 - area / side**2)


def _draw_mixture(images: Tensor, draws: torch.Generator) -> tuple[float, Tensor]:
    """What each image keeps of itself, uniform in [0, 1), and its partner in the batch."""
    kept = torch.rand((), generator=draws).item()
    return kept, torch.randperm(len(images), generator=draws).to(images.device)


def _blend(values: Tensor, partners: Tensor, kept: float) -> Tensor:
    return kept * values + (1 - kept) * values[partners]


CHANGES: Mapping[Countermeasure, Callable[[Images, torch.Generator], Images]] = MappingProxyType(
    {"cutout": cutout, "randaugment": rand_augment}
)
MIXTURES: Mapping[
    Countermeasure, Callable[[Images, Shares, torch.Generator], tuple[Images, Shares]]
] = MappingProxyType({"mixup": mixup, "cutmix": cutmix})


def change_batch(
    countermeasure: Countermeasure,
    images: Float32[Tensor, "b 3 s s"],
    labels: Int64[Tensor, " b"],
    classes: int,
    draws: torch.Generator,
) -> tuple[Images, Int64[Tensor, " b"] | Float32[Tensor, "b y"]]:
    """The batch that a countermeasure trains on, in [0, 1], and its labels or shares of classes.

    Where a countermeasure does not change batches, both come back as they are.
    """
    if countermeasure in MIXTURES:
        shares = functional.one_hot(labels, classes).float()
        return MIXTURES[countermeasure](images, shares, draws)
    if countermeasure in CHANGES:
        return CHANGES[countermeasure](images, draws), labels
    return images, labels
