"""A file of pretrained weights, as the service wants it (docs/operations.md)."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import get_args

from torch import Tensor

from sep_core.config import NetworkName
from sep_core.networks.published import adopt
from worker import pretrained


class Weights:
    """A file of pretrained weights, named after its network.

    Raises:
        ValueError: it is named after none.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        names: dict[str, NetworkName] = {f"{name}.pt": name for name in get_args(NetworkName)}
        if self.path.name not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {self.path.name}")
        self.network = names[self.path.name]

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def state(self, side: int) -> dict[str, Tensor]:
        """As the network begins with it, for images of `side` pixels."""
        with self.path.open("rb") as file:
            return adopt(self.network, side, pretrained.read(file))
