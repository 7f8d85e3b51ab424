"""Weights from elsewhere: a state dict of torchvision's networks, or of ours, as ours load it."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn
from torchvision import models

from sep_core.config import NetworkName
from sep_core.costs import LARGE_PIXELS
from sep_core.networks import Network, form

# Networks that torchvision publishes weights for: ours have their layers, in their order.
PUBLISHED: Mapping[NetworkName, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "vgg16": models.vgg16_bn,
    "densenet121": models.densenet121,
    "googlenet": partial(models.googlenet, aux_logits=False, init_weights=False),
}
# What ImageNet's pixels are normalised by, in [0, 1]: mean and standard deviation of the channels.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# GoogLeNet's weights came from TensorFlow, for pixels in [-1, 1]: torchvision's `transform_input`.
NORMALISATION: Mapping[NetworkName, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "googlenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
}
OURS = ("trunk.", "head.")
# Heads of a training that are not part of ours, and counters that nothing reads.
UNUSED = re.compile(r"aux[12]\.|.*\.num_batches_tracked$")
# Names of DenseNet's layers in the published file, which torchvision mends as well.
DOTTED = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
DENSE_OF_VGG = "trunk.3."  # which its small form is without
DIFFERENCES_SHOWN = 3


def adopt(name: NetworkName, side: int, state: object) -> dict[str, Tensor]:
    """Everything of a network but its head, by our names and in float32.

    Weights that torchvision publishes for ImageNet load as they are, from `LARGE_PIXELS` up; below,
    those of VGG-16, whose small form is its convolutions. Where `state` does not bring the pixels'
    normalisation, it is ImageNet's.

    Args:
        name, side: of the network that is to load it; see `build`.
        state: a state dict, of ours or by torchvision's names, for any number of classes.

    Raises:
        ValueError: it is no state dict, or another network's; the message says what was expected
            and what came, by the names in `state`.
    """
    tensors = _tensors(state)
    by_our_names = any(key.startswith(OURS) for key in tensors)
    theirs = {} if by_our_names else _their_names(name)
    expected = _shapes(name, side)
    mean, std = NORMALISATION.get(name, IMAGENET)
    body = {"mean": _channels(mean), "std": _channels(std)} | _body(tensors, theirs)
    if name == "vgg16" and side < LARGE_PIXELS:
        body = {key: v for key, v in body.items() if not key.startswith(DENSE_OF_VGG)}
    if differences := list(_differences(expected, body, theirs)):
        raise ValueError(
            f"expected the weights of {name} for images of {side} pixels: {_some(differences)}"
            + ("" if by_our_names else _hint(name, side))
        )
    return {key: value.float() for key, value in body.items()}


def _tensors(state: object) -> dict[str, Tensor]:
    """By name, without what nothing reads."""
    if not isinstance(state, Mapping):
        raise ValueError(f"expected a state dict, got {type(state).__name__}")  # noqa: TRY004
    tensors = {str(key): value for key, value in state.items() if not UNUSED.match(str(key))}
    for key, value in tensors.items():
        if not (isinstance(value, Tensor) and _is_plain(value)):
            kind = _kind(value) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"expected a state dict of floating-point tensors, got {kind} as {key}"
            )
        if not value.isfinite().all():
            raise ValueError(f"expected finite weights, got others in {key}")
    return tensors


def _is_plain(value: Tensor) -> bool:
    """Whether it has values, one by one, in a type that can be computed with."""
    there = value.layout is torch.strided and not value.is_meta
    return there and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _kind(value: Tensor) -> str:
    return f"{value.dtype}, {value.layout}, on {value.device}"


def _body(tensors: Mapping[str, Tensor], theirs: Mapping[str, str]) -> dict[str, Tensor]:
    """By our names, without the head; what has no name of ours keeps its own."""
    ours = {their: our for our, their in theirs.items()}
    mended = {DOTTED.sub(r"\1\2", key): value for key, value in tensors.items()}
    renamed = {ours.get(key, key): value for key, value in mended.items()}
    return {key: value for key, value in renamed.items() if not key.startswith("head.")}


@cache
def _their_names(name: NetworkName) -> Mapping[str, str]:
    """torchvision's by ours, of the large form: the same layers in the same order."""
    if name not in PUBLISHED:
        return {}
    with torch.device("meta"):
        theirs = PUBLISHED[name]().state_dict()
    ours = [key for key in _state(name, LARGE_PIXELS) if key not in {"mean", "std"}]
    return dict(zip(ours, theirs, strict=True))


def _shapes(name: NetworkName, side: int) -> dict[str, torch.Size]:
    """Of everything that is to be loaded."""
    return {
        key: value.shape
        for key, value in _state(name, side).items()
        if not key.startswith("head.") and not UNUSED.match(key)
    }


def _state(name: NetworkName, side: int) -> dict[str, Tensor]:
    """Names and shapes alone: on the `meta` device."""
    channels = torch.empty(3, device="meta")
    return Network(*form(name, 1, side), channels, channels).state_dict()


def _differences(
    expected: Mapping[str, torch.Size], body: Mapping[str, Tensor], theirs: Mapping[str, str]
) -> Iterator[str]:
    given = {key: value.shape for key, value in body.items()}
    for key in dict.fromkeys([*expected, *given]):
        if expected.get(key) != given.get(key):
            wanted, got = _shape(expected.get(key)), _shape(given.get(key))
            yield f"{theirs.get(key, key)}: expected {wanted}, got {got}"


def _shape(size: torch.Size | None) -> str:
    return "none" if size is None else f"shape {tuple(size)}"


def _some(differences: list[str]) -> str:
    more = len(differences) - DIFFERENCES_SHOWN
    return "; ".join(differences[:DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _hint(name: NetworkName, side: int) -> str:
    if name not in PUBLISHED:
        return f". torchvision publishes none for {name}: expected the names of our own state dict"
    if side < LARGE_PIXELS:
        return f". Below {LARGE_PIXELS} pixels {name} has another stem than torchvision's"
    return ""


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
