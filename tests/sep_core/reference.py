"""The equations of Self-Ensemble Protection, naive and slow.

One image at a time, one checkpoint after another, float64, batch norm as it was trained. Read
beside sections 3.2 to 3.4 of the paper; shares nothing with sep_core.protection.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sep_core.networks import Network


@dataclass(frozen=True)
class Member:
    """One checkpoint: its network, and its class means, (y, d)."""

    network: Network
    means: Tensor


Resize = Callable[[Tensor], Tensor]
"""(1, c, h, w) to (1, c, s, s), in float64 and as autograd knows it."""


class Kinks(TorchFunctionMode):
    """Watches every rectifier: `margin` is the smallest |input| so far, in the layer's rms."""

    RECTIFIERS = (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)

    def __init__(self) -> None:
        super().__init__()
        self.margin = float("inf")

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in self.RECTIFIERS:
            entering = arguments[0].detach().abs()
            self.margin = min(self.margin, float(entering.min() / entering.square().mean().sqrt()))
        return function(*arguments, **(named or {}))


def gradient(
    variant: str,
    member: Member,
    image: Tensor,
    target: int,
    resize: Resize,
    *,
    equal: bool = False,
) -> Tensor:
    """Of one checkpoint's loss at one image (c, h, w) in [0, 1].

    With `equal` divided by the mean absolute value of the gradient at the resized image.
    """
    network = copy.deepcopy(member.network).double().eval()
    x = image.double().clone().requires_grad_()
    resized = resize(x[None])
    features = network.features(torch.cat([resized] * (3 // len(image)), dim=1))[0]
    if variant == "sep":
        logits = network.head.weight @ features + network.head.bias
        loss = torch.logsumexp(logits, 0) - logits[target]
    else:
        loss = ((features - member.means[target].double()) ** 2).sum()
    at_resized, at_image = torch.autograd.grad(loss, (resized, x))
    return at_image / at_resized.abs().mean() if equal else at_image


def mean_direction(
    variant: str,
    members: list[Member],
    image: Tensor,
    target: int,
    resize: Resize,
    *,
    equal: bool = False,
) -> Tensor:
    """1/n of the sum over k of g_k(x)."""
    total = torch.zeros_like(image, dtype=torch.float64)
    for member in members:
        total += gradient(variant, member, image, target, resize, equal=equal)
    return total / len(members)


def reduced_directions(
    members: list[Member],
    image: Tensor,
    original: Tensor,
    target: int,
    drawn: list[int],
    steering: list[Tensor],
    step_levels: float,
    epsilon_levels: int,
    resize: Resize,
    *,
    equal: bool = False,
) -> list[Tensor]:
    """G after every inner step: G += g_k(z) - (g_k(x) - m), then z = P(z - a sign G).

    Args:
        steering: the G, one an inner step, by whose signs z walks. Rounding may turn the sign of a
            value near zero, and a sign moves z by two whole steps: who compares two sums of
            gradients along a walk lets one of them steer both.
    """

    def g(member: Member, at: Tensor) -> Tensor:
        return gradient("sep-fa", member, at, target, resize, equal=equal)

    anchors = [g(member, image) for member in members]
    mean = sum(anchors, torch.zeros_like(anchors[0])) / len(members)
    totals, total, walker = [], torch.zeros_like(mean), image.double()
    for k, steered in zip(drawn, steering, strict=True):
        total = total + g(members[k], walker) - anchors[k] + mean
        walker = step(steered, walker, original, step_levels, epsilon_levels)
        totals.append(total)
    return totals


def step(
    direction: Tensor, image: Tensor, original: Tensor, step_levels: float, epsilon_levels: int
) -> Tensor:
    """P(x - a sign G), value by value."""
    moved = []
    for g, x, x0 in zip(
        direction.flatten().tolist(),
        image.flatten().tolist(),
        original.flatten().tolist(),
        strict=True,
    ):
        value = x - step_levels / 255 * ((g > 0) - (g < 0))
        value = max(x0 - epsilon_levels / 255, min(x0 + epsilon_levels / 255, value))
        moved.append(max(0.0, min(1.0, value)))
    return torch.tensor(moved, dtype=torch.float64).view(image.shape)


def class_means(network: Network, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(y, d): the mean of each class's features, one image after another."""
    network = copy.deepcopy(network).double().eval()
    rows = []
    with torch.no_grad():
        for y in range(classes):
            members = [network.features(image[None].double())[0] for image in images[labels == y]]
            rows.append(sum(members[1:], members[0]) / len(members))
    return torch.stack(rows)


def augment(image: Tensor, top: int, left: int, mirrored: bool, padding: int) -> Tensor:
    """Pad with black, crop, mirror: one image (c, s, s), value by value."""
    channels, side, _ = image.shape
    result = torch.zeros_like(image)
    for c in range(channels):
        for i in range(side):
            for j in range(side):
                row = i + top - padding
                column = (side - 1 - j if mirrored else j) + left - padding
                if 0 <= row < side and 0 <= column < side:
                    result[c, i, j] = image[c, row, column]
    return result
