"""What an appropriator learns: trained on what left the house, tested on clean held-out images."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from sep_core.config import Countermeasure, Plan, SEPConfig
from sep_core.costs import held_out_images, trained_epochs
from sep_core.countermeasures import PREPROCESSING, projection
from sep_core.inference import infer, inference_batches
from sep_core.networks import Network
from sep_core.optimisation import batch_count
from sep_core.randomness import generator
from sep_core.reading import place
from sep_core.renaming import renamed
from sep_core.training import Epoch, Progress, Recipe, State, done_before, fit

Room = Callable[[Sequence[int]], Tensor]
"""Makes a uint8 tensor of a shape, not filled: where that is, is the caller's choice."""
Change = Callable[[UInt8[Tensor, "n 3 s s"]], UInt8[Tensor, "n 3 s s"]]
IN_MEMORY: Room = partial(torch.empty, dtype=torch.uint8)


@dataclass(frozen=True)
class Accuracy:
    """How many of the clean test images are recognised after epoch `epoch`.

    Attributes:
        accuracy: share of all, in [0, 1].
        recognised: number of each class.
        renamed: number of each class once the answers are renamed (`sep_core.renaming`).
    """

    epoch: int
    accuracy: float
    recognised: tuple[int, ...]
    renamed: tuple[int, ...]


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
    resumed: State | None = None,
) -> Iterator[Progress | Accuracy]:
    """Train the appropriator on `train`; yields progress, and its accuracy on `test` every epoch.

    The same call serves for the clean baseline: same recipe, same draws, other pixels. The test
    images choose nothing; last and peak accuracy are both read off the curve. The peak is what
    breaking this schedule off gets at best; one that is shorter from the start may get more, and is
    a countermeasure of its own (`short`).

    Args:
        train, test: pixels at input size and labels. A countermeasure that preprocesses does so
            with both, as whoever uses it would with every image that comes along.
        pretrained: see `fit`.
        resumed: of a point that was yielded before.
        room: for pixels that a countermeasure has changed: as many as there were.

    Raises:
        ValueError: as `fit`.
    """
    epochs = trained_epochs(config.appropriator_epochs, countermeasure)
    config = replace(config, warmup_epochs=min(config.warmup_epochs, epochs))
    recipe = Recipe(config.appropriator, epochs, "appropriator")
    labels, whole = test[1], [inference_batches(len(p), p.shape[-1]) for p in (train[0], test[0])]
    batch_total = batch_count(len(train[0]), config.batch_size)
    work = recipe.epochs * (batch_total + whole[1])
    if countermeasure in PREPROCESSING or countermeasure == "projection":
        work += sum(whole)
    if countermeasure == "projection":
        work += projection.EPOCHS * batch_total
    progress = (Progress(done, work) for done in count(1))
    change = yield from _change(countermeasure, train, classes, config, plan, progress)
    learned = yield from _preprocess(train[0], change, progress, room)
    seen = yield from _preprocess(test[0], change, progress, room)
    learned, seen = place([learned, seen], plan.device)
    done_epochs, batches = done_before(resumed, batch_total)
    for _ in range(done_epochs * (batch_total + whole[1]) + batches):
        next(progress)
    for event in fit(
        learned,
        train[1],
        classes,
        recipe,
        config=config,
        plan=plan,
        countermeasure=countermeasure,
        pretrained=pretrained,
        resumed=resumed,
    ):
        match event:
            case Progress(point=point):
                yield replace(next(progress), point=point)
            case Epoch(number, network):
                predicted = []
                for batch in predictions(network, seen, plan):
                    predicted.append(batch)
                    yield next(progress)
                yield _accuracy(number, torch.cat(predicted), labels, classes)


def _accuracy(
    epoch: int, answers: Int64[Tensor, " m"], labels: Int64[Tensor, " m"], classes: int
) -> Accuracy:
    right, renamed_right = (
        torch.bincount(labels[each == labels], minlength=classes).tolist()
        for each in (answers, renamed(answers, labels, classes))
    )
    return Accuracy(epoch, sum(right) / len(labels), tuple(right), tuple(renamed_right))


def _change(
    countermeasure: Countermeasure,
    train: tuple[UInt8[Tensor, "n 3 s s"], Int64[Tensor, " n"]],
    classes: int,
    config: SEPConfig,
    plan: Plan,
    progress: Iterator[Progress],
) -> Generator[Progress, None, Change | None]:
    """What a countermeasure does to pixels before training."""
    if countermeasure != "projection":
        return PREPROCESSING.get(countermeasure)
    for event in projection.directions(*train, classes, config, plan):
        if isinstance(event, Progress):
            yield next(progress)
        else:
            basis = event
    return partial(projection.remove, basis)


def _preprocess(
    pixels: UInt8[Tensor, "n 3 s s"],
    change: Change | None,
    progress: Iterator[Progress],
    room: Room,
) -> Generator[Progress, None, UInt8[Tensor, "n 3 s s"]]:
    if change is None:
        return pixels
    changed, number = room(pixels.shape), inference_batches(len(pixels), pixels.shape[-1])
    for batch, into in zip(pixels.tensor_split(number), changed.tensor_split(number), strict=True):
        into.copy_(change(batch.cpu()))
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
        count = held_out_images(len(members), percent)
        order = torch.randperm(len(members), generator=generator(seed, "held out", label))
        chosen[members[order[:count]]] = True
    return chosen
