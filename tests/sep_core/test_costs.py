"""What a gradient pass holds in memory, counted tensor by tensor."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sep_core.config import NetworkName
from sep_core.costs import gradient_bytes
from sep_core.networks import build
from sep_core.surrogate import freeze


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Bytes of the tensors that are made meanwhile and still in use: now, and at most."""

    def __init__(self, others: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._known: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in others}
        self.now: int = 0
        self.most: int = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        _types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*arguments, **(named or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take_in(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return result

    def _take_in(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._let_go, storage._cdata)

    def _let_go(self, key: int) -> None:
        self.now -= self._known.pop(key)


def counted(name: NetworkName, side: int, images: int) -> int:
    blank = torch.ones(3)
    network = freeze(build(name, 10, side, blank, blank, torch.Generator())).to("meta")
    x = torch.empty(images, 3, side, side, device="meta").requires_grad_()
    with Living([x, *network.parameters(), *network.buffers()]) as living:
        torch.autograd.grad(network.features(x).square().sum(), x)
    return int(living.most)


@pytest.mark.parametrize("side", [32, 64, 128, 224])
@pytest.mark.parametrize("name", get_args(NetworkName))
def test_memory_is_as_stated(name: NetworkName, side: int) -> None:
    each = (counted(name, side, 6) - counted(name, side, 2)) / 4
    assert each == pytest.approx(gradient_bytes(name, side), rel=0.05)
