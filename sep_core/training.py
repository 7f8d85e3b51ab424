"""The one training loop: the surrogate and every appropriator are trained by it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sep_core.allocator import keep_for_the_next_batch
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
from sep_core.pixels import to_images
from sep_core.randomness import generator
from sep_core.ranks import ALONE, LEAST_SLICE, Ranks
from sep_core.reading import batches, place

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INFERENCE_BATCH, INFERENCE_PIXELS = 256, 64 * 224**2
"""Images of a batch, and pixels: so few that two cores take a ResNet-18 through one in 5 s."""
# A transformer learns nothing by SGD at a convolutional network's rate: decoupled weight decay
# (AdamW; Loshchilov & Hutter 2019) at a hundredth of it, 0.001 where the recipe says 0.1.
ADAM: frozenset[NetworkName] = frozenset({"vit"})
ADAM_RATE, ADAM_WEIGHT_DECAY = 0.01, 0.05
SGD_RATES: Mapping[NetworkName, float] = {"vgg16": 0.1}
"""What the recipe's rate is multiplied by. Without shortcuts VGG-16 learns next to nothing of 2,500
images at 0.1, and its large form leaves the numbers; torchvision trains it at 0.01."""


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

    The optimiser is SGD with the configuration's schedule (for `vit`: `ADAM`; for `vgg16`: a tenth
    of the rate); augmentation is a random crop and flip of the whole batch at once, and what the
    countermeasure makes of that.

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
    asked, seed = config.learning_rate, drawn_seed(config)
    config = training_config(config, countermeasure)
    (pixels,) = place([pixels], plan.device, ranks.sharing)
    network = build(
        recipe.network,
        classes,
        pixels.shape[-1],
        *channel_statistics(pixels),
        generator(seed, recipe.purpose, 0),
    ).to(plan.device)
    begin(network, countermeasure, pretrained)
    optimiser, rate = _optimiser(recipe.network, network, config)
    batch_total = batch_count(len(pixels), config.batch_size)
    resumed = ranks.agree(resumed)
    begun, first = done_before(resumed, batch_total)
    if resumed:
        network.load_state_dict(resumed["network"])
        optimiser.load_state_dict(resumed["optimiser"])
    set_trainable(network, frozen=countermeasure == "pretrained-frozen")
    objective = partial(_cross_entropy, ranks.wrap(network), plan)
    for epoch in range(begun, recipe.epochs):
        draws = generator(seed, recipe.purpose, epoch + 1)
        order = torch.randperm(len(pixels), generator=draws)
        crops = draw_crops(len(pixels), config, draws)
        further = generator(seed, f"{recipe.purpose} {countermeasure}", epoch + 1)
        set_trainable(network, frozen=countermeasure == "pretrained-frozen")
        losses = torch.zeros((), device=plan.device)
        if first and resumed and "further" in resumed:
            further.set_state(resumed["further"])
            losses += resumed["losses"].to(plan.device)
        # To the device once an epoch: it would wait for every batch's own.
        parts = (
            shuffled[order].to(plan.device).tensor_split(batch_total)[first:]
            for shuffled in (crops, labels)
        )
        own = map(ranks.share, order.tensor_split(batch_total)[first:])
        with closing(batches(pixels, own, plan.device)) as read:
            for index, (taken, *drawn) in enumerate(zip(read, *parts, strict=True), first):
                cropped, known = map(ranks.share, drawn)
                optimiser.param_groups[0]["lr"] = rate * learning_rate(
                    config, recipe.epochs, epoch + index / batch_total
                )
                images = augment(to_images(taken), cropped, config.crop_padding)
                images, targets = change_batch(countermeasure, images, known, classes, further)
                if radius := RADIUS_LEVELS.get(countermeasure):
                    images = attack(network, objective, images, targets, radius, further)
                # Of the whole batch's mean, what this rank's slice adds to it.
                loss = objective(images, targets) * (len(images) / len(drawn[0]))
                losses += loss.detach()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimiser.step()
                yield Progress(
                    epoch * batch_total + index + 1,
                    recipe.epochs * batch_total,
                    Point(epoch + 1, index + 1, network, optimiser, losses, further),
                )
        # Once an epoch: the host waits for the device.
        if not (math.isfinite(ranks.total(losses)) and _is_finite(network)):
            raise FloatingPointError(
                f"Expected finite losses and weights, got others in epoch {epoch + 1} of training "
                f"{recipe.network} ({recipe.purpose}, {countermeasure}): try a lower learning_rate "
                f"than {asked:g}."
            )
        first = 0
        yield Epoch(epoch + 1, network)


def _is_finite(network: Network) -> bool:
    finite = [weights.detach().isfinite().all() for weights in network.parameters()]
    return bool(torch.stack(finite).all())


def _optimiser(
    name: NetworkName, network: Network, config: SEPConfig
) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser, and what it multiplies the scheduled rate by."""
    if name in ADAM:
        return torch.optim.AdamW(network.parameters(), weight_decay=ADAM_WEIGHT_DECAY), ADAM_RATE
    return torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    ), SGD_RATES.get(name, 1.0)


