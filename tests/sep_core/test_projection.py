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


def test_the_basis_is_orthonormal_and_what_is_left_has_no_part_in_it(
    config: SEPConfig, plan: Plan
) -> None:
    pixels, labels = noise_with_patterns("train", 8)
    *_, basis = projection.directions(pixels, labels, CLASSES, config, plan)
    assert isinstance(basis, Tensor)
    assert basis.shape == (3 * SIDE**2, CLASSES)
    np.testing.assert_allclose(basis.T @ basis, np.eye(CLASSES), atol=1e-5)

    images = pixels.flatten(1).double().numpy()
    parts, *_ = np.linalg.lstsq(basis.double().numpy(), images.T, rcond=None)
    expected = np.clip(images - (basis.double().numpy() @ parts).T, 0, 255)
    projected = projection.remove(basis, pixels)
    assert projected.dtype == torch.uint8
    difference = np.abs(projected.flatten(1).double().numpy() - expected)
    assert difference.max() <= 0.5 + 1e-3


def test_it_takes_out_what_is_common_to_a_class(config: SEPConfig, plan: Plan) -> None:
    assert accuracy(config, plan, "none") > 0.95
    assert accuracy(config, plan, "projection") < 0.6


def test_progress_counts_the_linear_model_too(config: SEPConfig, plan: Plan) -> None:
    train = test = noise_with_patterns("train", 8)
    events = list(appropriate(train, test, CLASSES, config, plan, countermeasure="projection"))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, progress[0].total + 1))
