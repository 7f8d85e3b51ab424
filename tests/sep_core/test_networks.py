"""Every network against a formula, torchvision's own and published counts, and by properties."""

import copy
from collections.abc import Callable
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from sep_core.config import NetworkName
from sep_core.costs import forward_gflop
from sep_core.networks import Network, build
from sep_core.networks.convolutional import AveragePool
from sep_core.networks.resnet import BasicBlock
from sep_core.surrogate import freeze
from tests.sep_core import formulas

NAMES: tuple[NetworkName, ...] = get_args(NetworkName)
CLASSES = 10
MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])

every_network = pytest.mark.parametrize("name", NAMES)


def _build(name: NetworkName, side: int = 32, seed: int = 0) -> Network:
    return build(name, CLASSES, side, MEAN, STD, torch.Generator().manual_seed(seed))


@cache
def _trained(name: NetworkName, side: int = 32) -> Network:
    """In eval mode; biases, norms and their statistics its own. Shared: not to be changed."""
    network, draws = _build(name, side), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if parameter.dim() == 1 or key.endswith("class_token"):
                parameter.add_(torch.randn(parameter.shape, generator=draws) / 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=draws) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=draws) + 0.5)
    return network.eval()


def _images(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def _assert_close(ours: Tensor, theirs: Tensor, rtol: float = 1e-3, share: float = 1e-4) -> None:
    """Equal but for rounding, which grows with the largest logit."""
    atol = share * float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


# The convolutional networks have no weight that depends on the side.
CASES = [(name, side, side) for name in NAMES for side in (32, 37, 64)]
CASES += [(name, 64, 75) for name in NAMES if name not in {"vit", "mlp", "linear"}]


@pytest.mark.parametrize(("name", "built_for", "side"), CASES)
def test_features_and_logits_are_those_of_a_formula(
    name: NetworkName, built_for: int, side: int
) -> None:
    network, images = _trained(name, built_for), _images(2, side)
    with torch.no_grad():
        features = formulas.features(name, network.state_dict(), images)
        logits = formulas.logits(network.state_dict(), features)
        # So close that another epsilon of a norm, or GELU by tanh, is told apart.
        _assert_close(network.features(images), features, rtol=0, share=3e-5)
        _assert_close(network(images), logits, rtol=0, share=3e-5)


def _small_resnet18() -> nn.Module:
    network: nn.Module = models.resnet18(num_classes=CLASSES)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return network


OTHERS: list[tuple[NetworkName, int, Callable[[], nn.Module]]] = [
    ("resnet18", 32, _small_resnet18),
    ("resnet18", 64, lambda: models.resnet18(num_classes=CLASSES)),
    ("vgg16", 64, lambda: models.vgg16_bn(num_classes=CLASSES)),
    ("densenet121", 64, lambda: models.densenet121(num_classes=CLASSES)),
    (
        "googlenet",
        64,
        lambda: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
    ),
    ("vit", 64, lambda: models.VisionTransformer(64, 8, 6, 3, 192, 768, num_classes=CLASSES)),
]


@pytest.mark.parametrize(("name", "side", "make"), OTHERS)
def test_logits_are_those_of_torchvisions_network_with_the_same_weights(
    name: NetworkName, side: int, make: Callable[[], nn.Module]
) -> None:
    ours = _trained(name, side)
    with torch.device("meta"):
        theirs = make()
    weights = [v for k, v in ours.state_dict().items() if k not in {"mean", "std"}]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)), assign=True)
    images = _images(2, side)
    with torch.no_grad():
        expected = theirs.eval()((images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))
        _assert_close(ours(images), expected)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 12])
def test_average_pooling_is_torchs(side: int) -> None:
    x = torch.rand(2, 5, side, side, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(AveragePool()(x), functional.adaptive_avg_pool2d(x, 7))


def test_squeeze_and_excitation_rescales_the_body() -> None:
    """Hu et al. 2018, equations 2 to 4."""
    network = _trained("senet18")
    block = next(m for m in network.modules() if isinstance(m, BasicBlock))
    *body, excitation = block.body
    x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(4))
    w1, b1, w2, b2 = (p.detach().flatten(1) if p.dim() == 4 else p for p in excitation.parameters())
    with torch.no_grad():
        u = nn.Sequential(*body)(x)
        s = torch.sigmoid(torch.relu(u.mean((2, 3)) @ w1.T + b1) @ w2.T + b2)
        torch.testing.assert_close(block(x), torch.relu(u * s[:, :, None, None] + x))


