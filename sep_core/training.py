"""The one training loop: the surrogate and every appropriator are trained by it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sep_core.allocator import keep_for_the_next_batch
from sep_core.arithmetic import autocast
from sep_core.augmentation import augment, draw_crops
from sep_core.channels import channel_statistics
from sep_core.config import Countermeasure, NetworkName, Plan, SEPConfig, drawn_seed
from sep_core.countermeasures import (
    RADIUS_LEVELS,
    attack,
    begin,
    change_batch,
    set_trainable,
    training_config,
)
from sep_core.networks import Network, build
from sep_core.optimisation import batch_count, learning_rate, new_optimiser
from sep_core.pixels import to_images
from sep_core.randomness import generator
from sep_core.ranks import ALONE, LEAST_SLICE, Ranks
from sep_core.reading import batches, place

State = Mapping[str, Any]
"""Of a training between two batches. Its draws follow from seed, purpose and epoch; how many of the
countermeasure's have been drawn is part of it."""


@dataclass(frozen=True)
class Progress:
    """Units of work done so far, out of how many. Comes at most 5 s after the one before.

    Only a training batch of large images takes longer: batch norm is of the whole of it.
    """

    done: int
    total: int
    point: "Point | None" = field(default=None, compare=False)
    """After a training batch."""


@dataclass(frozen=True)
class Point:
    """Between two batches: a training can go on from here.

    Attributes:
        epoch: that the batch before is of, counted from 1.
        batches: of this epoch that are done.
        losses: their sum, to see whether they are numbers.
        further: where the countermeasure's draws come from.
    """

    epoch: int
    batches: int
    network: Network
    optimiser: torch.optim.Optimizer
    losses: Float32[Tensor, ""]
    further: torch.Generator

    def state(self) -> State:
        """What the training goes on from, for `torch.save` before the next event is asked for."""
        return {
            "epoch": self.epoch,
            "batches": self.batches,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses,
            "further": self.further.get_state(),
        }


@dataclass(frozen=True)
class Epoch:
    """The end of epoch `number`, counted from 1. `network` goes on training afterwards."""

    number: int
    network: Network


def done_before(resumed: State | None, batch_total: int) -> tuple[int, int]:
    """Whole epochs, and batches of the next one, that a training goes on after.

    A state of an earlier version is of an epoch's end, and does not count its batches.
    """
    if resumed is None:
        return 0, 0
    return resumed["epoch"] - 1, resumed.get("batches", batch_total)


@dataclass(frozen=True)
class Recipe:
    """Who trains, for how long, and where its randomness comes from."""

    network: NetworkName
    epochs: int
    purpose: str


def fit(
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    recipe: Recipe,
    *,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: Mapping[str, Tensor] | None = None,
    resumed: State | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress | Epoch]:
    """Train a new network on pixels at input size; yields after every batch and every epoch.

    The optimiser is SGD with the configuration's schedule (for `vit`: `optimisation.ADAM`; for
    `vgg16`: a tenth of the rate); augmentation is a random crop and flip of the whole batch at
    once, and what the countermeasure makes of that.

    Args:
        countermeasure: one that preprocesses has done so: `pixels` come out of it, and what the
            network is to recognise must, too.
        pretrained: state dict of the same network, for any number of classes (see
            `networks.published.adopt`); the `pretrained` countermeasures begin with it.
        resumed: `Point.state` of the same training: yields what came after that. The first rank's
            counts.
        ranks: others that train along, by the same arguments; by `crop-flip` only.

    Raises:
        ValueError: fewer than two training images, a configuration that is not resolved, ranks
            under a countermeasure that they do not know, or pretrained weights that are missing,
            not asked for or another network's.
        FloatingPointError: the training diverged: its losses or its weights are no numbers any
            more. Such a network knows nothing, and would pass for one that a protection kept from
            learning. How large they are says nothing: where the rate is large, so are the losses
            of those who learn.
    """
    if len(pixels) < 2:
        raise ValueError(f"expected at least 2 training images, got {len(pixels)}")
    if ranks.size > 1 and countermeasure != "crop-flip":
        raise ValueError(f"ranks: expected 1 for {countermeasure}, got {ranks.size}")
    if plan.device == "cpu":
        keep_for_the_next_batch()
    (pixels,) = place([pixels], plan.device, ranks.sharing)
    network = build(
        recipe.network,
        classes,
        pixels.shape[-1],
        *channel_statistics(pixels),
        generator(drawn_seed(config), recipe.purpose, 0),
    ).to(plan.device)
    begin(network, countermeasure, pretrained)
    resumed = ranks.agree(resumed)
    if resumed:
        network.load_state_dict(resumed["network"])
    data = (pixels, labels, classes)
    training = _Training(*data, recipe, config, plan, countermeasure, ranks, network)
    begun, first = done_before(resumed, training.batch_total)
    if resumed:
        training.optimiser.load_state_dict(resumed["optimiser"])
    for epoch in range(begun, recipe.epochs):
        yield from training.epoch(epoch, first, resumed)
        yield Epoch(epoch + 1, network)
        first, resumed = 0, None


