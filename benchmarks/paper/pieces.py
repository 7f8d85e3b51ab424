"""The work in pieces: a surrogate, shards of changed images, trainings on them.

A piece is done when its files are there, and they come whole or not at all. It is computed from
the data, the configuration and the files of other pieces alone, so that it does not matter how
often the work was cut off. A shard that was cut off begins anew.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Data, Split
from benchmarks.files import save, versions, write_whole
from benchmarks.paper.trials import (
    APPROPRIATOR_SEED,
    STAGES,
    Trial,
    configure,
    surrogate_of,
    trained_by,
)
from benchmarks.resumable import code_sha256, trained
from benchmarks.strength.recipes import CLEAN
from sep_core import evaluation, protection, surrogate
from sep_core.config import Plan, SEPConfig, as_dict, checkpoint_epochs
from sep_core.costs import forward_gflop, gradient_passes, pattern_passes
from sep_core.patterns import class_patterns
from sep_core.surrogate import Checkpoint, restore

RESUME = "resume"
"""Folder of the states that trainings go on from."""


@dataclass(frozen=True, eq=False)
class Bench:
    """On what data, by what configuration and plan, and the folder of all files."""

    out: Path
    data: Data
    base: SEPConfig
    plan: Plan
    shard_images: int


@dataclass(frozen=True)
class Piece:
    """`work` yields the share that is done, in [0, 1], and leaves `files`.

    Attributes:
        judges: it is a training that no other piece needs.
    """

    name: str
    gflop: float
    files: list[Path]
    work: Callable[[], Iterator[float]]
    judges: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(file.exists() for file in self.files)


def pieces(bench: Bench, stages: list[str]) -> list[Piece]:
    """All the work of some stages in the order in which it is done, what is done included."""
    found: dict[str, Piece] = {}
    for trial in (trial for stage in stages for trial in STAGES[stage]):
        changed = [_surrogate(bench, trial), *_shards(bench, trial)] if trial.levels else []
        for piece in (*changed, _training(bench, trial)):
            found.setdefault(piece.name, piece)
    return list(found.values())


def _surrogate(bench: Bench, trial: Trial) -> Piece:
    name, config = surrogate_of(trial, bench.base)
    kept = checkpoint_epochs(config.epochs, config.checkpoints)
    forward = forward_gflop(config.surrogate, config.input_pixels)
    cost = (3 * config.epochs + len(kept)) * forward * len(bench.data.train[0])
    files = [_checkpoint_file(bench, name, epoch) for epoch in kept]
    return Piece(name, cost, files, partial(_train_surrogate, bench, name, config))


def _train_surrogate(bench: Bench, name: str, config: SEPConfig) -> Iterator[float]:
    train, classes = bench.data.train, bench.data.classes
    file = bench.out / RESUME / f"{name}.pt"

    def keep(checkpoint: Checkpoint) -> int:
        state = {part: tensor.cpu() for part, tensor in checkpoint.network.state_dict().items()}
        path = _checkpoint_file(bench, name, checkpoint.epoch)
        save(path, (state, checkpoint.class_means.cpu()))
        return checkpoint.epoch

    yield from trained(
        file, lambda begun: surrogate.train(*train, classes, config, bench.plan, begun), keep
    )
    file.unlink(missing_ok=True)


def _checkpoint_file(bench: Bench, surrogate_name: str, epoch: int) -> Path:
    return bench.out / f"{surrogate_name}/epoch-{epoch:04d}.pt"


@lru_cache(maxsize=1)
def _checkpoints(bench: Bench, name: str, config: SEPConfig) -> dict[int, Checkpoint]:
    """A surrogate's by their epochs, on the device."""
    kept = {}
    for epoch in checkpoint_epochs(config.epochs, config.checkpoints):
        state, means = torch.load(_checkpoint_file(bench, name, epoch), weights_only=True)
        kept[epoch] = restore(state, means, epoch, config, bench.plan)
    return kept


def _shards(bench: Bench, trial: Trial) -> list[Piece]:
    config, total = configure(trial, bench.base), len(bench.data.train[0])
    forward = forward_gflop(config.surrogate, config.input_pixels)
    shards = [_patterns(bench, trial)] if config.class_steps else []
    for first, file in zip(
        range(0, total, bench.shard_images), _shard_files(bench, trial), strict=True
    ):
        part = slice(first, min(first + bench.shard_images, total))
        cost = 2 * gradient_passes(config) * forward * (part.stop - part.start)
        work = partial(_perturb, bench, trial, part, file)
        name = f"{trial.release}, images {part.start} to {part.stop - 1}"
        shards.append(Piece(name, cost, [file], work))
    return shards


def _patterns(bench: Bench, trial: Trial) -> Piece:
    config = configure(trial, bench.base)
    passes = pattern_passes(config, len(bench.data.train[0]), bench.data.classes)
    cost = 2 * passes * forward_gflop(config.surrogate, config.input_pixels)
    file = _pattern_file(bench, trial)
    return Piece(f"{trial.release}, patterns", cost, [file], partial(_find, bench, trial, file))


