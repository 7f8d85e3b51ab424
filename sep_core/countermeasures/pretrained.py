"""Countermeasures that begin with weights learned from other images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sep_core.config import PRETRAINED, Countermeasure
from sep_core.networks import Network


def begin(
    network: Network, countermeasure: Countermeasure, state: Mapping[str, Tensor] | None
) -> None:
    """Load what a pretrained countermeasure begins with: everything but the head.

    That includes the normalisation of the pixels. The head stays as it was drawn.

    Args:
        state: state dict of the same network, for any number of classes, as `adopt` gives it; None
            with any other countermeasure.

    Raises:
        ValueError: the state is missing, not asked for or another network's.
    """
    if (countermeasure in PRETRAINED) != (state is not None):
        raise ValueError(
            f"pretrained: expected {'none' if state else 'a state dict'} with {countermeasure}, "
            f"got {'one' if state else 'none'}"
        )
    if state is not None:
        _load_body(network, state)


def set_trainable(network: Network, *, frozen: bool) -> None:
    """Training mode with gradients; a frozen body answers in eval mode and only the head trains."""
    network.requires_grad_(not frozen).train(not frozen)
    network.head.requires_grad_(True).train()


def _load_body(network: Network, state: Mapping[str, Tensor]) -> None:
    body = _body(state)
    expected, given = _shapes(_body(network.state_dict())), _shapes(body)
    if given != expected:
        wrong = min(name for name, _ in given.items() ^ expected.items())
        raise ValueError(
            f"pretrained: expected the network's state with {wrong} of shape "
            f"{expected.get(wrong)}, got {given.get(wrong)}"
        )
    network.load_state_dict(body, strict=False)


def _shapes(body: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Of all but the norms' counters of batches, which nothing reads and old files are without."""
    return {k: v.shape for k, v in body.items() if not k.endswith("num_batches_tracked")}


def _body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}
