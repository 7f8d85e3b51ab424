"""Orthogonal projection, against NumPy's least squares, and for what it is there for."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sep_core.config import Plan, SEPConfig
from sep_core.countermeasures import projection
from sep_core.evaluation import Accuracy, appropriate
from sep_core.randomness import generator
from sep_core.training import Progress
from tests.sep_core.conftest import SEED

SIDE, CLASSES = 16, 3
IMAGES = 240


def noise_with_patterns(purpose: str, strength: int) -> tuple[Tensor, Tensor]:
    """Images that nothing but a pattern of each class tells apart."""
    draws, common = generator(SEED, purpose, 0), generator(SEED, "patterns", 0)
    patterns = torch.randint(0, 2, (CLASSES, 3, SIDE, SIDE), generator=common) * 2 - 1
    labels = torch.arange(IMAGES) % CLASSES
    pixels = torch.randint(60, 196, (IMAGES, 3, SIDE, SIDE), generator=draws)
    return (pixels + strength * patterns[labels]).to(torch.uint8), labels


def accuracy(config: SEPConfig, plan: Plan, countermeasure: str) -> float:
    train, test = (noise_with_patterns(purpose, 8) for purpose in ("train", "test"))
    recipe = replace(config, appropriator="linear", appropriator_epochs=10, crop_padding=0)
    recipe = replace(recipe, flip=False, batch_size=32)
    events = appropriate(train, test, CLASSES, recipe, plan, countermeasure=countermeasure)  # type: ignore[arg-type]
    *_, last = (event.accuracy for event in events if isinstance(event, Accuracy))
    return last


def projected_out(rows: np.ndarray, basis: Tensor) -> np.ndarray:
    columns = basis.double().numpy()
    parts, *_ = np.linalg.lstsq(columns, rows.T, rcond=None)
    left: np.ndarray = rows - (columns @ parts).T
    return left


def test_the_basis_is_orthonormal_and_what_is_left_has_no_part_in_it(
    config: SEPConfig, plan: Plan
) -> None:
    pixels, labels = noise_with_patterns("train", 8)
    *_, basis = projection.directions(pixels, labels, CLASSES, config, plan)
    assert isinstance(basis, Tensor)
    assert basis.shape == (3 * SIDE**2, CLASSES)
    np.testing.assert_allclose(basis.T @ basis, np.eye(CLASSES), atol=1e-5)

    images = pixels.flatten(1).double().numpy()
    expected = np.clip(projected_out(images, basis), 0, 255)
    projected = projection.remove(basis, pixels)
    assert projected.dtype == torch.uint8
    difference = np.abs(projected.flatten(1).double().numpy() - expected)
    assert difference.max() <= 0.5 + 1e-3


def test_the_directions_are_a_linear_models_weights_on_standardised_pixels(
    config: SEPConfig, plan: Plan
) -> None:
    """Channels of unlike deviation; so much decay that there is one minimum, and it is reached."""
    pixels, labels = noise_with_patterns("train", 8)
    scale = torch.tensor([1.0, 0.3, 0.1])[:, None, None]
    pixels = (128 + (pixels.float() - 128) * scale).round().to(torch.uint8)
    recipe = replace(config, weight_decay=1, schedule="cosine", learning_rate=0.5, momentum=0)
    recipe = replace(recipe, batch_size=120)
    *_, basis = projection.directions(pixels, labels, CLASSES, recipe, plan)
    assert isinstance(basis, Tensor)

    values = pixels.double().numpy()
    deviation = values.std((0, 2, 3), keepdims=True)
    standardised = (values - values.mean((0, 2, 3), keepdims=True)) / deviation
    weights = logistic(standardised.reshape(IMAGES, -1) / SIDE, labels.numpy(), decay=1)
    expected = (weights.reshape(CLASSES, 3, SIDE, SIDE) / deviation).reshape(CLASSES, -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.linalg.norm(projected_out(expected, basis), axis=1).max() < 0.05


def logistic(rows: np.ndarray, labels: np.ndarray, decay: float) -> np.ndarray:
    """The weights that minimise mean cross-entropy and half of `decay` times weights squared."""
    weights, bias = np.zeros((CLASSES, rows.shape[1])), np.zeros(CLASSES)
    for _ in range(500):
        odds = np.exp(rows @ weights.T + bias)
        error = (odds / odds.sum(1, keepdims=True) - np.eye(CLASSES)[labels]) / len(rows)
        weights -= 0.5 * (error.T @ rows + decay * weights)
        bias -= 0.5 * (error.sum(0) + decay * bias)
    return weights


def test_it_takes_out_what_is_common_to_a_class(config: SEPConfig, plan: Plan) -> None:
    assert accuracy(config, plan, "none") > 0.95
    assert accuracy(config, plan, "projection") < 0.6


def test_progress_counts_the_linear_model_too(config: SEPConfig, plan: Plan) -> None:
    train = test = noise_with_patterns("train", 8)
    events = list(appropriate(train, test, CLASSES, config, plan, countermeasure="projection"))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, progress[0].total + 1))
