"""Features of every network, worked out from its weights alone: no module of ours or torchvision's.

A formula takes the weights in the order in which the layers use them, so it knows no names either.
Sources are those that the networks name; batch norm, attention and GELU are written out.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = Iterator[Tensor]

VGG_LAYERS = (2, 2, 3, 3, 3)
DENSE_LAYERS = (6, 12, 24, 16)
LARGE = 64


def features(name: str, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """(b, d), of images in [0, 1]; every weight but the head's is used once."""
    weights = iter([value for key, value in state.items() if "num_batches" not in key][:-2])
    mean, std = next(weights), next(weights)
    found = FORMULAS[name](weights, (images - mean) / std)
    assert not list(weights)
    return found


def logits(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Of the head, whose weights come last."""
    weight, bias = list(state.values())[-2:]
    return features @ weight.T + bias


def _norm(w: Weights, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch norm by running statistics (Ioffe & Szegedy 2015, algorithm 2)."""
    scale, shift, mean, variance = (next(w).view(-1, *[1] * (x.dim() - 2)) for _ in range(4))
    return scale * (x - mean) / (variance + eps).sqrt() + shift


def _conv(w: Weights, x: Tensor, stride: int = 1) -> Tensor:
    """Without bias; odd kernels keep the side."""
    kernel = next(w)
    return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def _conv_norm_relu(w: Weights, x: Tensor, stride: int = 1, eps: float = 1e-5) -> Tensor:
    return _norm(w, _conv(w, x, stride), eps).relu()


def _dense(w: Weights, x: Tensor) -> Tensor:
    weight, bias = next(w), next(w)
    return x @ weight.T + bias


def _pool(x: Tensor, kernel: int, stride: int, padding: int = 0, *, whole: bool = False) -> Tensor:
    """The largest value of each window, those that reach over the last edge too, or whole ones."""
    missing = (kernel - 2 * padding - x.shape[-1]) % stride
    last = padding + (0 if whole else missing)
    padded = functional.pad(x, [padding, last] * 2, value=-math.inf)
    return padded.unfold(2, kernel, stride).unfold(3, kernel, stride).amax((-2, -1))


def _resnet(squeeze: bool) -> Callable[[Weights, Tensor], Tensor]:
    """He et al. 2016, table 1, 18 layers; Hu et al. 2018, equations 2 to 4."""

    def block(w: Weights, x: Tensor, stride: int, widens: bool) -> Tensor:
        y = _norm(w, _conv(w, _conv_norm_relu(w, x, stride)))
        if squeeze:
            w1, b1, w2, b2 = (next(w).flatten(1) if i % 2 == 0 else next(w) for i in range(4))
            s = torch.sigmoid((y.mean((2, 3)) @ w1.T + b1).relu() @ w2.T + b2)
            y = y * s[:, :, None, None]
        return (y + (_norm(w, _conv(w, x, stride)) if widens else x)).relu()

    def whole(w: Weights, x: Tensor) -> Tensor:
        if x.shape[-1] >= LARGE:
            x = _pool(_conv_norm_relu(w, x, stride=2), 3, 2, padding=1, whole=True)
        else:
            x = _conv_norm_relu(w, x)
        for stage in range(4):
            x = block(w, x, 1 if stage == 0 else 2, widens=stage > 0)
            x = block(w, x, 1, widens=False)
        return x.mean((2, 3))

    return whole


def _vgg16(w: Weights, x: Tensor) -> Tensor:
    """Simonyan & Zisserman 2015, table 1, D; with batch norm, and convolutions that have a bias."""
    large = x.shape[-1] >= LARGE
    for stage, layers in enumerate(VGG_LAYERS):
        for _ in range(layers):
            kernel, bias = next(w), next(w)
            x = _norm(w, functional.conv2d(x, kernel, bias, padding=1)).relu()
        x = _pool(x, 2, 2, whole=large or stage < 4)
    if not large:
        return x.mean((2, 3))
    x = functional.adaptive_avg_pool2d(x, 7).flatten(1)
    return _dense(w, _dense(w, x).relu()).relu()


def _densenet121(w: Weights, x: Tensor) -> Tensor:
    """Huang et al. 2017, table 1: norm, ReLU and convolution in this order, growth 32."""
    if x.shape[-1] >= LARGE:
        x = _pool(_conv_norm_relu(w, x, stride=2), 3, 2, padding=1, whole=True)
    else:
        x = _conv_norm_relu(w, x)
    for number, layers in enumerate(DENSE_LAYERS):
        if number:
            x = _conv(w, _norm(w, x).relu())
            x = functional.avg_pool2d(x, 2)
        for _ in range(layers):
            new = _conv(w, _norm(w, x).relu())
            x = torch.cat([x, _conv(w, _norm(w, new).relu())], 1)
    return _norm(w, x).relu().mean((2, 3))


def _googlenet(w: Weights, x: Tensor) -> Tensor:
    """Szegedy et al. 2015, table 1, with batch norm; 3x3 in place of 5x5, as torchvision has it."""

    def unit(x: Tensor, stride: int = 1) -> Tensor:
        return _conv_norm_relu(w, x, stride, eps=1e-3)

    def inception(x: Tensor) -> Tensor:
        branches = [unit(x), unit(unit(x)), unit(unit(x))]
        return torch.cat([*branches, unit(_pool(x, 3, 1, padding=1, whole=True))], 1)

    if x.shape[-1] >= LARGE:
        x = unit(_pool(unit(x, stride=2), 3, 2))
        x = _pool(unit(x), 3, 2)
    else:
        x = unit(x)
    for layers, kernel in ((2, 3), (5, 2), (2, 0)):
        for _ in range(layers):
            x = inception(x)
        x = _pool(x, kernel, 2) if kernel else x
    return x.mean((2, 3))


def _vit(w: Weights, x: Tensor) -> Tensor:
    """Dosovitskiy et al. 2021, equations 1 to 4; six layers of three heads, 8 x 8 patches."""
    token, kernel, bias, place = (next(w) for _ in range(4))
    side = kernel.shape[-1]
    margin = 8 * side - x.shape[-1]
    patches = functional.pad(x, [0, margin, 0, margin]).unfold(2, side, side).unfold(3, side, side)
    flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    z = flat @ kernel.flatten(1).T + bias
    z = torch.cat([token.expand(len(z), 1, -1), z], 1) + place
    for _ in range(6):
        y = _layer_norm(w, z)
        projection, offset = next(w), next(w)
        q, k, v = (y @ projection.T + offset).view(*y.shape[:2], 3, 3, 64).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / 8).softmax(-1) @ v
        z = z + _dense(w, mixed.transpose(1, 2).flatten(2))
        y = _dense(w, _layer_norm(w, z))
        z = z + _dense(w, y * (1 + torch.erf(y / math.sqrt(2))) / 2)
    return _layer_norm(w, z)[:, 0]


def _layer_norm(w: Weights, x: Tensor) -> Tensor:
    scale, shift = next(w), next(w)
    centred = x - x.mean(-1, keepdim=True)
    return scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + shift


def _mlp(w: Weights, x: Tensor) -> Tensor:
    x = x.flatten(1)
    for _ in range(2):
        x = _norm(w, x @ next(w).T).relu()
    return x


def _linear(_: Weights, x: Tensor) -> Tensor:
    return x.flatten(1) / x.shape[-1]


FORMULAS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "resnet18": _resnet(squeeze=False),
    "senet18": _resnet(squeeze=True),
    "small": _resnet(squeeze=False),
    "vgg16": _vgg16,
    "densenet121": _densenet121,
    "googlenet": _googlenet,
    "vit": _vit,
    "mlp": _mlp,
    "linear": _linear,
}
