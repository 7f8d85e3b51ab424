"""Where the walk of every image begins: one change a class, found by the ensemble (`class_steps`).

A change that moves every image of a class towards g(y) at once (a targeted universal perturbation;
Moosavi-Dezfooli et al. 2017) is what an appropriator learns first, whatever its seed; the walk
of each image from there makes it that image's own. Beyond a few hundred images
or eight a class it costs the same for any number, but for what rare classes need (`LEAST`), which
the plan does not count: a seventh more where 1,000 classes are equally frequent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional

from sep_core import views
from sep_core.augmentation import augment, draw_crops
from sep_core.config import Plan, SEPConfig, drawn_seed
from sep_core.costs import PATTERN_CHECKPOINTS, pattern_images
from sep_core.pixels import LEVELS, project, to_images
from sep_core.protection import Images, Patterns, loss_gradient, target_classes
from sep_core.randomness import generator
from sep_core.reading import batches, place
from sep_core.surrogate import Checkpoint
from sep_core.training import Progress

MOMENTUM = 0.9
STEP_SHARE = 1 / 8
"""Of the budget in one step."""
LEAST = 8
"""Images of a class in one step, or all that there are: its pattern would rest on chance."""


def class_patterns(
    pixels: UInt8[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    classes: int,
    ensemble: Sequence[Checkpoint],
    config: SEPConfig,
    plan: Plan,
    *,
    grey: bool = False,
) -> Iterator[Progress | Patterns]:
    """Yields progress, and at last a change of each class, within the budget, on the CPU.

    Args:
        pixels: the training part at input size.
        ensemble: checkpoints of the surrogate; gradients are taken as in `protect`.
        grey: whether all images that are to be changed have one channel: what the patterns' three
            have of their own would be lost on them.
    """
    count = pattern_images(len(pixels), classes)
    epsilon = config.epsilon_levels / LEVELS
    patterns = torch.zeros(classes, 3, *pixels.shape[-2:], device=plan.device)
    velocity = torch.zeros_like(patterns)
    (pixels,) = place([pixels], plan.device)
    targets = target_classes(labels, config)
    for step in range(config.class_steps):
        draws = generator(drawn_seed(config), "class pattern", step)
        visited = torch.randperm(len(ensemble), generator=draws)[:PATTERN_CHECKPOINTS].tolist()
        chosen = _chosen(labels, torch.randperm(len(pixels), generator=draws), count)
        velocity = MOMENTUM * velocity
        parts = torch.split(chosen, plan.batch_size)
        # To the device once a step: it would wait for every pass's own.
        known = (
            torch.split(own[chosen].to(plan.device), plan.batch_size) for own in (labels, targets)
        )
        with closing(batches(pixels, parts, plan.device)) as read:
            for members in zip(read, *known, strict=True):
                for k in visited:
                    show = _view(len(members[0]), config, draws, plan.device)
                    velocity += _direction(members, patterns, ensemble[k], show, config, plan)
                    yield Progress(step, config.class_steps)
        towards = velocity.sum(1, keepdim=True).expand_as(velocity) if grey else velocity
        moved = patterns - epsilon * STEP_SHARE * towards.sign()
        patterns = moved.clamp(-epsilon, epsilon)
    yield patterns.cpu()


def _chosen(
    labels: Int64[Tensor, " n"], order: Int64[Tensor, " n"], count: int
) -> Int64[Tensor, " k"]:
    """The first `count` of an order, and of rare classes as many more as make `LEAST` of each."""
    ordered = labels[order]
    by_class = torch.argsort(ordered, stable=True)
    members = torch.bincount(labels)
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(order)) - (members.cumsum(0) - members)[ordered[by_class]]
    return order[(torch.arange(len(order)) < count) | (rank < LEAST)]


def _view(
    images: int, config: SEPConfig, draws: torch.Generator, device: str
) -> Callable[[Images], Images] | None:
    """What `views` draws, but a crop of each image's own.

    A pattern has to hold wherever an appropriator's crop puts it.
    """
    if config.views == "identity":
        return None
    crops = draw_crops(images, config, draws).to(device, non_blocking=True)
    crop = partial(augment, crops=crops, padding=config.crop_padding)
    change = views.CHANGES[views.draw_change(config, draws)]
    return lambda seen: crop(change(seen))


def _direction(
    members: tuple[UInt8[Tensor, "b 3 s s"], Int64[Tensor, " b"], Int64[Tensor, " b"]],
    patterns: Patterns,
    checkpoint: Checkpoint,
    show: Callable[[Images], Images] | None,
    config: SEPConfig,
    plan: Plan,
) -> Patterns:
    """The sum over each class of its images' gradients, of equal weight where that is asked for.

    Args:
        members: pixels, labels and target classes of images, on the device.
    """
    pixels, labels, targets = members
    originals = to_images(pixels)
    images = project(originals + patterns[labels], originals, config.epsilon_levels)
    gradient = loss_gradient(checkpoint, images, targets, config, plan, show)
    member = functional.one_hot(labels, len(patterns)).float()
    # A product, not index_add_, whose order on a GPU is not the same twice.
    return (member.T @ gradient.flatten(1)).view_as(patterns)
