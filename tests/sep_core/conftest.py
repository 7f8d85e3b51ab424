"""Shapes and dtypes in sep_core's annotations are checked at run time; small data for its tests."""
# ruff: noqa: E402  the checker comes before what it checks

from tests.sep_core import typechecker

# Before anything imports sep_core. Where it comes too late, test_annotations.py fails.
typechecker.install()

import pytest
import torch
from torch import Tensor, nn

from sep_core.config import Plan, SEPConfig
from sep_core.networks import Network, build
from sep_core.surrogate import Checkpoint, freeze

torch.set_num_threads(1)  # the tensors are so small that a second thread only waits

CLASSES = 3
SIDE = 16
SEED = "0123456789abcdef" * 2

Data = tuple[Tensor, Tensor]


@pytest.fixture
def plan() -> Plan:
    return Plan(device="cpu", precision="float32", threads=1)


@pytest.fixture
def config() -> SEPConfig:
    """Resolved, and small enough for a test."""
    return SEPConfig(
        variant="sep-fa",
        epsilon_levels=4,
        steps=3,
        checkpoints=2,
        inner_steps=4,
        surrogate="small",
        appropriator="small",
        input_pixels=SIDE,
        epochs=4,
        appropriator_epochs=2,
        batch_size=8,
        crop_padding=2,
        target_map=(1, 2, 0),
        seed=SEED,
        precision="float32",
    )


@pytest.fixture
def data() -> Data:
    """24 images, eight a class; every class has its colour, so that it can be learned."""
    draws = torch.Generator().manual_seed(1)
    labels = torch.arange(24) % CLASSES
    pixels = torch.randint(0, 160, (24, 3, SIDE, SIDE), generator=draws)
    pixels[torch.arange(24), labels] += 90
    return pixels.to(torch.uint8), labels


@pytest.fixture
def networks() -> list[Network]:
    """Three networks as training leaves them: eval mode, running statistics of their own."""
    return [_network(number) for number in range(3)]


@pytest.fixture
def ensemble(networks: list[Network]) -> list[Checkpoint]:
    draws = torch.Generator().manual_seed(2)
    return [
        Checkpoint(k + 1, freeze(network), torch.rand(CLASSES, 128, generator=draws) * 4 * (k + 1))
        for k, network in enumerate(networks)
    ]


def _network(number: int) -> Network:
    draws = torch.Generator().manual_seed(100 + number)
    network = build("small", CLASSES, SIDE, torch.full((3,), 0.5), torch.full((3,), 0.25), draws)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=draws) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=draws) + 0.5)
    return network.eval()
