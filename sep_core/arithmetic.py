"""The arithmetic of a plan: threads, precision, and that it can be repeated."""

import torch

from sep_core.config import Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def prepare(plan: Plan) -> None:
    """Settings of this process that the bytes depend on.

    Operations that a GPU can't do the same way twice are refused.
    """
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written; to fill it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def autocast(plan: Plan) -> torch.autocast:
    """The networks' arithmetic as planned."""
    return torch.autocast(plan.device, DTYPES[plan.precision], plan.precision != "float32")
