"""A change common to each class, from which every image's walk begins."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep_core.augmentation import augment, draw_crops
from sep_core.config import Plan, SEPConfig, Views
from sep_core.costs import pattern_passes
from sep_core.patterns import _chosen, class_patterns
from sep_core.pixels import project, to_images
from sep_core.protection import begin, cross_entropy, loss_gradient, protect, target_classes
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from sep_core.training import Progress
from sep_core.views import CHANGES, HARDENED
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data


@pytest.fixture
def asked(config: SEPConfig) -> SEPConfig:
    return replace(config, variant="sep", class_steps=6, normalise_gradients=True, views="crop")


def found(data: Data, ensemble: Sequence[Checkpoint], config: SEPConfig, plan: Plan) -> Tensor:
    *progress, patterns = class_patterns(*data, CLASSES, ensemble, config, plan)
    assert isinstance(patterns, Tensor)
    assert all(isinstance(event, Progress) for event in progress)
    return patterns


@pytest.mark.parametrize("k", range(3))
def test_a_pattern_moves_the_images_of_its_class_to_their_target(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, k: int
) -> None:
    # Of networks that learned nothing each has a will of its own: one at a time.
    alone = replace(asked, class_steps=16, views="identity")
    patterns = found(data, ensemble[k : k + 1], alone, plan)
    originals, targets = to_images(data[0]), target_classes(data[1], alone)

    def losses(images: Tensor) -> Tensor:
        each = cross_entropy(ensemble[k].network(images), targets)
        return torch.stack([each[data[1] == y].mean() for y in range(CLASSES)])

    before = losses(originals)
    assert (losses(begin(originals, data[1], patterns, asked.epsilon_levels)) < before).all()
    others = (data[1] + 1) % CLASSES
    wrong = losses(begin(originals, others, patterns, asked.epsilon_levels))
    assert (wrong > before).any()


def test_patterns_for_grey_images_are_grey(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan
) -> None:
    """Three channels of signs of their own take each other away."""
    pixels, labels = data[0][:, :1].expand(-1, 3, -1, -1).contiguous(), data[1]
    arguments = (pixels, labels, CLASSES, ensemble, asked, plan)
    *_, grey = class_patterns(*arguments, grey=True)
    *_, coloured = class_patterns(*arguments)
    assert isinstance(grey, Tensor)
    assert isinstance(coloured, Tensor)
    assert torch.equal(grey, grey[:, :1].expand_as(grey))
    originals = torch.full((CLASSES, 1, SIDE, SIDE), 0.5)
    moved = [
        (begin(originals, torch.arange(CLASSES), patterns, asked.epsilon_levels) - originals).abs()
        for patterns in (grey, coloured)
    ]
    assert moved[0].mean() > 1.2 * moved[1].mean()


def test_the_first_step_for_grey_images_is_that_of_the_sum_over_channels(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan
) -> None:
    pixels, labels = data[0][:, :1].expand(-1, 3, -1, -1).contiguous(), data[1]
    alone = replace(asked, class_steps=1, views="identity")
    *_, patterns = class_patterns(*(pixels, labels, CLASSES, ensemble[:1], alone, plan), grey=True)
    assert isinstance(patterns, Tensor)
    images, targets = to_images(pixels), target_classes(labels, alone)
    gradient = loss_gradient(ensemble[0], images, targets, alone, plan).sum(1, keepdim=True)
    for label in range(CLASSES):
        expected = -gradient[labels == label].sum(0).sign() * alone.epsilon_levels / 255 / 8
        assert torch.allclose(patterns[label], expected.expand(3, -1, -1), atol=1e-6)


@pytest.mark.parametrize("name", get_args(Views))
def test_patterns_are_those_of_a_plain_loop(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan, name: Views
) -> None:
    asked = replace(asked, views=name)
    epsilon = asked.epsilon_levels / 255
    patterns, velocity = torch.zeros(2, CLASSES, 3, SIDE, SIDE)
    for step in range(asked.class_steps):
        draws = generator(SEED, "class pattern", step)
        visited = torch.randperm(3, generator=draws)[:2].tolist()
        order = torch.randperm(len(data[0]), generator=draws)
        velocity = 0.9 * velocity
        for k in visited:
            for n, show in zip(order.tolist(), shown(len(order), asked, draws), strict=True):
                label = data[1][n]
                original = to_images(data[0][n : n + 1])
                image = (original + patterns[label]).clamp(0, 1)
                target = target_classes(label[None], asked)
                gradient = loss_gradient(ensemble[k], image, target, asked, plan, show)
                velocity[label] += gradient[0]
        patterns = (patterns - epsilon / 8 * velocity.sign()).clamp(-epsilon, epsilon)
    actual = found(data, ensemble, asked, plan)
    # A sum in another order turns a sign here and there, where it is nearly zero; and JPEG rounds
    # a coefficient the other way.
    allowed = 0.05 if name == "hardened" else 0.01
    assert (actual - patterns).abs().gt(epsilon / 100).double().mean() < allowed


def shown(
    images: int, config: SEPConfig, draws: torch.Generator
) -> list[Callable[[Tensor], Tensor]]:
    """Of each image what the checkpoint is to see: its own crop of one change for all."""
    if config.views == "identity":
        return [lambda image: image] * images
    crops, change = draw_crops(images, config, draws), "plain"
    if config.views == "hardened":
        change = HARDENED[int(torch.randint(0, len(HARDENED), (1,), generator=draws))]

    def show(image: Tensor, crop: Tensor) -> Tensor:
        return augment(CHANGES[change](image), crop[None], config.crop_padding)

    return [partial(show, crop=crop) for crop in crops]


def test_patterns_keep_the_budget_and_repeat(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan
) -> None:
    many = replace(asked, class_steps=12)
    patterns = found(data, ensemble, many, plan)
    assert patterns.shape == (CLASSES, 3, SIDE, SIDE)
    assert patterns.abs().max() == pytest.approx(asked.epsilon_levels / 255)
    assert torch.equal(patterns, found(data, ensemble, many, plan))
    other = replace(many, seed=SEED[::-1])
    assert not torch.equal(patterns, found(data, ensemble, other, plan))


@pytest.mark.parametrize("shape", [(3, SIDE, SIDE), (1, SIDE, SIDE), (3, 40, 27), (1, 9, 50)])
def test_images_begin_at_their_class_pattern_at_their_own_size(shape: tuple[int, int, int]) -> None:
    draws = torch.Generator().manual_seed(3)
    originals = torch.rand(4, *shape, generator=draws)
    originals[0], originals[1] = 0, 1
    patterns = (torch.rand(CLASSES, 3, SIDE, SIDE, generator=draws) - 0.5) * 8 / 255
    labels = torch.tensor([0, 1, 2, 0])
    started = begin(originals, labels, patterns, 4)
    whole = functional.interpolate(patterns, shape[1:], mode="bilinear", antialias=True)
    common = whole.mean(1, keepdim=True)  # black and white are grey, in three channels too
    own = [whole[y] if shape[0] == 3 and n > 1 else common[y] for n, y in enumerate(labels)]
    expected = torch.stack([o + change for o, change in zip(originals, own, strict=True)])
    torch.testing.assert_close(started, expected.clamp(0, 1))
    assert torch.equal(project(started, originals, 4), started)


def test_the_walk_begins_there(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan
) -> None:
    patterns = found(data, ensemble, asked, plan)
    still = replace(asked, steps=1, step_levels=0.01)  # too short a step to change a level
    *_, pixels = protect([data[0]], data[1], ensemble, still, plan, patterns)
    assert isinstance(pixels, Tensor)
    started = begin(to_images(data[0]), data[1], patterns, asked.epsilon_levels)
    assert (pixels.double() - started.double() * 255).abs().max() < 0.52
    *_, without = protect([data[0]], data[1], ensemble, still, plan)
    assert isinstance(without, Tensor)
    assert torch.equal(without, data[0])


def test_rare_classes_are_looked_at_in_every_step() -> None:
    """Of 5,000 images two are of one class, twenty of another; 512 are drawn."""
    labels = torch.tensor([0] * 4_978 + [1] * 2 + [2] * 20)
    for seed in range(20):
        order = torch.randperm(5_000, generator=torch.Generator().manual_seed(seed))
        chosen = _chosen(labels, order, 512)
        assert torch.equal(chosen[:512], order[:512])
        assert len(set(chosen.tolist())) == len(chosen)
        members = torch.bincount(labels[chosen])
        assert members[1] == 2
        assert members[2] >= 8
        first = [n for n in order.tolist() if labels[n] == 2][:8]
        assert set(first) <= set(chosen.tolist())
    common = torch.arange(5_000) % 10
    assert torch.equal(_chosen(common, order, 512), order[:512])


def test_passes_are_counted(
    data: Data, ensemble: list[Checkpoint], asked: SEPConfig, plan: Plan
) -> None:
    small = replace(plan, batch_size=1)
    *progress, _ = class_patterns(*data, CLASSES, ensemble, asked, small)
    assert len(progress) == pattern_passes(asked, len(data[0]), CLASSES) == 6 * 2 * 24
    assert pattern_passes(asked, 5_000, 10) == 6 * 2 * 512
    assert pattern_passes(asked, 50_000, 1_000) == 6 * 2 * 8_000
