"""How fast a gradient pass is beside an eager float32 one, and how fast the surrogate trains.

    python -m benchmarks.speed [--reference PATH] [--threads 1 2] [--rounds 5]

With --reference, PATH is a checkout of the authors' code (github.com/Sizhe-Chen/SEP): its network
and its statements of forward and backward pass are run from there, in its float32. Without it, the
other side is our own network as PyTorch runs it untouched: batch norm not folded, contiguous,
float32. Both sides have the same weights and the same images, in memory, and take turns. Figures
come last, one a line, `name: value unit`; a ratio is the median over the rounds. The matrix
rate is what the device gives for products of large matrices, in turns with them. Exits 1
where a ratio is below `--min-float32` or `--min-bfloat16` (the latter judged where the device has
bfloat16). `--record` keeps the figures for docs/results.md.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import authors
from benchmarks.figures import show
from benchmarks.files import versions
from benchmarks.resumable import code_sha256
from sep_core.arithmetic import prepare
from sep_core.config import Plan, Precision, SEPConfig, Variant, resolve
from sep_core.costs import forward_gflop
from sep_core.networks import Network, build
from sep_core.pixels import to_images
from sep_core.presets import PAPER
from sep_core.protection import loss_gradient, target_classes
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint, freeze
from sep_core.training import Progress, Recipe, fit

SEED, SIDE = "0" * 32, 32
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LEAST_COSINE = 0.999  # between the gradients of both sides in float32, or they are not the same

Pass = Callable[[], Tensor]
"""One gradient pass of the whole batch; returns the gradient."""
Measured = dict[str, tuple[float, str]]


def main() -> int:
    """Measure every variant and number of threads, print, judge."""
    options = _options()
    print(f"reference: {options.reference or 'our network, not folded, contiguous, float32'}")
    measured: Measured = {}
    low = False
    for threads, variant in itertools.product(options.threads, options.variants):
        prepare(Plan(device=options.device, precision="float32", threads=threads))
        name = f"{variant} {threads} thread{'s' * (threads > 1)}"
        passes = gradient_passes(variant, options)
        _check_same_gradient(passes)
        passes |= {f"{p} product": matrix_product(options.device, p) for p in PRECISIONS}
        seconds = in_turns(passes, options.rounds, options.device)
        measured["reference " + name] = _throughput(options.batch, seconds["reference"])
        for precision in PRECISIONS:
            each = [a / b for a, b in zip(seconds["reference"], seconds[precision], strict=True)]
            measured[f"{precision} {name}"] = _throughput(options.batch, seconds[precision])
            measured[f"{precision} {name} gradient pass ratio"] = _ratio(each)
            low |= _least(precision, options) > statistics.median(each)
            product = statistics.median(seconds[f"{precision} product"])
            rate = 2 * MATRIX_SIDE[options.device] ** 3 / 1e9 / product
            measured[f"{precision} matrix rate beside {name}"] = rate, "GFLOP/s"
            images_per_second, _ = measured[f"{precision} {name}"]
            share = 2 * forward_gflop(options.network, SIDE) * images_per_second / rate
            measured[f"{precision} {name} share of the matrix rate"] = share, "1"
    for precision, threads in itertools.product(PRECISIONS, options.threads):
        prepare(Plan(device=options.device, precision=precision, threads=threads))
        name = f"{precision} surrogate training {threads} thread{'s' * (threads > 1)}"
        measured[name] = _throughput(options.batch, training_seconds(precision, options))
    show(measured)
    if options.record:
        _record(measured, options)
    return int(low)


def _record(measured: Measured, options: argparse.Namespace) -> None:
    """What `benchmarks.strength.page` shows."""
    figures = {name: f"{value:.3g} {unit}" for name, (value, unit) in measured.items()}
    record = {
        "reference": "the authors' code" if options.reference else "our network, untouched",
        "network": options.network,
        "batch": options.batch,
        "device": options.device,
        "versions": versions(options.device),
        "code_sha256": code_sha256(),
        "figures": figures,
    }
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def gradient_passes(variant: Variant, options: argparse.Namespace) -> dict[str, Pass]:
    """The reference's pass and ours in both precisions, of the same weights and images."""
    pixels, labels, network = _batch_and_network(options)
    images = to_images(pixels)
    checkpoint = Checkpoint(1, freeze(network), torch.rand(10, network.head.in_features))
    config = resolve(_config(variant, options), 10)
    targets = target_classes(labels, config)
    move = {"device": options.device}
    images, targets, network = images.to(**move), targets.to(**move), network.to(**move)
    means = checkpoint.class_means.to(**move)
    checkpoint = Checkpoint(1, checkpoint.network.to(**move), means)

    def ours(precision: Precision) -> Pass:
        plan = Plan(device=options.device, precision=precision)
        return lambda: loss_gradient(checkpoint, images, targets, config, plan)

    reference = (
        authors.gradient_pass(options.reference, variant, network, images, targets, means)
        if options.reference
        else plain_pass(variant, network, images, targets, means)
    )
    return {"reference": reference} | {precision: ours(precision) for precision in PRECISIONS}


