"""Gradients at the networks' input size: what stays as it was, and images of any sizes at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from sep_core import views
from sep_core.config import Plan, SEPConfig, Variant
from sep_core.costs import gradient_passes
from sep_core.pixels import Resize, project, to_images, to_input, to_pixels
from sep_core.protection import loss_gradient, protect, target_classes, visits
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from tests.sep_core.conftest import SEED, SIDE

VARIANTS: list[Variant] = ["sep", "sep-fa", "sep-fa-vr"]
Gradient = Callable[[int, Tensor], Tensor]
LABELS = torch.arange(6) % 3


@pytest.fixture
def asked(config: SEPConfig) -> SEPConfig:
    return replace(
        config, checkpoints=3, perturb_momentum=0.9, normalise_gradients=True, views="crop"
    )


def drawn(shape: tuple[int, int, int]) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=draws)


def at_own_size(pixels: Tensor, ensemble: Sequence[Checkpoint], config: SEPConfig) -> Tensor:
    """The whole walk with every gradient taken, weighed and summed at the images' own size."""
    equal = config.normalise_gradients
    originals, targets = to_images(pixels), target_classes(LABELS, config)

    def gradient(step: int, k: int, images: Tensor) -> Tensor:
        x = images.detach().requires_grad_()
        view = views.draw(config, step, k)
        seen = views.show(to_input(x, config.input_pixels), view, config.crop_padding)
        features = ensemble[k].network.features(seen)
        if config.variant == "sep":
            logits = ensemble[k].network.head(features)
            others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
            at_target = logits.gather(1, targets[:, None])[:, 0]
            loss = torch.nn.functional.softplus(others - at_target).sum()
        else:
            loss = (features - ensemble[k].class_means[targets]).square().sum()
        (found,) = torch.autograd.grad(loss, x)
        return found / found.abs().mean((1, 2, 3), keepdim=True) if equal else found

    images, velocity = originals, torch.zeros_like(originals)
    for step in range(config.steps):
        of = _reduced if config.variant == "sep-fa-vr" else _mean
        velocity = config.perturb_momentum * velocity + of(
            partial(gradient, step), images, originals, step, config
        )
        images = _step(velocity, images, originals, config)
    return to_pixels(images)


def _mean(g: Gradient, images: Tensor, _: Tensor, step: int, config: SEPConfig) -> Tensor:
    total = torch.zeros_like(images)
    for k in visits(config, 3, step):
        total = total + g(k, images)
    return total / 3


def _reduced(g: Gradient, images: Tensor, originals: Tensor, step: int, c: SEPConfig) -> Tensor:
    anchors = [g(k, images) for k in range(3)]
    total, walker = torch.zeros_like(images), images
    draws = generator(SEED, "variance reduction", step)
    for k in torch.randint(3, (c.inner_steps,), generator=draws).tolist():
        total = total + g(k, walker) - (anchors[k] - torch.stack(anchors).mean(0))
        walker = _step(total, walker, originals, c)
    return total


def _step(direction: Tensor, images: Tensor, originals: Tensor, config: SEPConfig) -> Tensor:
    moved = images - config.step_levels / 255 * direction.sign()
    return project(moved, originals, config.epsilon_levels)


def protected(
    pixels: Tensor, ensemble: Sequence[Checkpoint], config: SEPConfig, plan: Plan
) -> Tensor:
    *_, released = protect([pixels], LABELS, ensemble, config, plan)
    assert isinstance(released, Tensor)
    return released


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_input_size_get_the_bytes_that_they_always_got(
    ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, variant: Variant, channels: int
) -> None:
    pixels, config = drawn((channels, SIDE, SIDE)), replace(asked, variant=variant)
    expected = at_own_size(pixels, ensemble, config)
    assert torch.equal(protected(pixels, ensemble, config, plan), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, 40, 27), (1, 21, 33), (3, 9, 12)])
def test_images_of_other_sizes_get_the_same_but_for_rounding(
    ensemble: list[Checkpoint],
    asked: SEPConfig,
    plan: Plan,
    variant: Variant,
    shape: tuple[int, int, int],
) -> None:
    # Once: a sign that rounding turns moves the images apart, and every later step with them.
    one_step = replace(asked, variant=variant, normalise_gradients=False, steps=1)
    one_step = replace(one_step, inner_steps=1)
    actual = protected(drawn(shape), ensemble, one_step, plan)
    expected = at_own_size(drawn(shape), ensemble, one_step)
    assert (actual != expected).double().mean() < 0.005
    assert (actual != drawn(shape)).double().mean() > 0.9


@pytest.mark.parametrize("shape", [(3, 40, 27), (1, 21, 33), (3, 9, 12)])
def test_a_batch_of_one_shape_gets_the_bytes_of_one_tensor(
    ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, shape: tuple[int, int, int]
) -> None:
    pixels = drawn(shape)
    originals, targets = to_images(pixels), target_classes(LABELS, asked)
    resize = Resize.of(originals, SIDE)
    images, velocity = originals, torch.zeros(6, shape[0], SIDE, SIDE)
    for step in range(asked.steps):
        total = torch.zeros_like(velocity)
        for k in visits(asked, 3, step):
            view = views.draw(asked, step, k)
            show = partial(views.show, view=view, padding=asked.crop_padding)
            total += loss_gradient(ensemble[k], resize(images), targets, asked, plan, show)
        velocity = asked.perturb_momentum * velocity + total / 3
        images = _step(resize.pull_back(velocity), images, originals, asked)
    assert torch.equal(protected(pixels, ensemble, asked, plan), to_pixels(images))


SHAPES = [(SIDE, SIDE), (40, 27), (9, 12)]


def mixed(
    parts: Sequence[Tensor], ensemble: Sequence[Checkpoint], config: SEPConfig, plan: Plan
) -> list[Tensor]:
    events = list(protect(parts, LABELS, ensemble, config, plan))
    released = [event for event in events if isinstance(event, Tensor)]
    passes = gradient_passes(config)
    assert events[:passes] == list(range(1, passes + 1))
    assert len(events) == passes + len(parts)
    return released


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_sizes_share_their_passes(
    ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, variant: Variant, channels: int
) -> None:
    # Once: see above.
    one_step = replace(asked, variant=variant, steps=1, inner_steps=1)
    parts = [drawn((channels, *shape))[:2] for shape in SHAPES]
    released = mixed(parts, ensemble, one_step, plan)
    for part, labels, actual in zip(parts, torch.split(LABELS, 2), released, strict=True):
        *_, expected = protect([part], labels, ensemble, one_step, plan)
        assert isinstance(expected, Tensor)
        assert actual.shape == part.shape
        assert (actual != expected).double().mean() < 0.005
        assert (actual != part).double().mean() > 0.9


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_neighbours_of_other_sizes(
    ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, variant: Variant
) -> None:
    config = replace(asked, variant=variant)
    parts = [drawn((3, *shape))[:2] for shape in SHAPES]
    others = [parts[0], *(255 - part for part in parts[1:])]
    first, second = (mixed(batch, ensemble, config, plan) for batch in (parts, others))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
