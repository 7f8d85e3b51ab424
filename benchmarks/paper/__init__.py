"""The paper's CIFAR-10 row on one GPU: `python -m benchmarks.paper --help`.

Needs PyTorch and torchvision, no more. sep_core's annotations are jaxtyping's, which no computation
asks for: where it is not installed a stand-in takes its place, so that a machine without a network
can do the work.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


class _Shape:
    """`Float32[Tensor, "b d"]` is `Tensor`."""

    def __class_getitem__(cls, item: tuple[type, str]) -> type:
        return item[0]


class _Shapes(ModuleType):
    """Any name imported from it is a `_Shape`."""

    def __getattr__(self, name: str) -> type[_Shape]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Shape


if find_spec("jaxtyping") is None:
    sys.modules["jaxtyping"] = _Shapes("jaxtyping")
