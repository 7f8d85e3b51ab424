"""The surrogate: one ordinary training whose checkpoints, kept along the way, make the ensemble."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, pairwise

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sep_core.config import Plan, SEPConfig, checkpoint_epochs
from sep_core.inference import infer, inference_batches
from sep_core.layout import lay_out
from sep_core.networks import Network, build
from sep_core.optimisation import batch_count
from sep_core.randomness import generator
from sep_core.ranks import ALONE, Ranks
from sep_core.reading import place
from sep_core.training import Epoch, Progress, Recipe, State, done_before, fit


@dataclass(frozen=True)
class Checkpoint:
    """One member of the ensemble.

    Attributes:
        epoch: after which it was kept, counted from 1.
        network: frozen, in eval mode, batch norm folded (see `freeze`).
        class_means: mean penultimate feature of each class under *this* checkpoint, (y, d).
    """

    epoch: int
    network: Network
    class_means: Float32[Tensor, "y d"]


def train(
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    config: SEPConfig,
    plan: Plan,
    resumed: State | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress | Checkpoint]:
    """Train the surrogate on the training part; yields progress, and the checkpoints on schedule.

    Test data choose nothing: checkpoints are equidistant in epochs and the last epoch is one.

    Args:
        resumed: of a point that was yielded before.
        ranks: this is the first of; the others `follow`.
    """
    keep = checkpoint_epochs(config.epochs, config.checkpoints)
    (pixels,) = place([pixels], plan.device, ranks.sharing)
    averaging = inference_batches(len(pixels), pixels.shape[-1])  # batches that class means take
    batch_total = batch_count(len(pixels), config.batch_size)
    work = config.epochs * batch_total + len(keep) * averaging
    begun, first = done_before(resumed, batch_total)
    done = begun * batch_total + first + averaging * sum(epoch <= begun for epoch in keep)
    progress = (Progress(number, work) for number in count(done + 1))
    training = fit(
        *(pixels, labels, classes, _recipe(config)),
        config=config,
        plan=plan,
        resumed=resumed,
        ranks=ranks,
    )
    for event in training:
        match event:
            case Progress(point=point):
                yield replace(next(progress), point=point)
            case Epoch(number, network):
                if number not in keep:
                    continue
                frozen = freeze(network)
                for means_so_far in class_means(frozen, pixels, labels, classes, plan):
                    means = means_so_far
                    yield next(progress)
                yield Checkpoint(number, frozen, means)


def follow(
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    config: SEPConfig,
    plan: Plan,
    ranks: Ranks,
) -> None:
    """Train along, from wherever the first rank begins, to the end."""
    for _ in fit(pixels, labels, classes, _recipe(config), config=config, plan=plan, ranks=ranks):
        pass


def _recipe(config: SEPConfig) -> Recipe:
    return Recipe(config.surrogate, config.epochs, "surrogate")


def freeze(network: Network) -> Network:
    """A copy in eval mode, without parameter gradients, batch norm folded into the convolutions.

    Folding changes features by rounding alone and makes a gradient pass a third faster. A norm that
    comes before its convolution, as some of DenseNet's do, stays.
    """
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(frozen.modules()):
        _fold_norms(module)
    return lay_out(frozen)


def _fold_norms(module: nn.Module) -> None:
    """Fold each norm into the layer before it; in all our networks it is the next to run, too."""
    for (name, first), (norm_name, second) in pairwise(list(module.named_children())):
        match first, second:
            case nn.Conv2d(), nn.BatchNorm2d():
                setattr(module, name, fuse_conv_bn_eval(first, second))
            case nn.Linear(), nn.BatchNorm1d():
                setattr(module, name, fuse_linear_bn_eval(first, second))
            case _:
                continue
        setattr(module, norm_name, nn.Identity())


def restore(
    state: dict[str, Tensor],
    class_means: Float32[Tensor, "y d"],
    epoch: int,
    config: SEPConfig,
    plan: Plan,
) -> Checkpoint:
    """A checkpoint from its stored parts, on the plan's device."""
    blank = torch.ones(3)
    draws = generator("", "blank")
    network = freeze(
        build(config.surrogate, len(class_means), config.input_pixels, blank, blank, draws)
    )
    network.load_state_dict(state)
    return Checkpoint(epoch, network.to(plan.device), class_means.to(plan.device))


def class_means(
    network: Network,
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    plan: Plan,
) -> Iterator[Float32[Tensor, "y d"]]:
    """Mean penultimate feature of each class, in eval mode.

    Yields the mean of what it has seen after every batch; the last is that of the whole part.
    """
    sums = torch.zeros(classes, network.head.in_features, dtype=torch.float64, device=plan.device)
    counts = torch.zeros(classes, dtype=torch.float64, device=plan.device)
    members = labels.to(plan.device).tensor_split(inference_batches(len(labels), pixels.shape[-1]))
    for features, chosen in zip(infer(network.features, pixels, plan), members, strict=True):
        member = functional.one_hot(chosen, classes).double()
        # A product, not index_add_, whose order on a GPU is not the same twice.
        sums += member.T @ features.double()
        counts += member.sum(0)
        yield (sums / counts[:, None].clamp(min=1)).float()
