"""Every baseline keeps the budget and repeats; each has the property that its paper rests on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.baselines import BASELINES
from benchmarks.baselines.learned import alternate, error_minimising, targeted
from benchmarks.baselines.noise import (
    CLASS_SEPARATION,
    autoregressive,
    class_wise,
    coefficients,
    process,
    separable_noise,
    shortcuts,
    uniform,
)
from sep_core import surrogate
from sep_core.config import Plan, SEPConfig
from sep_core.evaluation import predictions
from sep_core.networks import Network
from sep_core.pixels import to_images
from sep_core.protection import target_classes
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint

torch.set_num_threads(1)
CLASSES, SIDE = 3, 16
PLAN = Plan(device="cpu", precision="float32", batch_size=16)
CONFIG = SEPConfig(
    epsilon_levels=4,
    checkpoints=2,
    surrogate="small",
    input_pixels=SIDE,
    epochs=6,
    batch_size=8,
    crop_padding=2,
    target_map=(1, 2, 0),
    seed="0123456789abcdef" * 2,
    precision="float32",
)
LABELS = torch.arange(24) % CLASSES
QUICK = {
    "targeted": partial(targeted, steps=20),
    "error-minimising": partial(error_minimising, rounds=2),
}
GREY = torch.full((24, 3, SIDE, SIDE), 128, dtype=torch.uint8)


@pytest.fixture
def pixels() -> Tensor:
    """Every level, black and white included; every class has a slight colour."""
    draws = torch.Generator().manual_seed(1)
    drawn = torch.randint(-40, 200, (24, 3, SIDE, SIDE), generator=draws)
    drawn[torch.arange(24), LABELS] += 20
    return drawn.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", BASELINES)
def test_keeps_the_budget_uses_it_and_repeats(name: str, pixels: Tensor) -> None:
    method = QUICK.get(name, BASELINES[name])
    first, again = (method(pixels, LABELS, CLASSES, CONFIG, PLAN) for _ in range(2))
    assert first.dtype == torch.uint8
    assert first.shape == pixels.shape
    assert (first.int() - pixels.int()).abs().max() == 4
    assert torch.equal(first, again)
    other = method(pixels, LABELS, CLASSES, replace(CONFIG, seed="f" * 32), PLAN)
    assert not torch.equal(first, other)


def test_uniform_noise_takes_every_level_alike_and_knows_no_class() -> None:
    change = uniform(GREY, LABELS, CLASSES, CONFIG, PLAN).int() - 128
    counts = torch.bincount((change + 4).flatten(), minlength=9)
    expected = change.numel() / 9
    assert ((counts - expected).square() / expected).sum() < 26.1  # chi-squared, 8, p = 0.001
    assert len(torch.unique(change, dim=0)) == 24


def test_class_wise_noise_is_one_for_each_class() -> None:
    change = class_wise(GREY, LABELS, CLASSES, CONFIG, PLAN).int() - 128
    for label in range(CLASSES):
        assert len(torch.unique(change[label == LABELS], dim=0)) == 1
    assert len(torch.unique(change, dim=0)) == CLASSES


def test_shortcuts_are_flat_patches_that_a_linear_classifier_separates() -> None:
    labels = torch.arange(600) % 10
    grey = torch.full((600, 3, 32, 32), 128, dtype=torch.uint8)
    change = shortcuts(grey, labels, 10, CONFIG, PLAN).float() - 128
    patches = change.unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2)
    assert torch.equal(patches.amax(-1), patches.amin(-1))
    train, test = torch.split(change.flatten(1).double(), 300)
    weights = torch.linalg.lstsq(train, functional.one_hot(labels[:300]).double(), driver="gelsd")
    hits = (test @ weights.solution).argmax(1) == labels[300:]
    assert hits.double().mean() > 0.99


def test_shortcuts_are_clusters_of_unit_width() -> None:
    labels = torch.arange(4000) % 2
    values = separable_noise(labels, 2, 4, "seed")
    for label in range(2):
        members = values[labels == label]
        assert members.std(0).mean() == pytest.approx(1, abs=0.02)
        assert members.mean(0).abs().mean() == pytest.approx(CLASS_SEPARATION / 2, abs=0.02)


def test_autoregressive_noise_is_what_its_filter_predicts() -> None:
    weights = coefficients(CLASSES, SIDE, "seed")
    assert torch.allclose(weights.sum(-1), torch.ones(CLASSES, 3, dtype=torch.float64))
    noise = process(weights[LABELS], SIDE, generator("seed", "test"))
    for label in range(CLASSES):
        right = _filtered(noise[label == LABELS], weights[label])
        assert right.abs().max() < 1e-9 * noise.abs().max()
        assert _filtered(noise[label != LABELS], weights[label]).abs().max() > 1e-3


def test_autoregressive_filters_tell_the_classes_apart_after_rounding() -> None:
    weights = coefficients(CLASSES, SIDE, CONFIG.seed or "")
    change = autoregressive(GREY, LABELS, CLASSES, CONFIG, PLAN).double() - 128
    missed = torch.stack([_filtered(change, each).abs().mean((1, 2, 3)) for each in weights])
    assert torch.equal(missed.argmin(0), LABELS)


def test_autoregressive_noise_fades_and_explodes_little() -> None:
    change = autoregressive(GREY, LABELS, CLASSES, CONFIG, PLAN).float() - 128
    first, last = change[:, :, :4].std((2, 3)), change[:, :, -4:].std((2, 3))
    assert 0.2 < (last / first.clamp(min=0.1)).median() < 5


def _filtered(noise: Tensor, weights: Tensor) -> Tensor:
    """Each value less its prediction by the 8 before it; (n, 3, s - 2, s - 2)."""
    kernel = torch.cat([-weights, torch.ones(3, 1, dtype=weights.dtype)], dim=1)
    return functional.conv2d(noise, kernel.view(3, 1, 3, 3), groups=3)


def test_error_minimising_noise_lowers_its_networks_loss(pixels: Tensor) -> None:
    turns = alternate(pixels, LABELS, CLASSES, CONFIG, PLAN, network_steps=2, noise_steps=10)
    network, changed = next(turns)
    noisy = uniform(pixels, LABELS, CLASSES, CONFIG, PLAN)
    assert _loss(network, changed) < 0.9 * _loss(network, noisy)


def test_error_minimising_stops_when_the_network_makes_no_error(pixels: Tensor) -> None:
    def run(rounds: int, stop_error: float) -> Tensor:
        return error_minimising(
            pixels, LABELS, CLASSES, CONFIG, PLAN, rounds=rounds, stop_error=stop_error
        )

    assert torch.equal(run(rounds=4, stop_error=1.1), run(rounds=1, stop_error=0))
    assert not torch.equal(run(rounds=2, stop_error=0), run(rounds=1, stop_error=0))


def _loss(network: Network, pixels: Tensor) -> float:
    with torch.no_grad():
        return functional.cross_entropy(network(to_images(pixels)), LABELS).item()


def test_targeted_poisons_are_taken_for_the_target(pixels: Tensor) -> None:
    config = replace(
        CONFIG, epochs=30, epsilon_levels=16
    )  # enough to turn one class's colour into another's
    *_, last = surrogate.train(pixels, LABELS, CLASSES, replace(config, checkpoints=1), PLAN)
    assert isinstance(last, Checkpoint)
    targets = target_classes(LABELS, config)
    changed = targeted(pixels, LABELS, CLASSES, config, PLAN, steps=30)
    taken_before, taken = (_predicted(last, images) == targets for images in (pixels, changed))
    assert taken_before.double().mean() < 0.35
    assert taken.double().mean() > 0.8


def _predicted(checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    return torch.cat(list(predictions(checkpoint.network, pixels, PLAN)))