class _Training:
    """What the epochs of one training share; arguments as of `fit`."""

    def __init__(
        self,
        pixels: UInt8[Tensor, "n 3 s s"],
        labels: Int64[Tensor, " n"],
        classes: int,
        recipe: Recipe,
        config: SEPConfig,
        plan: Plan,
        countermeasure: Countermeasure,
        ranks: Ranks,
        network: Network,
    ) -> None:
        self.pixels, self.labels, self.classes = pixels, labels, classes
        self.recipe, self.plan, self.ranks, self.network = recipe, plan, ranks, network
        self.asked, self.seed = config.learning_rate, drawn_seed(config)
        self.countermeasure, self.config = countermeasure, training_config(config, countermeasure)
        self.optimiser, self.rate = new_optimiser(recipe.network, network, self.config)
        self.batch_total = batch_count(len(pixels), config.batch_size)
        self.objective = partial(_cross_entropy, ranks.wrap(network), plan)

    def epoch(self, done: int, first: int, resumed: State | None) -> Iterator[Progress]:
        """Train by batch `first` and those after it, once `done` epochs are behind."""
        purpose, device = self.recipe.purpose, self.plan.device
        draws = generator(self.seed, purpose, done + 1)
        order = torch.randperm(len(self.pixels), generator=draws)
        crops = draw_crops(len(self.pixels), self.config, draws)
        further = generator(self.seed, f"{purpose} {self.countermeasure}", done + 1)
        set_trainable(self.network, frozen=self.countermeasure == "pretrained-frozen")
        losses = torch.zeros((), device=device)
        if first and resumed and "further" in resumed:
            further.set_state(resumed["further"])
            losses += resumed["losses"].to(device)
        # To the device once an epoch: it would wait for every batch's own.
        cropped, known = (
            shuffled[order].to(device).tensor_split(self.batch_total)[first:]
            for shuffled in (crops, self.labels)
        )
        own = map(self.ranks.share, order.tensor_split(self.batch_total)[first:])
        with closing(batches(self.pixels, own, device)) as read:
            for index, batch in enumerate(zip(read, cropped, known, strict=True), first):
                self.optimiser.param_groups[0]["lr"] = self.rate * learning_rate(
                    self.config, self.recipe.epochs, done + index / self.batch_total
                )
                losses += self._step(*batch, further)
                yield Progress(
                    done * self.batch_total + index + 1,
                    self.recipe.epochs * self.batch_total,
                    Point(done + 1, index + 1, self.network, self.optimiser, losses, further),
                )
        # Once an epoch: the host waits for the device.
        if not (math.isfinite(self.ranks.total(losses)) and _is_finite(self.network)):
            raise FloatingPointError(
                f"Expected finite losses and weights, got others in epoch {done + 1} of training "
                f"{self.recipe.network} ({purpose}, {self.countermeasure}): try a lower "
                f"learning_rate than {self.asked:g}."
            )

    def _step(
        self,
        taken: UInt8[Tensor, "m 3 s s"],
        crops: Int64[Tensor, "b 3"],
        labels: Int64[Tensor, " b"],
        further: torch.Generator,
    ) -> Float32[Tensor, ""]:
        """One batch, of which this rank has taken its slice; the loss that the slice adds."""
        crops, known = map(self.ranks.share, (crops, labels))
        images = augment(to_images(taken), crops, self.config.crop_padding)
        images, targets = change_batch(self.countermeasure, images, known, self.classes, further)
        if radius := RADIUS_LEVELS.get(self.countermeasure):
            images = attack(self.network, self.objective, images, targets, radius, further)
        # Of the whole batch's mean, what this rank's slice adds to it.
        loss = self.objective(images, targets) * (len(images) / len(labels))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.optimiser.step()
        return loss.detach()


def _is_finite(network: Network) -> bool:
    finite = [weights.detach().isfinite().all() for weights in network.parameters()]
    return bool(torch.stack(finite).all())


def _cross_entropy(
    network: nn.Module,
    plan: Plan,
    images: Float32[Tensor, "b 3 s s"],
    targets: Int64[Tensor, " b"] | Float32[Tensor, "b y"],
) -> Float32[Tensor, ""]:
    with autocast(plan):
        logits = network(images)
    return functional.cross_entropy(logits.float(), targets)


def most_ranks(images: int, config: SEPConfig) -> int:
    """Processes that may train together: each one's slice of a batch is of `LEAST_SLICE` images."""
    batch = images // batch_count(images, config.batch_size)
    return max(1, batch // LEAST_SLICE)
