"""The optimiser of a training, its rate over time, and the size of its batches."""

import math
from collections.abc import Mapping

import torch

from sep_core.config import NetworkName, SEPConfig
from sep_core.networks import Network

# A transformer learns nothing by SGD at a convolutional network's rate: decoupled weight decay
# (AdamW; Loshchilov & Hutter 2019) at a hundredth of it, 0.001 where the recipe says 0.1.
ADAM: frozenset[NetworkName] = frozenset({"vit"})
ADAM_RATE, ADAM_WEIGHT_DECAY = 0.01, 0.05
SGD_RATES: Mapping[NetworkName, float] = {"vgg16": 0.1}
"""What the recipe's rate is multiplied by. Without shortcuts VGG-16 learns next to nothing of 2,500
images at 0.1, and its large form leaves the numbers; torchvision trains it at 0.01."""


def new_optimiser(
    name: NetworkName, network: Network, config: SEPConfig
) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser, and what it multiplies the scheduled rate by."""
    if name in ADAM:
        return torch.optim.AdamW(network.parameters(), weight_decay=ADAM_WEIGHT_DECAY), ADAM_RATE
    return torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    ), SGD_RATES.get(name, 1.0)


def batch_count(images: int, batch_size: int) -> int:
    """Batches an epoch, sizes as equal as can be: a last batch of one breaks batch norm."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def learning_rate(config: SEPConfig, epochs: int, at: float) -> float:
    """The rate at `at` epochs: linear warm-up, then the step or cosine schedule."""
    if at < config.warmup_epochs:
        rise = at / config.warmup_epochs
        low = config.warmup_learning_rate
        return low + rise * (config.learning_rate - low)
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(at >= m * epochs for m in config.milestones)
    share = (at - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
