"""Networks that serve as surrogate and as appropriator; every one has `features()`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sep_core.config import NetworkName
from sep_core.networks import convolutional, floor, resnet, vit
from sep_core.networks.initial import draw_weights

# A trunk takes normalised images of its side to penultimate features: (b, 3, s, s) to (b, d).
# Each entry makes one, and says its d, for the side of the images.
TRUNKS: Mapping[NetworkName, Callable[[int], tuple[nn.Module, int]]] = {
    "resnet18": partial(resnet.trunk, width=64),
    "senet18": partial(resnet.trunk, width=64, squeeze=True),
    "vgg16": convolutional.vgg16,
    "densenet121": convolutional.densenet121,
    "googlenet": convolutional.googlenet,
    "vit": vit.trunk,
    "mlp": floor.mlp,
    "linear": floor.linear,
    "small": partial(resnet.trunk, width=16),
}


class Network(nn.Module):
    """Any of the networks: normalisation, a trunk and a linear head.

    Args:
        trunk: normalised images to features, (b, 3, s, s) to (b, d).
        head: features to logits, (b, d) to (b, y).
        mean, std: of the training pixels' channels, in [0, 1].
    """

    def __init__(
        self, trunk: nn.Module, head: nn.Linear, mean: Float[Tensor, "3"], std: Float[Tensor, "3"]
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone().view(1, 3, 1, 1))
        self.register_buffer("std", std.clone().view(1, 3, 1, 1))
        self.trunk = trunk
        self.head = head

    def features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Penultimate features of images in [0, 1]: what the head sees."""
        x = (images - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return cast(Tensor, self.trunk(x.contiguous(memory_format=torch.channels_last)))

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b y"]:
        """Logits of images in [0, 1]."""
        return cast(Tensor, self.head(self.features(images)))


def build(
    name: NetworkName,
    classes: int,
    side: int,
    mean: Float[Tensor, "3"],
    std: Float[Tensor, "3"],
    draws: torch.Generator,
) -> Network:
    """A network for images of one size, its initial weights drawn from `draws` alone.

    Args:
        name: see `TRUNKS`.
        classes: number of classes.
        side: of the square images in pixels, at least 16. Below `costs.LARGE_PIXELS` a network
            has the form that 32-pixel images need, from there on torchvision's.
        mean, std: of the training pixels' channels, in [0, 1].
        draws: a CPU generator.
    """
    trunk, head = form(name, classes, side)
    network = Network(trunk.to_empty(device="cpu"), head.to_empty(device="cpu"), mean, std)
    draw_weights(network, draws)
    return network.to(memory_format=torch.channels_last)


def form(name: NetworkName, classes: int, side: int) -> tuple[nn.Module, nn.Linear]:
    """Trunk and head without memory, on the `meta` device; see `build`."""
    with torch.device("meta"):  # and no draw from PyTorch's own generator
        trunk, features = TRUNKS[name](side)
        return trunk, nn.Linear(features, classes)
