"""Self-Ensemble Protection (Chen et al., ICLR 2023): objectives, ensemble gradients, the loop.

Every image is moved, within its budget, towards being taken for class g(y) by all checkpoints:

    sep        L_k(x) = cross-entropy(f_k(x), g(y))                                   (eq. 3)
    sep-fa     L_k(x) = || features_k(x) - mean feature of class g(y) under k ||^2     (eq. 5)
    sep-fa-vr  sep-fa, the gradient by SVRG over the checkpoints                      (algorithm 1)

    x_{t+1} = P(x_t - a sign G),   G the mean of grad L_k(x_t) over k, or its SVRG form

Beyond the paper, and off in its presets: fewer checkpoints, drawn afresh for every step; momentum
and gradients of equal weight (MI-FGSM; Dong et al. 2018, eq. 6); views (`sep_core.views`).

Networks see images at their input size, and the way there is linear: gradients are taken, weighed
and summed at that size, and only G is brought back to the image's own, where the step is taken.
So images of any sizes share a pass; those of one shape are a part of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from sep_core import views
from sep_core.arithmetic import autocast
from sep_core.config import Plan, SEPConfig, drawn_seed
from sep_core.pixels import LEVELS, Resize, project, to_images, to_input, to_pixels
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from sep_core.views import Seen

Images = Float32[Tensor, "b c h w"]
Own = Float32[Tensor, "_ c _ _"]
"""Images of one part of a batch, at their own size."""
Patterns = Float32[Tensor, "y 3 s s"]
Gradient = Callable[[int, Seen], Seen]
"""g_k: the gradient of checkpoint k's loss at an image of input size."""
TINY = 1e-20
"""Below any gradient that is not zero: an image without one stays as it is."""


@dataclass(frozen=True)
class Part:
    """Images of one shape among those of a batch, and their way to the networks' input."""

    originals: Images
    resize: Resize

    @cached_property
    def grey(self) -> Bool[Tensor, " b"]:
        """Images whose channels are equal: they stay so.

        Each channel's own change would be one more look at the same hidden value.
        """
        return is_grey(self.originals)


def protect(
    parts: Sequence[UInt8[Tensor, "_ c _ _"]],
    labels: Int64[Tensor, " b"],
    ensemble: Sequence[Checkpoint],
    config: SEPConfig,
    plan: Plan,
    patterns: Patterns | None = None,
) -> Iterator[int | UInt8[Tensor, "_ c _ _"]]:
    """Protect one batch of images, all grey or all in colour: those of one shape are a part.

    Yields the number of gradient passes done so far after every one of them, then the protected
    pixels of each part, on the CPU, at most `config.epsilon_levels` away from what came in.

    What is grey stays grey, in however many channels it came.

    Args:
        parts: of any heights and widths. Of grey images every gradient has one channel, the sum
            over the three that networks see; so they are in no batch with others.
        labels: of the images of all parts, one after the other.
        patterns: where the walk begins: `sep_core.patterns`, at the networks' input size.
    """
    batch = [_part(pixels, config, plan) for pixels in parts]
    targets = target_classes(labels, config).to(plan.device)

    def gradient(k: int, seen: Seen, step: int) -> Seen:
        show = partial(views.show, view=views.draw(config, step, k), padding=config.crop_padding)
        return loss_gradient(ensemble[k], seen, targets, config, plan, show)

    passes = 0
    velocity: Tensor | float = 0.0
    own_labels = torch.split(labels, [len(pixels) for pixels in parts])
    images = [
        begin(part.originals, own, patterns, config.epsilon_levels)
        for part, own in zip(batch, own_labels, strict=True)
    ]
    for step in range(config.steps):
        visited = visits(config, len(ensemble), step)
        gradient_now = partial(gradient, step=step)
        directions = (
            reduced_direction(images, batch, gradient_now, visited, step=step, config=config)
            if config.variant == "sep-fa-vr"
            else mean_direction(see(images, batch), gradient_now, visited)
        )
        for direction_so_far in directions:  # one a gradient pass; the last one counts
            passes, direction = passes + 1, direction_so_far
            yield passes
        velocity = config.perturb_momentum * velocity + direction
        images = walk(velocity, images, batch, config)
    for own in images:
        yield to_pixels(own).cpu()


def _part(pixels: UInt8[Tensor, "b c h w"], config: SEPConfig, plan: Plan) -> Part:
    originals = to_images(pixels.to(plan.device, non_blocking=True))
    return Part(originals, Resize.of(originals, config.input_pixels))


def begin(
    originals: Images,
    labels: Int64[Tensor, " b"],
    patterns: Patterns | None,
    epsilon_levels: int,
) -> Images:
    """The originals, changed by the pattern of their class at their own size."""
    if patterns is None:
        return originals
    own = functional.interpolate(
        patterns[labels], originals.shape[-2:], mode="bilinear", antialias=True
    ).to(originals.device)
    own = in_one_channel(own, is_grey(originals))[:, : originals.shape[1]]
    return project(originals + own, originals, epsilon_levels)


