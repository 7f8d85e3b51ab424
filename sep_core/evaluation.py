"""What an appropriator learns: trained on what left the house, tested on clean held-out images."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from sep_core.config import Countermeasure, Plan, SEPConfig
from sep_core.countermeasures import PREPROCESSING
from sep_core.networks import Network
from sep_core.randomness import generator
from sep_core.reading import place
from sep_core.training import (
    Epoch,
    Progress,
    Recipe,
    batch_count,
    fit,
    infer,
    inference_batches,
)

Room = Callable[[Sequence[int]], Tensor]
"""Makes a uint8 tensor of a shape, not filled: where that is, is the caller's choice."""
IN_MEMORY: Room = partial(torch.empty, dtype=torch.uint8)


@dataclass(frozen=True)
class Accuracy:
    """Share of the clean test images recognised after epoch `epoch`, in [0, 1]."""

    epoch: int
    accuracy: float


def appropriate(
    train: tuple[UInt8[Tensor, "n 3 s s"], Int64[Tensor, " n"]],
    test: tuple[UInt8[Tensor, "m 3 s s"], Int64[Tensor, " m"]],
    classes: int,
    config: SEPConfig,
    plan: Plan,
    *,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: Mapping[str, Tensor] | None = None,
    room: Room = IN_MEMORY,
) -> Iterator[Progress | Accuracy]:
    """Train the appropriator on `train`; yields progress, and its accuracy on `test` every epoch.

    The same call serves for the clean baseline: same recipe, same draws, other pixels. The test
    images choose nothing; last and peak accuracy are both read off the curve. The peak is what
    early stopping gets at best, under any countermeasure.

    Args:
        train, test: pixels at input size and labels. A countermeasure that preprocesses does so
            with both, as whoever uses it would with every image that comes along.
        pretrained: see `fit`.
        room: for pixels that a countermeasure has changed: as many as there were.

    Raises:
        ValueError: as `fit`.
    """
    recipe = Recipe(config.appropriator, config.appropriator_epochs, "appropriator")
    labels, sizes = test[1], (len(train[0]), len(test[0]))
    work = recipe.epochs * (batch_count(sizes[0], config.batch_size) + inference_batches(sizes[1]))
    if countermeasure in PREPROCESSING:
        work += sum(inference_batches(size) for size in sizes)
    progress = (Progress(done, work) for done in count(1))
    learned = yield from _preprocess(train[0], countermeasure, progress, room)
    seen = yield from _preprocess(test[0], countermeasure, progress, room)
    learned, seen = place([learned, seen], plan.device)
    for event in fit(
        learned,
        train[1],
        classes,
        recipe,
        config=config,
        plan=plan,
        countermeasure=countermeasure,
        pretrained=pretrained,
    ):
        match event:
            case Progress():
                yield next(progress)
            case Epoch(number, network):
                predicted = []
                for batch in predictions(network, seen, plan):
                    predicted.append(batch)
                    yield next(progress)
                hits = torch.cat(predicted) == labels
                yield Accuracy(number, hits.double().mean().item())


def _preprocess(
    pixels: UInt8[Tensor, "n 3 s s"],
    countermeasure: Countermeasure,
    progress: Iterator[Progress],
    room: Room,
) -> Generator[Progress, None, UInt8[Tensor, "n 3 s s"]]:
    if countermeasure not in PREPROCESSING:
        return pixels
    changed, number = room(pixels.shape), inference_batches(len(pixels))
    for batch, into in zip(pixels.tensor_split(number), changed.tensor_split(number), strict=True):
        into.copy_(PREPROCESSING[countermeasure](batch.cpu()))
        yield next(progress)
    return changed


def predictions(
    network: Network, pixels: UInt8[Tensor, "m 3 s s"], plan: Plan
) -> Iterator[Int64[Tensor, " b"]]:
    """The class of each image's largest logit, a batch at a time; leaves the network training."""
    network.eval()
    for logits in infer(network, pixels, plan):
        yield logits.argmax(1).cpu()
    network.train()


def held_out(labels: Int64[Tensor, " n"], percent: int, seed: str) -> Bool[Tensor, " n"]:
    """A stratified part to set aside where the data bring no test split.

    At least one image of every class that has two, never the last one of a class.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(len(members) * percent / 100)), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, "held out", label))
        chosen[members[order[:count]]] = True
    return chosen
