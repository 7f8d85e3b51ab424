"""How fast this worker trains and perturbs, measured for a few seconds."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from api.plans.speeds import MEASURED_NETWORKS, MEASURED_SIDES, Device, Speed
from api.plans.workload import MAX_BATCH_PIXELS, batch_size
from sep_core.arithmetic import prepare
from sep_core.config import Plan, SEPConfig, resolve
from sep_core.costs import forward_gflop
from sep_core.networks import Network
from sep_core.presets import QUICK, at_side
from sep_core.protection import protect
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint, freeze
from sep_core.training import Epoch, Progress, Recipe, fit
from worker.lease import DrainFlag, WorkerDraining

SECONDS = 0.3
"""Of each measurement, three a side, after a first pass that loads and compiles what it needs."""
LARGE_SIDE = 1024
"""Of images whose time, as they are perturbed, is that of their pixels."""
CLASSES = 2
SEED = "0" * 32


def measure(device: Device, drain: DrainFlag) -> list[Speed]:
    """The speed through MEASURED_NETWORKS at MEASURED_SIDES, at the precision of a plan.

    Raises:
        WorkerDraining: this worker is to end; on a busy machine it is not to wait for the clock.
    """
    plan = Plan(
        device="cuda" if device.device == "cuda" else "cpu",
        precision="bfloat16" if device.bfloat16 else "float32",
        threads=device.threads,
    )
    prepare(plan)
    config = resolve(replace(QUICK, seed=SEED, steps=10_000), CLASSES)
    measured = [
        at_side(replace(config, surrogate=network), side)
        for network, side in product(MEASURED_NETWORKS[plan.device], MEASURED_SIDES)
    ]
    return [_speed(of, plan, batch_size(of, device), drain) for of in measured]


def _speed(config: SEPConfig, plan: Plan, images: int, drain: DrainFlag) -> Speed:
    forward = forward_gflop(config.surrogate, config.input_pixels)
    training, network = _training(config, plan, drain)
    batch = _images(images, config.input_pixels)
    passes = images * _steps(network, batch, config, plan, drain)
    large = _images(MAX_BATCH_PIXELS[plan.device] // LARGE_SIDE**2, LARGE_SIDE)
    walked = (
        len(large[0])
        * LARGE_SIDE**2
        * _steps(network, large, config, plan, drain, QUICK.checkpoints_per_step)
    )
    gflops = 2 * forward * passes, 3 * forward * training
    return Speed(config.input_pixels, *gflops, config.surrogate, walked)


def _training(config: SEPConfig, plan: Plan, drain: DrainFlag) -> tuple[float, Network]:
    """Images a second, and the network that came of it."""
    recipe = Recipe(config.surrogate, 10_000, "calibration")
    pixels, labels = _images(config.batch_size, config.input_pixels)
    events = fit(pixels, labels, CLASSES, recipe, config=config, plan=plan)
    network = next(event.network for event in _until(drain, events) if isinstance(event, Epoch))
    steps = (event for event in events if isinstance(event, Progress))
    return _rate(_until(drain, steps), plan) * config.batch_size, network


def _steps(
    network: Network,
    images: tuple[Tensor, Tensor],
    config: SEPConfig,
    plan: Plan,
    drain: DrainFlag,
    passes: int = 1,
) -> float:
    """Steps a second of these images, each of so many gradient passes."""
    means = torch.zeros(CLASSES, network.head.in_features, device=plan.device)
    ensemble = [Checkpoint(1, freeze(network), means)] * passes
    pixels, labels = images
    all_of_them = replace(config, checkpoints=passes, checkpoints_per_step=0)
    work = protect([pixels], labels, ensemble, all_of_them, plan)
    events = _until(drain, work)
    next(events)
    return _rate(events, plan) / passes


def _rate(events: Iterator[object], plan: Plan) -> float:
    """Events a second; the device has done what it was given when the clock is read."""
    _wait(plan)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        next(events)
        count += 1
    _wait(plan)
    return count / (time.perf_counter() - began)


def _until(drain: DrainFlag, events: Iterator[object]) -> Iterator[object]:
    """The events, as long as this worker is to live."""
    for event in events:
        if drain.is_set():
            raise WorkerDraining
        yield event


def _wait(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()


def _images(count: int, side: int) -> tuple[Tensor, Tensor]:
    draws = generator(SEED, "calibration", count)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)
    return pixels, torch.arange(count) % CLASSES
