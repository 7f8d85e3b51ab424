"""What a network says of many images: each once, in order, few at a time."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from sep_core.config import Plan
from sep_core.inference import INFERENCE_BATCH, infer, inference_batches
from sep_core.pixels import to_images
from tests.sep_core.conftest import SIDE


def test_inference_sees_every_image_once_and_in_order(plan: Plan) -> None:
    count = INFERENCE_BATCH + 3
    pixels = (torch.arange(count) % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    batches = list(infer(lambda images: images.mean((2, 3)), pixels, plan))
    assert len(batches) == inference_batches(count, pixels.shape[-1]) == 2
    torch.testing.assert_close(torch.cat(batches), to_images(pixels).mean((2, 3)))


@pytest.mark.parametrize(("side", "largest"), [(32, 256), (64, 256), (224, 64), (1024, 3)])
def test_inference_takes_fewer_images_where_they_are_large(
    side: int, largest: int, plan: Plan
) -> None:
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(257, 3, side, side)
    taken = [len(means) for means in islice(infer(_corners, pixels, plan), 2)]
    assert largest // 2 < max(taken) <= largest


def _corners(images: Tensor) -> Tensor:
    return images[:, :, 0, 0]