VIT = 6 * (4 * 192 * 192 + 4 * 192 + 2 * 192 * 768 + 768 + 192 + 4 * 192) + 2 * 192 + 66 * 192


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        # With ten classes, as published for the usual CIFAR forms; DenseNet's has no first norm.
        ("resnet18", 32, 11_173_962),
        ("vgg16", 32, 14_728_266),
        ("densenet121", 32, 6_956_298 + 2 * 64),
        # With a thousand classes, as published by torchvision, and by timm for SE-ResNet-18.
        ("resnet18", 64, 11_689_512 - 990 * 513),
        ("senet18", 64, 11_778_592 - 990 * 513),
        ("vgg16", 64, 138_365_992 - 990 * 4097),
        ("densenet121", 64, 7_978_856 - 990 * 1025),
        ("googlenet", 64, 6_624_904 - 990 * 1025),
        ("vit", 32, VIT + 49 * 192 + 1930),
        ("vit", 64, VIT + 193 * 192 + 1930),
        ("mlp", 32, (3072 + 512) * 512 + 4 * 512 + 5130),
        ("linear", 32, 30_730),
        ("linear", 64, 122_890),
        # A sixteenth of ResNet-18's convolutions but the first, and a quarter of its norms.
        ("small", 32, (11_173_962 - 1728 - 9600 - 5130) // 16 + 432 + 2400 + 1290),
    ],
)
def test_parameters_are_as_many_as_published(name: NetworkName, side: int, count: int) -> None:
    assert sum(p.numel() for p in _trained(name, side).parameters()) == count


@pytest.mark.parametrize("side", [32, 64, 128, 224])
@every_network
def test_cost_is_as_stated(name: NetworkName, side: int) -> None:
    # The convolutional networks have no weight that depends on the side.
    network = _trained(name, side if name in {"vit", "mlp", "linear"} else min(side, 64))
    weights = {key: value.to("meta") for key, value in network.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        functional_call(network, weights, torch.empty(1, 3, side, side, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(forward_gflop(name, side), rel=0.02)


@pytest.mark.parametrize("side", [16, 37, 64])
@every_network
def test_logits_are_the_head_of_the_features(name: NetworkName, side: int) -> None:
    network, images = _trained(name, side), _images(2, side)
    with torch.no_grad():
        features = network.features(images)
        assert features.shape == (2, network.head.in_features)
        assert torch.equal(network(images), network.head(features))
    assert network.head.out_features == CLASSES


@every_network
def test_normalisation_is_inside(name: NetworkName) -> None:
    network, images = _trained(name), _images(2)
    bare = copy.deepcopy(network)
    bare.mean, bare.std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    with torch.no_grad():
        _assert_close(network(images), bare((images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)))


@every_network
def test_the_generator_alone_decides_every_weight(name: NetworkName) -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([v.flatten() for v in _build(name, 16, seed).state_dict().values()])

    before = torch.get_rng_state()
    torch.use_deterministic_algorithms(True)  # what is left uninitialised is NaN
    try:
        first, again, other = weights(1), weights(1), weights(2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_have_the_variance_of_he() -> None:
    for module in _build("resnet18").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_in = module.weight[0].numel()
            assert float(module.weight.detach().var()) == pytest.approx(2 / fan_in, rel=0.05)


@every_network
def test_freezing_changes_outputs_by_rounding_alone(name: NetworkName) -> None:
    network, images = _trained(name), _images(2)
    frozen = freeze(network)
    norms = [m for m in frozen.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    # The norms before a convolution: of 58 layers, of 3 transitions, and the last one.
    assert len(norms) == (58 + 3 + 1 if name == "densenet121" else 0)
    with torch.no_grad():
        _assert_close(frozen(images), network(images))
        _assert_close(frozen.features(images), network.features(images))


@every_network
def test_an_image_is_seen_alone_and_its_gradient_is_its_own(name: NetworkName) -> None:
    network, images = freeze(_trained(name)), _images(3).requires_grad_()
    logits = network(images)
    _assert_close(logits[1:2], network(images[1:2]))
    (gradient,) = torch.autograd.grad(logits[1].square().sum(), images)
    assert gradient[1].abs().max() > 0
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0


@every_network
def test_bfloat16_agrees_with_float32(name: NetworkName) -> None:
    network, images = freeze(_trained(name)), _images(4)
    with torch.no_grad():
        exact = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images).float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


@every_network
def test_training_lowers_the_loss_and_draws_nothing(name: NetworkName) -> None:
    network, images, labels = _build(name, 16).train(), _images(4, 16), torch.arange(4)
    before = torch.get_rng_state()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=1.0 if name == "linear" else 0.01, momentum=0.9
    )
    losses = []
    for _ in range(6):
        loss = functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(torch.get_rng_state(), before)
