"""A batch that is protected beside the reference, and how near they come."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sep_core.config import Plan, SEPConfig
from sep_core.pixels import Resize, to_images
from sep_core.protection import (
    Images,
    Part,
    loss_gradient,
    mean_direction,
    protect,
    reduced_direction,
    see,
    target_classes,
)
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from tests.sep_core import reference
from tests.sep_core.conftest import SEED, SIDE
from tests.sep_core.reference import Member

AGREEMENT = 1e-4  # relative, of every image's own gradient, in the Euclidean norm
# Where a rectifier's input is zero but for rounding, the gradient itself jumps: that image is at a
# kink. Of 1,200 gradients at random images 4 had an input turned by rounding, each below 2.6e-7 of
# the layer's rms, and changed by up to 0.026; elsewhere no direction was off by more than 4.4e-5.
ROUNDING = 2**-20
KINK = 5e-2


def interpolate(images: Tensor) -> Tensor:
    """To the networks' input size, in whatever precision the reference works."""
    if images.shape[-1] != SIDE or images.shape[-2] != SIDE:
        images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return images


@dataclass(frozen=True)
class Case:
    """One batch, its ensemble, and the same ensemble for the reference."""

    pixels: Tensor
    labels: Tensor
    ensemble: list[Checkpoint]
    members: list[Member]
    config: SEPConfig
    plan: Plan

    def gradient(self, k: int, images: Images) -> Images:
        targets = target_classes(self.labels, self.config)
        return loss_gradient(self.ensemble[k], images, targets, self.config, self.plan)

    def directions(self, images: Tensor, step: int) -> list[Tensor]:
        """sep_core's G at `images`, brought back to their size.

        For `sep-fa-vr` after every inner step, else the last alone.
        """
        count, resize = len(self.ensemble), Resize.of(images, SIDE)
        batch = [Part(to_images(self.pixels), resize)]
        if self.config.variant == "sep-fa-vr":
            directions = reduced_direction(
                [images], batch, self.gradient, range(count), step=step, config=self.config
            )
        else:
            directions = mean_direction(see([images], batch), self.gradient, range(count))
        kept = list(directions)[count if self.config.variant == "sep-fa-vr" else -1 :]
        return [resize.pull_back(direction) for direction in kept]

    def reference_directions(self, images: Tensor, step: int, steering: list[Tensor]) -> "Expected":
        each, margins = [], []
        for n, image in enumerate(images):
            with reference.Kinks() as kinks:
                each.append(self._reference_one(image, n, step, [d[n] for d in steering]))
            margins.append(kinks.margin)
        together = [torch.stack(images) for images in zip(*each, strict=True)]
        return Expected(together, torch.tensor(margins) < ROUNDING)

    def _reference_one(
        self, image: Tensor, n: int, step: int, steering: list[Tensor]
    ) -> list[Tensor]:
        assert not isinstance(self.config.target_map, str)
        target = self.config.target_map[int(self.labels[n])]
        variant, equal = self.config.variant, self.config.normalise_gradients
        if variant != "sep-fa-vr":
            return [
                reference.mean_direction(
                    variant, self.members, image, target, interpolate, equal=equal
                )
            ]
        return reference.reduced_directions(
            self.members,
            image,
            to_images(self.pixels)[n],
            target,
            drawn(self.config, len(self.members), step),
            steering,
            self.config.step_levels,
            self.config.epsilon_levels,
            interpolate,
            equal=equal,
        )

    def protected(self, **changes: int) -> Tensor:
        config = replace(self.config, **changes)  # type: ignore[arg-type]  # only integers here
        *_, last = protect([self.pixels], self.labels, self.ensemble, config, self.plan)
        assert isinstance(last, Tensor)
        return last


@dataclass(frozen=True)
class Expected:
    """The reference's directions, and which images are at a kink somewhere on the way there."""

    directions: list[Tensor]
    at_kink: Tensor


def drawn(config: SEPConfig, checkpoints: int, step: int) -> list[int]:
    """The checkpoints that the inner walk of one step visits."""
    draws = generator(SEED, "variance reduction", step)
    visits = torch.randint(checkpoints, (config.inner_steps,), generator=draws)
    return [int(k) for k in visits]


def differences(actual: Tensor, expected: Tensor) -> Tensor:
    """Relative, one number an image."""
    error = (actual.double() - expected).flatten(1).norm(dim=1)
    return torch.div(error, expected.flatten(1).norm(dim=1))


def agree(actual: list[Tensor], expected: Expected) -> bool:
    """All directions of every image; most images are at no kink."""
    bounds = torch.where(expected.at_kink, KINK, AGREEMENT)
    return bool(expected.at_kink.double().mean() < 0.5) and all(
        bool((differences(*pair) < bounds).all())
        for pair in zip(actual, expected.directions, strict=True)
    )
