from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sep_core.config import PAPER, Plan, SEPConfig
from sep_core.pixels import to_images
from sep_core.training import (
    INFERENCE_BATCH,
    Epoch,
    Progress,
    Recipe,
    augment,
    batch_count,
    channel_statistics,
    fit,
    infer,
    inference_batches,
    learning_rate,
)
from tests.sep_core import reference
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data

RECIPE = Recipe("small", 3, "test")


def _fit(data: Data, config: SEPConfig, plan: Plan) -> Iterator[Progress | Epoch]:
    return fit(*data, CLASSES, RECIPE, config=config, plan=plan)


def _weights(data: Data, config: SEPConfig, plan: Plan) -> Tensor:
    *_, last = _fit(data, config, plan)
    assert isinstance(last, Epoch)
    return torch.cat([p.detach().flatten() for p in last.network.parameters()])


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


def test_the_optimiser_takes_the_scheduled_rate(data: Data, config: SEPConfig, plan: Plan) -> None:
    rates: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    list(_fit(data, config, plan))
    hook.remove()
    assert rates == [
        learning_rate(config, 3, epoch + n / 3) for epoch in range(3) for n in range(3)
    ]


@given(images=st.integers(2, 2000), batch_size=st.integers(2, 300))
def test_no_batch_is_single_or_too_large(images: int, batch_size: int) -> None:
    sizes = [
        len(part) for part in torch.arange(images).tensor_split(batch_count(images, batch_size))
    ]
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)  # an odd number in pairs needs a three
    assert max(sizes) - min(sizes) <= 1


def test_augmentation_is_a_padded_crop_and_a_mirror() -> None:
    images = torch.rand(9, 3, 8, 8)
    corners = torch.tensor([(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (1, 3), (3, 2), (2, 1), (2, 2)])
    mirrored = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1])
    result = augment(images, torch.cat([corners, mirrored[:, None]], 1), 2)
    for n, image in enumerate(images):
        top, left = corners[n].tolist()
        expected = reference.augment(image, top, left, bool(mirrored[n]), 2)
        assert torch.equal(result[n], expected)


def test_crops_and_flips_happen_as_configured(data: Data, config: SEPConfig, plan: Plan) -> None:
    plain = _weights(data, replace(config, crop_padding=0, flip=False), plan)
    assert not torch.equal(plain, _weights(data, replace(config, crop_padding=2, flip=False), plan))
    assert not torch.equal(plain, _weights(data, replace(config, crop_padding=0, flip=True), plan))


@pytest.mark.parametrize("images", [1, 7])
def test_channel_statistics_are_those_of_all_pixels(images: int) -> None:
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (images, 3, 5, 5), dtype=torch.uint8, generator=draws)
    pixels[:, 1] //= 2
    mean, std = channel_statistics(pixels)
    values = pixels.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1).float())
    torch.testing.assert_close(std, values.std(1, unbiased=False).float())


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    _, std = channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert std.min() > 0


def test_progress_counts_batches_and_epochs_follow(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    events = list(_fit(data, config, plan))
    done = [event for event in events if isinstance(event, Progress)]
    assert done == [Progress(n, 9) for n in range(1, 10)]
    assert [n for n, event in enumerate(events) if isinstance(event, Epoch)] == [3, 7, 11]
    assert [event.number for event in events if isinstance(event, Epoch)] == [1, 2, 3]


def test_the_same_seed_trains_the_same_weights(data: Data, config: SEPConfig, plan: Plan) -> None:
    first = _weights(data, config, plan)
    torch.manual_seed(7)
    assert torch.equal(first, _weights(data, config, plan))
    other = replace(config, seed=SEED[::-1])
    assert not torch.equal(first, _weights(data, other, plan))


def test_purposes_draw_apart(data: Data, config: SEPConfig, plan: Plan) -> None:
    *_, last = fit(*data, CLASSES, replace(RECIPE, purpose="x"), config=config, plan=plan)
    assert isinstance(last, Epoch)
    weights = torch.cat([p.detach().flatten() for p in last.network.parameters()])
    assert not torch.equal(weights, _weights(data, config, plan))


def test_bfloat16_is_used_where_planned(data: Data, config: SEPConfig, plan: Plan) -> None:
    coarse = _weights(data, config, replace(plan, precision="bfloat16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, _weights(data, config, plan))


def test_what_it_cannot_train_on_is_refused(data: Data, config: SEPConfig, plan: Plan) -> None:
    pixels, labels = data
    with pytest.raises(ValueError, match="expected at least 2 training images, got 1"):
        next(_fit((pixels[:1], labels[:1]), config, plan))
    with pytest.raises(ValueError, match="seed: expected a resolved"):
        next(_fit(data, replace(config, seed=None), plan))


def test_inference_sees_every_image_once_and_in_order(plan: Plan) -> None:
    count = INFERENCE_BATCH + 3
    pixels = (torch.arange(count) % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    batches = list(infer(lambda images: images.mean((2, 3)), pixels, plan))
    assert len(batches) == inference_batches(count) == 2
    torch.testing.assert_close(torch.cat(batches), to_images(pixels).mean((2, 3)))
