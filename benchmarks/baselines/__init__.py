"""What others do to make images useless for training, for comparison; no part of the product.

Every method is written from its paper's equations and has one form,

    (pixels, labels, classes, config, plan) -> pixels

`pixels` are uint8 (n, 3, s, s) with s = `config.input_pixels`, before and after, on the CPU, at
most `config.epsilon_levels` apart; `config` is resolved. What a paper does otherwise is said at
its method. Same arguments, same bytes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from benchmarks.baselines.learned import error_minimising, targeted
from benchmarks.baselines.noise import autoregressive, class_wise, shortcuts, uniform
from sep_core.config import Plan, SEPConfig

Baseline = Callable[[Tensor, Tensor, int, SEPConfig, Plan], Tensor]

BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "uniform": uniform,
        "class-wise": class_wise,
        "error-minimising": error_minimising,
        "targeted": targeted,
        "shortcuts": shortcuts,
        "autoregressive": autoregressive,
    }
)
