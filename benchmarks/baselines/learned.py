"""Changes that a network's gradients choose."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn import functional

from sep_core import protection, surrogate
from sep_core.arithmetic import autocast
from sep_core.channels import channel_statistics
from sep_core.config import Plan, SEPConfig, drawn_seed
from sep_core.evaluation import predictions
from sep_core.networks import Network, build
from sep_core.pixels import to_images, to_pixels
from sep_core.protection import Images, loss_gradient, step_along
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint, freeze

Pixels = UInt8[Tensor, "n 3 s s"]
Labels = Int64[Tensor, " n"]


def targeted(
    pixels: Pixels,
    labels: Labels,
    classes: int,
    config: SEPConfig,
    plan: Plan,
    *,
    steps: int = 250,
) -> Pixels:
    """Targeted adversarial poisons (Fowl et al., NeurIPS 2021).

    Cross-entropy to class g(y) through one fully trained network, `steps` signed steps of a tenth
    of the budget. It is `sep` with its last checkpoint alone, and shares `sep`'s target map and
    surrogate recipe. The paper optimises through random crops and flips, by signed Adam; here none
    of the compared methods does.
    """
    alone = replace(
        config, variant="sep", checkpoints=1, steps=steps, step_levels=config.epsilon_levels / 10
    )
    *_, last = surrogate.train(pixels, labels, classes, alone, plan)
    assert isinstance(last, Checkpoint)
    changed = []
    for images, answers in _batches(pixels, labels, plan):
        *_, done = protection.protect([images], answers, [last], alone, plan)
        assert isinstance(done, Tensor)
        changed.append(done)
    return torch.cat(changed)


def error_minimising(
    pixels: Pixels,
    labels: Labels,
    classes: int,
    config: SEPConfig,
    plan: Plan,
    *,
    rounds: int = 30,
    network_steps: int = 10,
    noise_steps: int = 20,
    stop_error: float = 0.01,
) -> Pixels:
    """Error-minimising noise of every image (Huang et al., ICLR 2021).

    `network_steps` batches train the network on the changed images, then `noise_steps` signed steps
    of a tenth of the budget lower its loss on every image, in turns until its error on the changed
    images is below `stop_error`; numbers as in the paper, `rounds` a limit that it has not. Costs
    rounds * noise_steps gradient passes an image. The network sees images without augmentation.
    """
    turns = alternate(pixels, labels, classes, config, plan, network_steps, noise_steps)
    for _, (network, changed) in zip(range(rounds), turns, strict=False):
        if _error(network, changed, labels, plan) < stop_error:
            break
    return changed


def alternate(
    pixels: Pixels,
    labels: Labels,
    classes: int,
    config: SEPConfig,
    plan: Plan,
    network_steps: int,
    noise_steps: int,
) -> Iterator[tuple[Network, Pixels]]:
    """After every turn, endlessly: the network, frozen as the noise saw it, and the images."""
    draws = generator(drawn_seed(config), "error-minimising")
    network = build(
        config.surrogate, classes, config.input_pixels, *channel_statistics(pixels), draws
    ).to(plan.device)
    optimiser = torch.optim.SGD(
        network.parameters(),
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
    )
    changed = to_images(pixels)
    while True:
        for _ in range(network_steps):
            chosen = torch.randperm(len(pixels), generator=draws)[: config.batch_size]
            _train(network, optimiser, changed[chosen], labels[chosen], plan)
        frozen = freeze(network)
        changed = torch.cat(
            [
                minimise(frozen, to_images(original), current, answer, config, plan, noise_steps)
                for (original, answer), current in zip(
                    _batches(pixels, labels, plan),
                    torch.split(changed, plan.batch_size),
                    strict=True,
                )
            ]
        )
        yield frozen, to_pixels(changed)


def minimise(
    network: Network,
    originals: Images,
    images: Images,
    labels: Labels,
    config: SEPConfig,
    plan: Plan,
    steps: int,
) -> Images:
    """Signed steps that lower the cross-entropy to the true class, within the budget."""
    descent = replace(config, variant="sep", step_levels=config.epsilon_levels / 10)
    originals, images = originals.to(plan.device), images.to(plan.device)
    checkpoint = Checkpoint(1, network, torch.empty(0, 0))  # `sep` reads no class means
    for _ in range(steps):
        direction = loss_gradient(checkpoint, images, labels.to(plan.device), descent, plan)
        images = step_along(direction, images, originals, descent)
    return images.cpu()


def _train(
    network: Network, optimiser: torch.optim.SGD, images: Images, labels: Labels, plan: Plan
) -> None:
    network.train()
    with autocast(plan):
        logits = network(images.to(plan.device))
    loss = functional.cross_entropy(logits.float(), labels.to(plan.device))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimiser.step()


def _error(network: Network, pixels: Pixels, labels: Labels, plan: Plan) -> float:
    predicted = torch.cat(list(predictions(network, pixels, plan)))
    return (predicted != labels).double().mean().item()


def _batches(pixels: Pixels, labels: Labels, plan: Plan) -> Iterator[tuple[Pixels, Labels]]:
    return zip(
        torch.split(pixels, plan.batch_size), torch.split(labels, plan.batch_size), strict=True
    )
