"""Residual networks of 18 layers: ResNet-18, SE-ResNet-18 and the small one."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from sep_core.costs import LARGE_PIXELS

SQUEEZE = 16


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2).

    With `squeeze` the sum's first term is rescaled by channel (Hu et al. 2018, figure 3, r = 16).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        if squeeze:
            self.body.append(SqueezeExcitation(outputs, outputs // SQUEEZE))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, s, s) to (b, outputs, s / stride, s / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class GlobalAverage(nn.Module):
    """The mean of every channel: (b, c, s, s) to (b, c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Averages over rows and columns."""
        return x.mean((2, 3))


def trunk(side: int, width: int, *, squeeze: bool = False) -> tuple[nn.Module, int]:
    """ResNet-18 (He et al. 2016), its first stage `width` channels wide; 64 is the original.

    At small sides the stem is the CIFAR form's, one 3x3 convolution; at large sides it divides the
    side by four before the first stage, as in the original and torchvision: 7x7 and pooling.
    """
    stem = _large_stem(width) if side >= LARGE_PIXELS else _stem(width, kernel=3, stride=1)
    stages = nn.Sequential(*_stages([width, width, 2 * width, 4 * width, 8 * width], squeeze))
    return nn.Sequential(stem, stages, GlobalAverage()), 8 * width


def _large_stem(width: int) -> nn.Sequential:
    return _stem(width, kernel=7, stride=2).append(nn.MaxPool2d(3, 2, 1))


def _stem(width: int, *, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _stages(widths: list[int], squeeze: bool) -> Iterator[nn.Module]:
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        yield BasicBlock(inputs, outputs, 1 if index == 0 else 2, squeeze)
        yield BasicBlock(outputs, outputs, 1, squeeze)
