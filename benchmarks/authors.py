"""The authors' gradient pass, run from a checkout of theirs; nothing of it is copied here.

Their network comes from `utils/tmp.py: get_model`; their statements of a forward and backward pass
are the block under `torch.enable_grad()` in `valid_test` of `ens.py` (cross-entropy) and of
`ens_feature.py` (features), compiled from there, so that nothing of the script around it runs.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import cast

import torch
from torch import Tensor, nn

from sep_core.config import Variant

SCRIPTS: dict[Variant, str] = {"sep": "ens.py", "sep-fa": "ens_feature.py"}
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the channels, as their network normalises them."""


def gradient_pass(
    checkout: Path,
    variant: Variant,
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    class_means: Tensor,
) -> Callable[[], Tensor]:
    """One pass of theirs over `images` (b, 3, 32, 32), with the weights of our Network-18.

    Raises:
        ValueError: the checkout is not laid out as theirs, or its network is not a Network-18.
    """
    block = gradient_block(checkout / SCRIPTS[variant])
    theirs = _network(checkout)
    copy_weights(network, theirs)
    names = {
        "torch": torch,
        "net": theirs.to(images.device).eval(),
        "criterion": nn.CrossEntropyLoss() if variant == "sep" else nn.MSELoss(),
        "f": class_means,
        "targets_attack": targets,
    }

    def run() -> Tensor:
        names["inputs_c"] = images.detach().requires_grad_()
        exec(block, names)  # noqa: S102  statements from the checkout that the caller names
        return cast(Tensor, names["grad"])

    return run


def gradient_block(script: Path) -> CodeType:
    """The statements under `with torch.enable_grad()` in their `valid_test`.

    Raises:
        ValueError: there is no such block.
    """
    for function in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.name == "valid_test":
            for node in ast.walk(function):
                if isinstance(node, ast.With) and "enable_grad" in ast.unparse(node.items[0]):
                    return compile(ast.Module([node], []), str(script), "exec")
    raise ValueError(f"{script}: expected valid_test with a block under enable_grad(), got none")


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Layer by layer, in the order in which both networks name them.

    Raises:
        ValueError: they have different layers.
    """
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    layers = [
        [m for m in network.modules() if isinstance(m, kinds)] for network in (source, target)
    ]
    if len(layers[0]) != len(layers[1]):
        raise ValueError(f"network: expected {len(layers[0])} layers, got {len(layers[1])}")
    for ours, theirs in zip(*layers, strict=True):
        try:
            theirs.load_state_dict(ours.state_dict())
        except RuntimeError as error:
            raise ValueError(f"network: expected {ours}, got {theirs}") from error


def _network(checkout: Path) -> nn.Module:
    sys.path.insert(0, str(checkout))  # their modules import each other by these names
    try:
        get_model = importlib.import_module("utils.tmp").get_model
    finally:
        sys.path.remove(str(checkout))
    return cast(nn.Module, get_model("ResNet18", num_of_classes=10, dataset="cifar10"))
