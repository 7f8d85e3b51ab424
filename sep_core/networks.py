"""Networks that serve as surrogate and as appropriator; every one has `features()`."""

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sep_core.config import NetworkName

WIDTHS: dict[NetworkName, int] = {"resnet18": 64, "small": 16}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, s, s) to (b, outputs, s / stride, s / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 with a 3x3 stem (He et al. 2016, CIFAR form), normalisation inside.

    Args:
        classes: number of classes.
        width: channels of the first stage; 64 is ResNet-18.
        mean, std: of the training pixels' channels, in [0, 1].
    """

    def __init__(self, classes: int, width: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone().view(1, 3, 1, 1))
        self.register_buffer("std", std.clone().view(1, 3, 1, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(*_stages([width, width, 2 * width, 4 * width, 8 * width]))
        self.head = nn.Linear(8 * width, classes)

    def features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Penultimate features: the globally averaged last stage."""
        x = (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.stages(self.stem(x))).mean((2, 3))

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b y"]:
        """Logits of images in [0, 1]."""
        return cast(Tensor, self.head(self.features(images)))


def _stages(widths: list[int]) -> Iterator[nn.Module]:
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        yield BasicBlock(inputs, outputs, 1 if index == 0 else 2)
        yield BasicBlock(outputs, outputs, 1)


def build(
    name: NetworkName,
    classes: int,
    mean: Float[Tensor, "3"],
    std: Float[Tensor, "3"],
    draws: torch.Generator,
) -> ResNet:
    """A network with its initial weights drawn from `draws` (He et al. 2015, fan-in)."""
    network = ResNet(classes, WIDTHS[name], mean, std)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draws)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network.to(memory_format=torch.channels_last)
