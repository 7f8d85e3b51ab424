"""Rates and batch sizes, by formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sep_core.config import SEPConfig
from sep_core.optimisation import batch_count, learning_rate
from sep_core.presets import PAPER


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.001),
        (0.5, 0.0505),
        (1, 0.1),
        (74.999, 0.1),
        (75, 0.01),
        (89.999, 0.01),
        (90, 0.001),
        (119.999, 0.001),
    ],
)
def test_the_learning_rate_is_the_papers(epoch: float, rate: float) -> None:
    assert learning_rate(PAPER, 120, epoch) == pytest.approx(rate)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.0), (1, 0.2), (2, 0.4), (6, 0.2), (10, 0.0)])
def test_cosine_falls_to_zero_after_the_warm_up(epoch: float, rate: float) -> None:
    config = SEPConfig(
        schedule="cosine", learning_rate=0.4, warmup_epochs=2, warmup_learning_rate=0
    )
    assert learning_rate(config, 10, epoch) == pytest.approx(rate)


def test_without_warm_up_the_first_batch_has_the_whole_rate() -> None:
    assert learning_rate(SEPConfig(warmup_epochs=0), 120, 0) == 0.1


@given(images=st.integers(2, 2000), batch_size=st.integers(2, 300))
def test_no_batch_is_single_or_too_large(images: int, batch_size: int) -> None:
    sizes = [
        len(part) for part in torch.arange(images).tensor_split(batch_count(images, batch_size))
    ]
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)  # an odd number in pairs needs a three
    assert max(sizes) - min(sizes) <= 1