def plain_pass(
    variant: Variant, network: Network, images: Tensor, targets: Tensor, means: Tensor
) -> Pass:
    """Our network as PyTorch runs it untouched: eager, not folded, contiguous, float32."""
    network = network.to(memory_format=torch.contiguous_format)
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())

    def run() -> Tensor:
        leaf = images.detach().requires_grad_()
        loss = (
            functional.cross_entropy(network(leaf), targets)
            if variant == "sep"
            else functional.mse_loss(network.features(leaf), means[targets])
        )
        return torch.autograd.grad(loss, leaf)[0]

    return run


def in_turns(passes: dict[str, Pass], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every pass in every round, after one that warms up; each round runs all."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            seconds[name].append(_seconds(run, device))
    return seconds


def matrix_product(device: str, precision: Precision) -> Pass:
    """Of square matrices: what the device gives where nothing else is in the way."""
    side = MATRIX_SIDE[device]
    matrix = torch.rand(side, side, generator=generator(SEED, "matrix"))
    matrix = matrix.to(device, getattr(torch, precision))
    return lambda: matrix @ matrix


def training_seconds(precision: Precision, options: argparse.Namespace) -> list[float]:
    """Seconds of every batch of the surrogate's training, after one that warms up."""
    draws = generator(SEED, "training images")
    count = options.batch * (options.rounds + 1)
    pixels = torch.randint(256, (count, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=draws)
    plan = Plan(device=options.device, precision=precision)
    config = _config("sep", options)
    recipe = Recipe(config.surrogate, 1, "surrogate")
    events = fit(pixels, labels, 10, recipe, config=config, plan=plan)
    return list(_between(events, options.device))[1:]


def _between(events: Iterator[object], device: str) -> Iterator[float]:
    start = time.perf_counter()
    for event in events:
        if isinstance(event, Progress):
            _synchronise(device)
            now = time.perf_counter()
            yield now - start
            start = now


def _batch_and_network(options: argparse.Namespace) -> tuple[Tensor, Tensor, Network]:
    """Random pixels and labels, and a network whose batch norms have seen these pixels."""
    draws = generator(SEED, "speed")
    pixels = torch.randint(256, (options.batch, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8)
    labels = torch.randint(10, (options.batch,), generator=draws)
    mean, std = (torch.tensor(values) for values in authors.CIFAR10)
    network = build(_config("sep", options).surrogate, 10, SIDE, mean, std, draws).train()
    with torch.no_grad():
        for _ in range(3):
            network(to_images(pixels))
    return pixels, labels, network.eval()


def _config(variant: Variant, options: argparse.Namespace) -> SEPConfig:
    return replace(
        PAPER, variant=variant, surrogate=options.network, batch_size=options.batch, seed=SEED
    )


def _check_same_gradient(passes: dict[str, Pass]) -> None:
    """Both sides must do the same work; it warms them up, too."""
    reference, ours, _ = (run().flatten() for run in passes.values())
    cosine = functional.cosine_similarity(reference.double(), ours.double(), dim=0).item()
    if cosine < LEAST_COSINE:
        sys.exit(f"expected the same gradient on both sides, got a cosine of {cosine:.4f}")


def _seconds(run: Pass, device: str) -> float:
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _throughput(images: int, seconds: list[float]) -> tuple[float, str]:
    return images / statistics.median(seconds), "images/s"


def _ratio(each: list[float]) -> tuple[float, str]:
    spread = f"{min(each):.3g} to {max(each):.3g} in {len(each)} rounds"
    return statistics.median(each), f"1 ({spread})"


def _least(precision: Precision, options: argparse.Namespace) -> float:
    if precision == "float32":
        return cast(float, options.min_float32)
    return cast(float, options.min_bfloat16) if _has_bfloat16(options.device) else 0.0


def _has_bfloat16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(value is True for name, value in capabilities.items() if "bf16" in name)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="a checkout of the authors' code")
    parser.add_argument(
        "--variants", nargs="+", choices=list(authors.SCRIPTS), default=list(authors.SCRIPTS)
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", choices=("resnet18", "small"), default="resnet18")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--record", type=Path, help="docs/speed/NAME.json for docs/results.md")
    parser.add_argument("--min-float32", type=float, default=1.3)
    parser.add_argument("--min-bfloat16", type=float, default=2.2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
