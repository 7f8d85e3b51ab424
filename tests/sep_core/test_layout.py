"""The layout of a frozen network changes its speed, and nothing but rounding of what it finds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sep_core.layout import lay_out

CHANNELS_LAST = torch.channels_last


def laid_out(channels: int) -> nn.Conv2d:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    return lay_out(convolution)


def maps(channels: int, side: int) -> Tensor:
    drawn = torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=CHANNELS_LAST).requires_grad_()


@pytest.mark.parametrize("side", [2, 4])
def test_large_convolutions_of_small_maps_go_by_channels(side: int) -> None:
    convolution, taken = laid_out(256), maps(256, side)
    found = convolution(taken)
    assert found.is_contiguous()
    assert convolution.weight.is_contiguous()
    expected = functional.conv2d(taken.double(), convolution.weight.double(), padding=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.square().sum(), taken)
    (expected,) = torch.autograd.grad(expected.square().sum(), taken)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "side", "bfloat16"), [(256, 5, False), (128, 4, False), (256, 4, True)]
)
def test_all_others_have_channels_last(channels: int, side: int, *, bfloat16: bool) -> None:
    convolution = laid_out(channels)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        found = convolution(maps(channels, side))
    assert found.is_contiguous(memory_format=CHANNELS_LAST)
    assert convolution.weight.is_contiguous(memory_format=CHANNELS_LAST)
