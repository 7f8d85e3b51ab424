"""The perturbation beyond the paper: drawn checkpoints, momentum, equal weights, views."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sep_core import views
from sep_core.config import Plan, SEPConfig, Variant
from sep_core.costs import gradient_passes
from sep_core.pixels import project, to_images, to_pixels
from sep_core.protection import loss_gradient, protect, target_classes, visits
from sep_core.surrogate import Checkpoint
from tests.sep_core.conftest import SEED, Data

VARIANTS: list[Variant] = ["sep", "sep-fa", "sep-fa-vr"]


def protected(
    data: Data, ensemble: Sequence[Checkpoint], config: SEPConfig, plan: Plan
) -> tuple[Tensor, list[int]]:
    *passes, pixels = protect([data[0]], data[1], ensemble, config, plan)
    assert isinstance(pixels, Tensor)
    return pixels, [done for done in passes if isinstance(done, int)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("per_step", [0, 1, 2, 3])
def test_passes_are_counted(
    data: Data,
    ensemble: list[Checkpoint],
    config: SEPConfig,
    plan: Plan,
    variant: Variant,
    per_step: int,
) -> None:
    asked = replace(config, variant=variant, checkpoints=3, checkpoints_per_step=per_step)
    _, passes = protected(data, ensemble, asked, plan)
    assert passes == list(range(1, gradient_passes(asked) + 1))


def test_visits_are_drawn_afresh_for_every_step(config: SEPConfig) -> None:
    drawn = replace(config, checkpoints_per_step=2, epochs=20, checkpoints=10)
    steps = [visits(drawn, 10, step) for step in range(40)]
    assert steps == [visits(drawn, 10, step) for step in range(40)]
    assert all(len(set(step)) == 2 for step in steps)
    assert {k for step in steps for k in step} == set(range(10))
    assert steps != [visits(replace(drawn, seed=SEED[::-1]), 10, step) for step in range(40)]
    assert visits(config, 10, 0) == list(range(10))


def test_a_gradient_of_equal_weight_has_a_mean_of_one(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> None:
    images, targets = to_images(data[0]), target_classes(data[1], config)
    plain = loss_gradient(ensemble[0], images, targets, config, plan)
    equal = replace(config, normalise_gradients=True)
    actual = loss_gradient(ensemble[0], images, targets, equal, plan)
    torch.testing.assert_close(actual.abs().mean((1, 2, 3)), torch.ones(len(images)))
    assert torch.equal(actual.sign(), plain.sign())


def test_an_image_without_gradient_stays(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> None:
    dead = replace(
        ensemble[0], class_means=ensemble[0].network.features(to_images(data[0][:1])).repeat(3, 1)
    )
    asked = replace(config, normalise_gradients=True)
    released, _ = protected((data[0][:1], data[1][:1]), [dead], asked, plan)
    assert torch.equal(released, data[0][:1])


def test_the_whole_walk_by_hand(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> None:
    asked = replace(
        config,
        checkpoints=3,
        checkpoints_per_step=2,
        perturb_momentum=0.9,
        normalise_gradients=True,
        views="crop",
    )
    originals, targets = to_images(data[0]), target_classes(data[1], asked)
    images, velocity = originals, torch.zeros_like(originals)
    for step in range(asked.steps):
        gradients = []
        for k in visits(asked, 3, step):
            view = views.draw(asked, step, k)
            x = images.clone().requires_grad_()
            features = ensemble[k].network.features(views.show(x, view, asked.crop_padding))
            (features - ensemble[k].class_means[targets]).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
            assert x.grad is not None
            gradients.append(x.grad / x.grad.abs().mean((1, 2, 3), keepdim=True))
        velocity = 0.9 * velocity + sum(gradients) / 2
        images = project(images - velocity.sign() / 255, originals, asked.epsilon_levels)
    assert torch.equal(protected(data, ensemble, asked, plan)[0], to_pixels(images))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_neighbours(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan, variant: Variant
) -> None:
    asked = replace(config, variant=variant, checkpoints=3, checkpoints_per_step=2, views="crop")
    others = data[0].clone()
    others[1:] = 255 - others[1:]
    first, _ = protected(data, ensemble, asked, plan)
    second, _ = protected((others, data[1]), ensemble, asked, plan)
    assert torch.equal(first[0], second[0])