def _cross_entropy(
    network: nn.Module,
    plan: Plan,
    images: Float32[Tensor, "b 3 s s"],
    targets: Int64[Tensor, " b"] | Float32[Tensor, "b y"],
) -> Float32[Tensor, ""]:
    with autocast(plan):
        logits = network(images)
    return functional.cross_entropy(logits.float(), targets)


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


def infer(
    function: Callable[[Tensor], Tensor], pixels: UInt8[Tensor, "n 3 s s"], plan: Plan
) -> Iterator[Float32[Tensor, "b d"]]:
    """`function` of every image, without gradients, a batch at a time in the images' order."""
    number = inference_batches(len(pixels), pixels.shape[-1])
    chosen = torch.arange(len(pixels)).tensor_split(number)
    with closing(batches(pixels, chosen, plan.device)) as read:
        for batch in read:
            with torch.no_grad(), autocast(plan):
                outputs = function(to_images(batch))
            yield outputs.float()


def inference_batches(images: int, side: int) -> int:
    """How many batches `infer` yields of images of this side."""
    return math.ceil(images / max(1, min(INFERENCE_BATCH, INFERENCE_PIXELS // side**2)))


def batch_count(images: int, batch_size: int) -> int:
    """Batches an epoch, sizes as equal as can be: a last batch of one breaks batch norm."""
    return max(1, min(math.ceil(images / batch_size), images // 2))


def most_ranks(images: int, config: SEPConfig) -> int:
    """Processes that may train together: each one's slice of a batch is of `LEAST_SLICE` images."""
    batch = images // batch_count(images, config.batch_size)
    return max(1, batch // LEAST_SLICE)


def learning_rate(config: SEPConfig, epochs: int, at: float) -> float:
    """The rate at `at` epochs: linear warm-up, then the step or cosine schedule."""
    if at < config.warmup_epochs:
        rise = at / config.warmup_epochs
        low = config.warmup_learning_rate
        return low + rise * (config.learning_rate - low)
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(at >= m * epochs for m in config.milestones)
    share = (at - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def augment(
    images: Float32[Tensor, "b 3 s s"], crops: Int64[Tensor, "b 3"], padding: int
) -> Float32[Tensor, "b 3 s s"]:
    """Zero-pad, crop at (top, left) and mirror where the third is 1: one gather, no loop."""
    side = images.shape[-1]
    padded = functional.pad(images, [padding] * 4)
    steps, crops = torch.arange(side, device=images.device), crops.to(images.device)
    rows = crops[:, :1] + steps
    columns = crops[:, 1:2] + torch.where(crops[:, 2:] == 1, side - 1 - steps, steps)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def draw_crops(images: int, config: SEPConfig, draws: torch.Generator) -> Int64[Tensor, "n 3"]:
    """Of each image the crop's top and left corner, and whether it is mirrored; see `augment`."""
    corners = torch.randint(0, 2 * config.crop_padding + 1, (images, 2), generator=draws)
    mirrored = torch.randint(0, 2, (images, 1), generator=draws) * int(config.flip)
    return torch.cat([corners, mirrored], dim=1)


def channel_statistics(
    pixels: UInt8[Tensor, "n 3 s s"],
) -> tuple[Float32[Tensor, "3"], Float32[Tensor, "3"]]:
    """Mean and standard deviation of each channel, in [0, 1]; exact, whatever the batch size."""
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for batch in pixels.tensor_split(inference_batches(len(pixels), pixels.shape[-1])):
        channels = batch.cpu().unbind(1)
        counts += torch.stack([torch.bincount(c.flatten(), minlength=256) for c in channels])
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True).double()
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().clamp(min=1 / 255).float()
