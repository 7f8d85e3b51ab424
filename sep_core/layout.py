"""How a frozen network lies in memory: the fastest layout depends on the size of the maps."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

LEAST_WEIGHTS, MOST_PIXELS = 2**19, 16
"""Of a convolution, and of the maps that it takes: those of ResNet-18's last stage at 32 pixels.
In channels-last oneDNN goes through all weights for every few pixels. With 2^19 of them that takes
1.4 times as long as by channels, on maps of 2 x 2 3.5 times; with 2^17 a tenth less. A pass
through ResNet-18 at 32 pixels takes a tenth less for it, through VGG-16 two fifths; through
GoogLeNet, whose branches come together in two layouts, up to a tenth more."""


def lay_out(network: Network) -> Network:
    """Channels-last, but for large convolutions of small maps on a CPU in float32.

    Their weights are laid out anew by the first pass: the same values, which `torch.save` writes as
    other bytes then. So a checkpoint is stored when its class means are there, never before.
    """
    for module in network.to(memory_format=torch.channels_last).modules():
        if isinstance(module, nn.Conv2d) and _is_large(module):
            module.register_forward_pre_hook(_by_channels)
    return network


def _is_large(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size != (1, 1) and convolution.weight.numel() >= LEAST_WEIGHTS


def _by_channels(module: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
    (maps,) = inputs
    reduced = maps.dtype is not torch.float32 or torch.is_autocast_enabled("cpu")
    if reduced or maps.device.type != "cpu" or maps.shape[2] * maps.shape[3] > MOST_PIXELS:
        return None
    assert isinstance(module.weight, nn.Parameter)
    module.weight.data = module.weight.data.contiguous()
    return maps.contiguous()
