"""Adversarial training (Madry et al. 2018): train on the worst images that a PGD attack finds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from sep_core.config import Countermeasure
from sep_core.pixels import LEVELS, project

RADIUS_LEVELS: Mapping[Countermeasure, int] = MappingProxyType(
    {"adversarial-2": 2, "adversarial-4": 4, "adversarial-8": 8}
)
STEPS = 3


def attack(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Float32[Tensor, "b 3 s s"],
    labels: Int64[Tensor, " b"],
    radius_levels: int,
    draws: torch.Generator,
    steps: int = STEPS,
) -> Float32[Tensor, "b 3 s s"]:
    """Images within `radius_levels` of these that raise `loss(images, labels)` of `network`.

    Starts uniformly in the ball; steps are 2.5 radii divided by their number, so that every point
    of the ball can be reached from every other. Sign of the gradient, projected on ball and [0, 1].
    """
    radius = radius_levels / LEVELS
    start = torch.rand(images.shape, generator=draws).to(images.device)
    attacked = project(images + radius * (2 * start - 1), images, radius_levels)
    with _statistics_at_rest(network):
        for _ in range(steps):
            attacked.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(attacked, labels), attacked)
            uphill = attacked.detach() + 2.5 * radius / steps * gradient.sign()
            attacked = project(uphill, images, radius_levels)
    return attacked


@contextmanager
def _statistics_at_rest(network: nn.Module) -> Iterator[None]:
    """Batch norm goes by the batch, as in the training step, but remembers nothing of it.

    Its running statistics would else be those of a quarter as many training batches.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
