"""One cell of a table: an appropriator trained once, its result in a file of its own.

What cells share (surrogates, released pixels) lies in a cache folder. Every file is written whole
or not at all, and made by whoever locks it first, so that any number of processes may work on the
same tables and any of them may be killed.
"""

import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.strength.data import Data, Split
from benchmarks.strength.recipes import CLEAN, NOISES, configure, hex_seed
from sep_core import evaluation, protection, surrogate
from sep_core.config import Countermeasure, NetworkName, Plan, SEPConfig, as_dict
from sep_core.costs import forward_gflop, gradient_passes
from sep_core.patterns import class_patterns
from sep_core.surrogate import Checkpoint, restore

Result = dict[str, Any]
ADVERSARIAL_PASSES = 3
# Fields that a surrogate does not depend on.
PERTURBATION = (
    "variant",
    "epsilon_levels",
    "steps",
    "step_levels",
    "inner_steps",
    "checkpoints_per_step",
    "perturb_momentum",
    "normalise_gradients",
    "views",
    "class_steps",
    "protected_classes",
    "protected_fraction",
    "target_map",
    "appropriator",
    "appropriator_epochs",
)


@dataclass(frozen=True)
class Cell:
    """An appropriator on images that `recipe` changed; both trainings have their own seed."""

    half: str
    recipe: str
    levels: int
    surrogate_seed: int
    network: NetworkName
    countermeasure: Countermeasure
    seed: int

    @property
    def release(self) -> str:
        """Names the images that it is trained on."""
        return f"{self.half}/{self.recipe}-{self.levels}-{self.surrogate_seed}"

    @property
    def path(self) -> str:
        """Of its result."""
        return f"{self.release}/{self.network}-{self.countermeasure}-{self.seed}.json"

    def config(self, classes: int = 10) -> SEPConfig:
        """Of the recipe, at this budget and with the surrogate's seed."""
        return configure(self.recipe, self.levels, self.surrogate_seed, classes, self.half)


@dataclass(frozen=True)
class Bench:
    """Where results and the cache are, on what data, and how it is computed."""

    results: Path
    cache: Path
    data: Callable[[str], Data]
    plan: Plan

    def done(self, cell: Cell) -> Result | None:
        """The result of a cell that has been measured."""
        path = self.results / cell.path
        return json.loads(path.read_text()) if path.exists() else None


def measure(cell: Cell, bench: Bench) -> bool:
    """Measure a cell; False if it is done already or another process is at it."""
    with _lock(bench.cache / f"{cell.path}.lock", wait=False) as mine:
        if not mine or bench.done(cell):
            return False
        data = bench.data(cell.half)
        config = cell.config(data.classes)
        train, made = release(cell, data, config, bench)
        trial = replace(config, appropriator=cell.network, seed=hex_seed(cell.seed))
        began = time.perf_counter()
        curve = [
            event.accuracy
            for event in evaluation.appropriate(
                train,
                data.test,
                data.classes,
                trial,
                bench.plan,
                countermeasure=cell.countermeasure,
            )
            if isinstance(event, evaluation.Accuracy)
        ]
        result = asdict(cell) | {
            "last": curve[-1],
            "peak": max(curve),
            "accuracy_by_epoch": [round(accuracy, 4) for accuracy in curve],
            "train_images": len(data.train[0]),
            "test_images": len(data.test[0]),
            "data_sha256": data.sha256,
            "config": as_dict(config),
            "plan": as_dict(bench.plan),
            "seconds": round(time.perf_counter() - began, 1),
            "release": made,
            "versions": versions(),
        }
        _write(bench.results / cell.path, json.dumps(result, indent=1).encode() + b"\n")
    return True


def release(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> tuple[Split, Result]:
    """The training images as they would leave, and what making them took."""
    if cell.recipe == CLEAN:
        return data.train, {"passes": 0, "seconds": 0.0}
    path = bench.cache / f"{cell.release}-{_digest(as_dict(config), data, bench.plan)}.pt"
    with _lock(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            _save(path, _released(cell, data, config, bench))
    stored = torch.load(path, weights_only=True)
    assert int((stored["pixels"].int() - data.train[0].int()).abs().max()) <= cell.levels
    return (stored["pixels"], data.train[1]), stored["made"]


def _released(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> Result:
    if cell.recipe in NOISES:
        began = time.perf_counter()
        pixels = NOISES[cell.recipe](*data.train, data.classes, config, bench.plan)
        return {"pixels": pixels, "made": {"seconds": round(time.perf_counter() - began, 1)}}
    ensemble = _ensemble(cell, data, config, bench)
    if cell.recipe == "last":
        config, ensemble = replace(config, checkpoints=1), ensemble[-1:]
    began = time.perf_counter()
    patterns = _patterns(data, ensemble, config, bench.plan)
    pixels = torch.cat(list(_perturbed(data.train, ensemble, config, bench.plan, patterns)))
    made = {"passes": gradient_passes(config), "seconds": round(time.perf_counter() - began, 1)}
    return {"pixels": pixels, "made": made}


def _patterns(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> Tensor | None:
    if not config.class_steps:
        return None
    *_, patterns = class_patterns(*data.train, data.classes, ensemble, config, plan)
    assert isinstance(patterns, Tensor)
    return patterns


def _perturbed(
    split: Split,
    ensemble: list[Checkpoint],
    config: SEPConfig,
    plan: Plan,
    patterns: Tensor | None,
) -> Iterator[Tensor]:
    parts = (torch.split(part, plan.batch_size) for part in split)
    for pixels, labels in zip(*parts, strict=True):
        *_, done = protection.protect([pixels], labels, ensemble, config, plan, patterns)
        assert isinstance(done, Tensor)
        yield done


def _ensemble(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> list[Checkpoint]:
    """The surrogate's checkpoints; what they depend on is their name in the cache."""
    training = as_dict(config) | dict.fromkeys(PERTURBATION)
    path = bench.cache / f"surrogates/{cell.half}-{_digest(training, data, bench.plan)}.pt"
    with _lock(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            events = surrogate.train(*data.train, data.classes, config, bench.plan)
            kept = [event for event in events if isinstance(event, Checkpoint)]
            _save(path, [(k.network.state_dict(), k.class_means, k.epoch) for k in kept])
    stored = torch.load(path, weights_only=True)
    return [restore(state, means, epoch, config, bench.plan) for state, means, epoch in stored]


def gflop(cell: Cell, images: int) -> float:
    """What is still to be computed for a cell, its share of what it has in common apart."""
    config = cell.config()
    forward = forward_gflop(cell.network, config.input_pixels)
    adversarial = cell.countermeasure.startswith("adversarial")
    training = 3 * forward * (1 + ADVERSARIAL_PASSES * adversarial)
    return training * config.appropriator_epochs * images


def release_gflop(cell: Cell, images: int, bench: Bench) -> float:
    """Of the images that a cell needs, if they are not in the cache."""
    if cell.recipe == CLEAN or any(
        (bench.cache / cell.half).glob(f"{Path(cell.release).name}-*.pt")
    ):
        return 0.0
    config = cell.config()
    forward = forward_gflop(config.surrogate, config.input_pixels)
    return (3 * config.epochs + 2 * gradient_passes(config)) * forward * images


def _digest(config: Mapping[str, object], data: Data, plan: Plan) -> str:
    """A field that has its default does not count: what is kept outlives new fields."""
    defaults = as_dict(SEPConfig())
    told = sorted((name, value) for name, value in config.items() if value != defaults[name])
    whole = repr([told, data.sha256, sorted(as_dict(plan).items())])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _save(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold `path`; gives False where another process does and we don't wait. Ends with us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
