"""Weights by torchvision's names and by ours, against torchvision's own networks."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from sep_core.config import NetworkName
from sep_core.countermeasures import begin
from sep_core.networks import Network, build
from sep_core.networks.published import adopt

MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
IMAGENET = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
State = dict[str, Tensor]


def _build(name: NetworkName, side: int, seed: int = 0) -> Network:
    return build(name, 5, side, MEAN, STD, torch.Generator().manual_seed(seed))


def _images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def _lived(network: nn.Module) -> nn.Module:
    """With running statistics and norms of its own."""
    draws = torch.Generator().manual_seed(1)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            assert value is not None
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
    return network.eval()


def _without_counters(state: State) -> State:
    """As files from before there were any."""
    return {key: value for key, value in state.items() if "num_batches" not in key}


def _dotted(state: State) -> State:
    """As the published file has them: `denselayer1.norm.1` and so on."""
    return {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", k): v for k, v in state.items()}


def _statistics_first(state: State) -> State:
    """As some old files have them; shapes alone would not tell."""
    return dict(sorted(state.items(), key=lambda item: "running" not in item[0]))


# GoogLeNet's file brings its auxiliary heads, and is read with `transform_input`.
Make = Callable[[], nn.Module]
PUBLISHED: list[tuple[NetworkName, Make, Callable[[State], State]]] = [
    ("resnet18", models.resnet18, _statistics_first),
    ("vgg16", models.vgg16_bn, _without_counters),
    ("densenet121", models.densenet121, lambda state: _without_counters(_dotted(state))),
    (
        "googlenet",
        partial(models.googlenet, aux_logits=True, transform_input=True, init_weights=False),
        dict,
    ),
]


def _headless(network: nn.Module) -> nn.Module:
    for name in ("fc", "classifier"):
        head = getattr(network, name, None)
        if isinstance(head, nn.Sequential):
            head[-1] = nn.Identity()
        elif head is not None:
            setattr(network, name, nn.Identity())
    return network


@pytest.mark.parametrize(("name", "make", "filed"), PUBLISHED)
def test_weights_as_torchvision_publishes_them_give_its_features(
    name: NetworkName, make: Make, filed: Callable[[State], State]
) -> None:
    theirs, ours, images = _lived(make()), _build(name, 64), _images(64)
    begin(ours, "pretrained-frozen", adopt(name, 64, filed(theirs.state_dict())))
    with torch.no_grad():
        expected = _headless(theirs)((images - _channels(IMAGENET.mean)) / _channels(IMAGENET.std))
        found = ours.eval().features(images)
    assert expected.shape == found.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _channels(values: Any) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def test_the_small_form_of_vgg_takes_the_published_convolutions() -> None:
    theirs, ours, images = models.vgg16_bn(), _build("vgg16", 32), _images(32)
    begin(ours, "pretrained-tuned", adopt("vgg16", 32, _lived(theirs).state_dict()))
    with torch.no_grad():
        normal = (images - _channels(IMAGENET.mean)) / _channels(IMAGENET.std)
        expected = theirs.features(normal).mean((2, 3))
        torch.testing.assert_close(ours.eval().features(images), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", get_args(NetworkName))
def test_weights_of_our_own_are_taken_with_their_normalisation(name: NetworkName) -> None:
    given, other = _build(name, 16).state_dict(), _build(name, 16, seed=3)
    head = other.head.weight.clone()
    begin(other, "pretrained-frozen", adopt(name, 16, given))
    for key, value in other.state_dict().items():
        assert torch.equal(value, given[key]) != key.startswith("head.weight"), key
    assert torch.equal(other.head.weight, head)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("small", IMAGENET.mean, IMAGENET.std),
        ("googlenet", [0.5] * 3, [0.5] * 3),
    ],
)
def test_normalisation_is_imagenets_where_the_file_brings_none(
    name: NetworkName, mean: list[float], std: list[float]
) -> None:
    state = {k: v for k, v in _build(name, 16).state_dict().items() if k not in {"mean", "std"}}
    found = adopt(name, 16, state)
    assert found["mean"].flatten().tolist() == pytest.approx(mean)
    assert found["std"].flatten().tolist() == pytest.approx(std)


def test_half_precision_is_read_as_single() -> None:
    state = {k: v.half() for k, v in _build("mlp", 16).state_dict().items()}
    assert {value.dtype for value in adopt("mlp", 16, state).values()} == {torch.float32}


def _resnet18() -> State:
    return dict(models.resnet18().state_dict())


@pytest.mark.parametrize(
    ("name", "side", "state", "sentence"),
    [
        (
            "resnet18",
            32,
            _resnet18,
            (
                "images of 32 pixels: conv1.weight: expected shape (64, 3, 3, 3), got shape "
                "(64, 3, 7, 7). Below 64 pixels resnet18 has another stem than torchvision's"
            ),
        ),
        (
            "resnet18",
            64,
            lambda: models.resnet34().state_dict(),
            "layer1.2.conv1.weight: expected none, got shape (64, 64, 3, 3)",
        ),
        (
            "resnet18",
            64,
            lambda: {k: v for k, v in _resnet18().items() if k != "layer4.1.conv2.weight"},
            "layer4.1.conv2.weight: expected shape (512, 512, 3, 3), got none",
        ),
        ("resnet18", 64, lambda: _build("resnet18", 32).state_dict(), "trunk.0.0.weight: expected"),
        ("senet18", 64, _resnet18, "torchvision publishes none for senet18"),
        ("vit", 32, lambda: _build("vit", 64).state_dict(), "got shape (192, 3, 8, 8)"),
        ("small", 16, dict, "; and "),
        ("small", 16, lambda: [1], "expected a state dict, got list"),
        (
            "small",
            16,
            lambda: {"epoch": 3, "state_dict": {}},
            "expected a state dict of floating-point tensors, got int as epoch",
        ),
        ("small", 16, lambda: {"a": torch.eye(2).to_sparse()}, "torch.sparse_coo, on cpu as a"),
        ("small", 16, lambda: {"a": torch.ones(2, device="meta")}, "on meta as a"),
        ("small", 16, lambda: {"a": torch.ones(2).to(torch.float8_e5m2)}, "got torch.float8_e5m2"),
        (
            "small",
            16,
            lambda: {"a": torch.arange(3)},
            "got torch.int64, torch.strided",
        ),
        (
            "small",
            16,
            lambda: _build("small", 16).state_dict() | {"std": torch.full((1, 3, 1, 1), torch.nan)},
            "expected finite weights, got others in std",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    name: NetworkName, side: int, state: Callable[[], object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        adopt(name, side, state())
