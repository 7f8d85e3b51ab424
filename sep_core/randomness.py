"""Randomness as an argument: every draw comes from (seed, purpose, counters), never from order."""

import torch

from sep_core.config import stable_integer


def generator(seed: str, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one purpose, so that every kind of device draws the same numbers.

    PyTorch's begins with 32 bits of what it is given: that is what one draw hides of the seed.
    """
    return torch.Generator().manual_seed(stable_integer(seed, purpose, *counters))
