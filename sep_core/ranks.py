"""Processes that train one network together, by PyTorch's distributed data parallel.

Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training": each
takes its slice of every batch, and all step by the same gradient. Batch norm is of the slice, and
what it keeps for evaluation is the first one's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, no_type_check

from jaxtyping import Float32
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket, Store  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=1)
"""The others wait while the first one looks at all images, for class means."""
LEAST_SLICE = 16
"""Images: batch norm is of the slice, and a GPU is hardly faster through fewer."""

# The newer name of the same.
_all_gather: Any = (
    getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
)

Backend = Literal["nccl", "gloo"]
State = TypeVar("State")


@dataclass(frozen=True)
class Ranks:
    """This process (`number`, from 0) among the `size` that train together.

    Attributes:
        sharing: how many of them compute on this one's device, itself included.
    """

    number: int = 0
    size: int = 1
    sharing: int = 1

    def share(self, batch: Tensor) -> Tensor:
        """This one's slice of a batch, in the batch's order."""
        return batch.tensor_split(self.size)[self.number]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with gradients that are the sum of all ranks'."""
        if self.size == 1:
            return network
        together = DistributedDataParallel(network)
        together.register_comm_hook(self.size, _sum_in_order)
        return together

    def total(self, value: Float32[Tensor, ""]) -> Float32[Tensor, ""]:
        """The sum over all ranks."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def agree(self, state: State) -> State:
        """The first one's, for all."""
        states = [state]
        if self.size > 1:
            distributed.broadcast_object_list(states, src=0)
        return states[0]


ALONE = Ranks()


@contextmanager
def joined(
    store: Store, number: int, size: int, backend: Backend = "gloo", sharing: int = 1
) -> Iterator[Ranks]:
    """One of `size` processes that meet at `store`; waits for the others.

    Args:
        backend: `nccl` where each has a GPU of its own. The gradients are the same by either.
        sharing: see `Ranks`.
    """
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=size, timeout=TIMEOUT
    )
    try:
        yield Ranks(number, size, sharing)
    finally:
        distributed.destroy_process_group()


@no_type_check  # DDP wants this annotation, and gets a future of another class from itself
def _sum_in_order(size: int, bucket: GradBucket) -> Future[Tensor]:
    """In the order of the ranks, so that the bytes depend on neither backend nor network."""
    own = bucket.buffer()
    sent = own if distributed.get_backend() == "nccl" else own.cpu()
    gathered = sent.new_empty(size * len(sent))
    work = _all_gather(gathered, sent, async_op=True)

    def add(done: Future[Tensor]) -> Tensor:
        done.value()  # raises where a rank was lost: nothing, or half of it, was gathered then
        return gathered.to(own.device).view(size, -1).sum(0)

    return work.get_future().then(add)
