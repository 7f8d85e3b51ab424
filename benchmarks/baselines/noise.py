"""Noise that looks at labels at most, never at images or networks."""

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from sep_core.config import Plan, SEPConfig, drawn_seed
from sep_core.pixels import LEVELS, project, to_images, to_pixels
from sep_core.randomness import generator

Pixels = UInt8[Tensor, "n 3 s s"]
Noise = Float64[Tensor, "n 3 s s"]
Labels = Int64[Tensor, " n"]

CLASS_SEPARATION = 10.0  # of cluster centres, in standard deviations of a cluster, per dimension
PATCHES = 4  # of one value each, along a side
WINDOW = 3
CANDIDATES = 64


def uniform(pixels: Pixels, _labels: Labels, _classes: int, config: SEPConfig, _: Plan) -> Pixels:
    """Whole levels, each as likely, every pixel on its own."""
    return _add(pixels, _uniform(tuple(pixels.shape), config, "uniform noise"), config)


def class_wise(pixels: Pixels, labels: Labels, classes: int, config: SEPConfig, _: Plan) -> Pixels:
    """The noise of `uniform`, drawn once for each class."""
    noise = _uniform((classes, *pixels.shape[1:]), config, "class-wise noise")
    return _add(pixels, noise[labels], config)


def shortcuts(pixels: Pixels, labels: Labels, classes: int, config: SEPConfig, _: Plan) -> Pixels:
    """Linearly separable patches (Yu et al., Availability attacks create shortcuts, KDD 2022).

    Theirs is bounded in L2; here every channel of every image is scaled to the L-infinity budget.
    """
    noise = separable_noise(labels, classes, pixels.shape[-1], drawn_seed(config))
    return _add(pixels, _fill_budget(noise, config), config)


def autoregressive(
    pixels: Pixels, labels: Labels, classes: int, config: SEPConfig, _: Plan
) -> Pixels:
    """A linear process for each class (Sandoval-Segura et al., NeurIPS 2022).

    Theirs is bounded in L2; here every channel of every image is scaled to the L-infinity budget.
    Theirs redraws coefficients whose process explodes, or which another class's filter hardly
    notices; here see `coefficients`. Tests hold the filters apart.
    """
    seed, side = drawn_seed(config), pixels.shape[-1]
    noise = process(coefficients(classes, side, seed)[labels], side, generator(seed, "AR starts"))
    return _add(pixels, _fill_budget(noise, config), config)


def separable_noise(labels: Labels, classes: int, side: int, seed: str) -> Noise:
    """A Gaussian cluster for each class at a corner of a cube, each value blown up to a patch.

    At 32 pixels a patch is 8 x 8, as in the paper. Corners are drawn among 2^48.
    """
    draws = generator(seed, "shortcuts")
    centres = torch.randint(0, 2, (classes, 3, PATCHES, PATCHES), generator=draws) - 0.5
    points = torch.randn((len(labels), 3, PATCHES, PATCHES), generator=draws, dtype=torch.float64)
    points = points + CLASS_SEPARATION * centres[labels]
    return functional.interpolate(points, size=(side, side), mode="nearest")


def process(
    coefficients: Float64[Tensor, "n 3 8"], side: int, draws: torch.Generator
) -> Float64[Tensor, "n 3 s s"]:
    """Each value the weighted sum of the 8 before it in its 3 x 3 window, rows first.

    Two rows above and two columns to the left are normal draws that start it; they are cut off.
    """
    edge = WINDOW - 1
    shape = (*coefficients.shape[:2], side + edge, side + edge)
    values = torch.randn(shape, generator=draws, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            window = values[..., row : row + WINDOW, column : column + WINDOW].flatten(-2)
            values[..., row + edge, column + edge] = (window[..., :-1] * coefficients).sum(-1)
    return values[..., edge:, edge:]


def coefficients(classes: int, side: int, seed: str) -> Float64[Tensor, "y 3 8"]:
    """For every class and channel, weights that sum to 1 (the paper's condition).

    Of a number of normal draws, the one whose process has the largest deviation for its largest
    value: it neither dies nor explodes, and fills an L-infinity ball best.
    """
    draws = generator(seed, "AR coefficients")
    drawn = torch.randn((classes * CANDIDATES, 3, WINDOW**2 - 1), generator=draws).double()
    drawn = drawn / drawn.sum(-1, keepdim=True)
    noise = process(drawn, side, draws)
    filling = (noise / noise.abs().amax((-2, -1), keepdim=True)).std((-2, -1)).nan_to_num(0)
    best = (
        filling.view(classes, CANDIDATES, 3)
        .argmax(1)[:, None, :, None]
        .expand(-1, -1, -1, WINDOW**2 - 1)
    )
    return drawn.view(classes, CANDIDATES, 3, -1).gather(1, best).squeeze(1)


def _uniform(shape: tuple[int, ...], config: SEPConfig, purpose: str) -> Tensor:
    draws = generator(drawn_seed(config), purpose)
    most = config.epsilon_levels
    return torch.randint(-most, most + 1, shape, generator=draws)


def _fill_budget(noise: Noise, config: SEPConfig) -> Noise:
    """In levels; the largest value of every channel of every image is the budget."""
    return noise / noise.abs().amax((2, 3), keepdim=True) * config.epsilon_levels


def _add(pixels: Pixels, levels: Tensor, config: SEPConfig) -> Pixels:
    originals = to_images(pixels)
    changed = originals + levels.to(torch.float32) / LEVELS
    return to_pixels(project(changed, originals, config.epsilon_levels))
