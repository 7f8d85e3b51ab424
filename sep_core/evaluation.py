"""What an appropriator learns: trained on what left the house, tested on clean held-out images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from sep_core.config import Plan, SEPConfig
from sep_core.networks import Network
from sep_core.randomness import generator
from sep_core.training import Epoch, Progress, Recipe, fit, infer, inference_batches


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
) -> Iterator[Progress | Accuracy]:
    """Train the appropriator on `train`; yields progress, and its accuracy on `test` every epoch.

    The same call serves for the clean baseline: same recipe, same draws, other pixels. The test
    images choose nothing; last and peak accuracy are both read off the curve.
    """
    recipe = Recipe(config.appropriator, config.appropriator_epochs, "appropriator")
    pixels, labels = test
    progress, tested = Progress(0, 0), 0  # tested: batches of test images seen in all epochs
    for event in fit(*train, classes, recipe, config=config, plan=plan):
        match event:
            case Progress(done, total):
                batches = recipe.epochs * inference_batches(len(pixels))
                progress = Progress(done, total + batches)
                yield Progress(done + tested, progress.total)
            case Epoch(number, network):
                predicted = []
                for batch in predictions(network, pixels, plan):
                    predicted.append(batch)
                    tested += 1
                    yield Progress(progress.done + tested, progress.total)
                hits = torch.cat(predicted) == labels
                yield Accuracy(number, hits.double().mean().item())


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