def _pattern_file(bench: Bench, trial: Trial) -> Path:
    return bench.out / f"released/{trial.release}/patterns.pt"


def _find(bench: Bench, trial: Trial, file: Path) -> Iterator[float]:
    """What is common to each class."""
    train, classes, config = bench.data.train, bench.data.classes, configure(trial, bench.base)
    for event in class_patterns(*train, classes, _ensemble(bench, trial), config, bench.plan):
        if isinstance(event, Tensor):
            save(file, event)
        else:
            yield event.done / event.total


def _ensemble(bench: Bench, trial: Trial) -> list[Checkpoint]:
    config = configure(trial, bench.base)
    epochs = checkpoint_epochs(config.epochs, config.checkpoints)
    kept = _checkpoints(bench, *surrogate_of(trial, bench.base))
    return [kept[epoch] for epoch in epochs]


def _shard_files(bench: Bench, trial: Trial) -> list[Path]:
    firsts = range(0, len(bench.data.train[0]), bench.shard_images)
    return [bench.out / f"released/{trial.release}/{first:06d}.pt" for first in firsts]


def _perturb(bench: Bench, trial: Trial, part: slice, file: Path) -> Iterator[float]:
    config = configure(trial, bench.base)
    ensemble, patterns = _ensemble(bench, trial), None
    if config.class_steps:
        patterns = torch.load(_pattern_file(bench, trial), weights_only=True)
    split = [torch.split(tensor[part], bench.plan.batch_size) for tensor in bench.data.train]
    released, passes = [], gradient_passes(config)
    for number, (pixels, labels) in enumerate(zip(*split, strict=True)):
        for event in protection.protect([pixels], labels, ensemble, config, bench.plan, patterns):
            if isinstance(event, Tensor):
                released.append(event)
            else:
                yield (number + event / passes) / len(split[0])
    save(file, torch.cat(released))


def _training(bench: Bench, trial: Trial) -> Piece:
    trained = trained_by(trial, bench.base)
    forward = forward_gflop(trained.appropriator, trained.input_pixels)
    cost = 3 * trained.appropriator_epochs * forward * len(bench.data.train[0])
    file = (
        f"results/paper/{trial.release}/{trained.appropriator}-crop-flip-{APPROPRIATOR_SEED}.json"
    )
    return Piece(
        f"{trained.appropriator} on {trial.release}",
        cost,
        [bench.out / file],
        partial(_appropriate, bench, trial, trained, bench.out / file),
        judges=True,
    )


def _appropriate(bench: Bench, trial: Trial, config: SEPConfig, file: Path) -> Iterator[float]:
    data, train = bench.data, _released(bench, trial)
    kept = bench.out / RESUME / f"{trial.release}-{file.stem}.pt"
    curve, seconds = yield from trained(
        kept,
        lambda begun: evaluation.appropriate(
            train, data.test, data.classes, config, bench.plan, resumed=begun
        ),
        lambda event: event.accuracy,
    )
    result = _result(bench, trial, config, curve) | {"seconds": round(seconds, 1)}
    write_whole(file, json.dumps(result, indent=1).encode() + b"\n")
    kept.unlink(missing_ok=True)


def _released(bench: Bench, trial: Trial) -> Split:
    """The images as they would leave, within the budget."""
    pixels, labels = bench.data.train
    if trial.recipe == CLEAN:
        return pixels, labels
    files = _shard_files(bench, trial)
    released = torch.cat([torch.load(file, weights_only=True) for file in files])
    change = int((released.int() - pixels.int()).abs().max())
    if change > trial.levels:
        raise ValueError(f"change: expected at most {trial.levels} levels, got {change}")
    return released, labels


def _result(bench: Bench, trial: Trial, config: SEPConfig, curve: list[float]) -> dict[str, Any]:
    """As benchmarks.strength.cells has it, so that the page can show it."""
    changed = configure(trial, bench.base)
    return {
        "half": "paper",
        "recipe": trial.recipe,
        "levels": trial.levels,
        "surrogate_seed": trial.surrogate_seed,
        "network": config.appropriator,
        "countermeasure": "crop-flip",
        "seed": APPROPRIATOR_SEED,
        "last": curve[-1],
        "peak": max(curve),
        "accuracy_by_epoch": [round(accuracy, 4) for accuracy in curve],
        "train_images": len(bench.data.train[0]),
        "test_images": len(bench.data.test[0]),
        "data_sha256": bench.data.sha256,
        "config": as_dict(changed),
        "plan": as_dict(bench.plan),
        "release": {"passes": gradient_passes(changed) if trial.levels else 0},
        "versions": versions(bench.plan.device),
        "code_sha256": code_sha256(),
    }