def is_grey(images: Images | UInt8[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Whether all channels of an image are equal."""
    return (images == images[:, :1]).flatten(1).all(1)


def in_one_channel(change: Images, grey: Bool[Tensor, " b"]) -> Images:
    """A change as it is and, of images that are grey, what its channels have in common."""
    return torch.where(grey[:, None, None, None], change.mean(1, keepdim=True), change)


def visits(config: SEPConfig, checkpoints: int, step: int) -> list[int]:
    """The checkpoints of one step: all, or `checkpoints_per_step` drawn without repetition."""
    if config.checkpoints_per_step in (0, checkpoints):
        return list(range(checkpoints))
    draws = generator(drawn_seed(config), "checkpoints", step)
    chosen: list[int] = torch.randperm(checkpoints, generator=draws).tolist()
    return sorted(chosen[: config.checkpoints_per_step])


def target_classes(labels: Int64[Tensor, " b"], config: SEPConfig) -> Int64[Tensor, " b"]:
    """g(y) of every label.

    Raises:
        ValueError: the target map is not resolved, or has no entry for a label.
    """
    if isinstance(config.target_map, str):  # the type is right, the value too early
        raise ValueError(  # noqa: TRY004
            f"target_map: expected a resolved one, got {config.target_map!r}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(config.target_map):
        raise ValueError(f"labels: expected 0 to {len(config.target_map) - 1}, got others")
    return torch.tensor(config.target_map)[labels]


def mean_direction(seen: Seen, gradient: Gradient, visited: Sequence[int]) -> Iterator[Seen]:
    """sep, sep-fa: the mean of g_k(x_t) over the k visited, after each the mean so far."""
    total = torch.zeros_like(seen)
    for number, k in enumerate(visited, start=1):
        total = total + gradient(k, seen)
        yield total / number


def reduced_direction(
    images: Sequence[Own],
    batch: Sequence[Part],
    gradient: Gradient,
    visited: Sequence[int],
    *,
    step: int,
    config: SEPConfig,
) -> Iterator[Seen]:
    """sep-fa-vr: G += g_k(z) - (g_k(x_t) - m) along an inner walk z over drawn checkpoints k."""
    seen = see(images, batch)
    anchors = []
    for k in visited:
        anchors.append(gradient(k, seen))
        yield anchors[-1]
    mean = torch.stack(anchors).mean(0)
    total, walker = torch.zeros_like(seen), images
    draws = generator(drawn_seed(config), "variance reduction", step)
    for at in torch.randint(len(visited), (config.inner_steps,), generator=draws).tolist():
        total = total + gradient(visited[at], seen) - (anchors[at] - mean)
        yield total
        walker = walk(total, walker, batch, config)
        seen = see(walker, batch)


def see(images: Sequence[Own], batch: Sequence[Part]) -> Seen:
    """The images of every part, at the networks' input size."""
    return torch.cat([part.resize(own) for part, own in zip(batch, images, strict=True)])


def walk(
    direction: Seen, images: Sequence[Own], batch: Sequence[Part], config: SEPConfig
) -> list[Own]:
    """P(x - a sign G) of every part, at its own size."""
    directions = torch.split(direction, [len(own) for own in images])
    return [
        step_along(
            in_one_channel(part.resize.pull_back(seen), part.grey), own, part.originals, config
        )
        for part, seen, own in zip(batch, directions, images, strict=True)
    ]


def step_along(direction: Images, images: Images, originals: Images, config: SEPConfig) -> Images:
    """P(x - a sign G)."""
    moved = images - config.step_levels / LEVELS * direction.sign()
    return project(moved, originals, config.epsilon_levels)


def loss_gradient(
    checkpoint: Checkpoint,
    images: Images,
    targets: Int64[Tensor, " b"],
    config: SEPConfig,
    plan: Plan,
    show: Callable[[Images], Images] | None = None,
) -> Images:
    """g_k(x): each image's own gradient, since the losses are summed over the batch.

    `show` changes the input as the checkpoint is to see it.

    With `normalise_gradients` divided by the mean of its absolute values, so that a checkpoint
    which is sure of itself weighs no more than the others.
    """
    images = images.detach().requires_grad_()
    seen = to_input(images, config.input_pixels)
    seen = show(seen) if show else seen
    with autocast(plan):
        if config.variant == "sep":
            outputs = checkpoint.network(seen)
        else:
            outputs = checkpoint.network.features(seen)
    loss = (
        cross_entropy(outputs.float(), targets).sum()
        if config.variant == "sep"
        else (outputs.float() - checkpoint.class_means[targets]).square().sum()
    )
    gradient = torch.autograd.grad(loss, images)[0]
    if config.normalise_gradients:
        gradient = gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=TINY)
    return gradient


def cross_entropy(
    logits: Float32[Tensor, "b y"], targets: Int64[Tensor, " b"]
) -> Float32[Tensor, " b"]:
    """Each image's cross-entropy to its target, as log(1 + sum of exp(logit - target's logit)).

    The gradient of the usual form has p - 1 in it, which loses every digit where p is nearly 1;
    and that is where a walk towards the target ends.
    """
    # By masks, not by indices, for which the host would wait in every pass.
    at_target = torch.zeros_like(logits, dtype=torch.bool).scatter(1, targets[:, None], value=True)
    others = logits.masked_fill(at_target, -torch.inf).logsumexp(1)
    own = logits.masked_fill(~at_target, 0).sum(1)
    return functional.softplus(others - own)
