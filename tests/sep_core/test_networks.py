import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sep_core.config import FORWARD_GFLOP, NetworkName
from sep_core.networks import WIDTHS, ResNet, build

NAMES: list[NetworkName] = ["resnet18", "small"]
MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])


def _build(name: NetworkName, seed: int = 0) -> ResNet:
    return build(name, 10, MEAN, STD, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_as_published(name: NetworkName) -> None:
    with FlopCounterMode(display=False) as counter:
        _build(name).eval()(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 1e9 == pytest.approx(FORWARD_GFLOP[name], rel=0.05)


def test_resnet18_has_the_parameters_of_resnet18() -> None:
    assert sum(p.numel() for p in _build("resnet18").parameters()) == 11_173_962


@pytest.mark.parametrize("side", [16, 32, 37])
def test_logits_are_the_head_of_the_features(side: int) -> None:
    network, images = _build("small").eval(), torch.rand(2, 3, side, side)
    features = network.features(images)
    assert features.shape == (2, 8 * WIDTHS["small"])
    assert features.min() >= 0
    assert torch.equal(network(images), network.head(features))


def test_normalisation_is_inside() -> None:
    network, images = _build("small").eval(), torch.rand(2, 3, 16, 16)
    normalised = (images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    network_without = _build("small").eval()
    network_without.mean, network_without.std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    torch.testing.assert_close(network(images), network_without(normalised))


def test_the_generator_alone_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in _build("small", seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_weights_have_the_variance_of_he() -> None:
    for module in _build("resnet18").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_in = module.weight[0].numel()
            assert float(module.weight.detach().var()) == pytest.approx(2 / fan_in, rel=0.05)
