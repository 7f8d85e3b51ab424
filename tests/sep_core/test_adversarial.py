"""The attack of adversarial training: where it leads is known where a loss is linear."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep_core.config import Countermeasure
from sep_core.costs import training_cost
from sep_core.countermeasures import RADIUS_LEVELS, attack
from sep_core.networks import Network
from sep_core.randomness import generator
from tests.sep_core.conftest import CLASSES, SEED


def _draws(number: int = 0) -> torch.Generator:
    return generator(SEED, "test", number)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(6))


def _linear_loss(weight: Tensor, steps_that_count: int = 99) -> Callable[[Tensor, Tensor], Tensor]:
    """(w, x); after `steps_that_count` calls its gradient is zero."""
    left: Iterator[bool] = itertools.chain([True] * steps_that_count, itertools.repeat(False))
    return lambda images, _: (images * weight * next(left)).sum()


@pytest.mark.parametrize("radius_levels", RADIUS_LEVELS.values())
def test_a_linear_loss_is_attacked_to_the_corner_of_the_ball(
    radius_levels: int, images: Tensor, networks: list[Network]
) -> None:
    weight = torch.randn(images.shape, generator=_draws(1))
    labels = torch.zeros(12, dtype=torch.int64)
    attacked = attack(networks[0], _linear_loss(weight), images, labels, radius_levels, _draws())
    corner = (images + radius_levels / 255 * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(attacked, corner)
    assert not attacked.requires_grad


def test_the_attack_starts_anywhere_in_the_ball_and_steps_a_share(
    images: Tensor, networks: list[Network]
) -> None:
    weight = torch.randn(images.shape, generator=_draws(1))
    labels, images = torch.zeros(12, dtype=torch.int64), images / 2 + 0.25
    starts = [
        attack(networks[0], _linear_loss(weight, 0), images, labels, 8, _draws(n)) for n in (0, 1)
    ]
    assert not torch.equal(*starts)
    change = (starts[0] - images) * 255
    counts = torch.histc(change, 8, -8, 8) / change.numel()
    assert torch.allclose(counts, torch.full((8,), 1 / 8), atol=0.01)
    one_step = attack(networks[0], _linear_loss(weight, 1), images, labels, 8, _draws(), steps=5)
    expected = (starts[0] + 2.5 * 8 / 255 / 5 * weight.sign()).clamp(
        images - 8 / 255, images + 8 / 255
    )
    torch.testing.assert_close(one_step, expected)


@pytest.mark.parametrize("name", RADIUS_LEVELS)
def test_adversarial_training_attacks_by_three_gradients_as_its_cost_says(
    name: Countermeasure, images: Tensor, networks: list[Network]
) -> None:
    shown: list[Tensor] = []

    def loss(images: Tensor, _: Tensor) -> Tensor:
        shown.append(images.detach())
        return images.square().sum()

    attack(networks[0], loss, images, torch.arange(12), RADIUS_LEVELS[name], _draws())
    assert len(shown) == 3
    assert not any(torch.equal(*pair) for pair in itertools.pairwise(shown))
    # Two forward passes' work each, beside the three of a plain training.
    assert training_cost(name) == (3 + 2 * len(shown)) / 3


@pytest.mark.parametrize("radius_levels", RADIUS_LEVELS.values())
def test_the_attack_raises_a_networks_loss_within_the_ball(
    radius_levels: int, images: Tensor, networks: list[Network]
) -> None:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(network(images), labels)

    network, labels = networks[0].train(), torch.arange(12) % CLASSES
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attacked = attack(network, loss, images, labels, radius_levels, _draws())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (attacked - images).abs().max() <= radius_levels / 255 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    start = attack(network, lambda x, _: 0 * x.sum(), images, labels, radius_levels, _draws())
    with torch.no_grad():
        assert loss(attacked, labels) > loss(start, labels) + 0.01
    moved = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert any(name.endswith("running_mean") for name in moved)  # by the two losses just taken
