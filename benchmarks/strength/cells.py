"""One cell of a table: an appropriator trained once, its result in a file of its own.

What cells share (surrogates, released pixels) lies in a cache folder. Every file is written whole
or not at all, and made by whoever locks it first, so that any number of processes may work on the
same tables and any of them may be killed.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data import Data, Split
from benchmarks.files import save, versions, write_whole
from benchmarks.resumable import code_sha256, result_of, trained
from benchmarks.strength.recipes import CLEAN, NOISES, configure, hex_seed
from benchmarks.strength.weights import Weights
from sep_core import evaluation, protection, surrogate, views
from sep_core.config import PRETRAINED, Countermeasure, NetworkName, Plan, SEPConfig, as_dict
from sep_core.costs import gradient_passes
from sep_core.patterns import class_patterns
from sep_core.surrogate import Checkpoint, restore

Result = dict[str, Any]
# Of the plan, what figures may depend on beyond the last digits.
ARITHMETIC = ("device", "precision")
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
    """Where results and the cache are, on what data, and how it is computed, begun with what."""

    results: Path
    cache: Path
    data: Callable[[str], Data]
    plan: Plan
    weights: Weights | None = None

    def done(self, cell: Cell) -> Result | None:
        """The result of a cell that has been measured, if recipe and weights are what they were."""
        path = self.results / cell.path
        if not path.exists():
            return None
        result: Result = json.loads(path.read_text())
        weights = self.of(cell)
        begun = weights is None or result["weights_sha256"] == weights.sha256
        alike = all(result["plan"][name] == getattr(self.plan, name) for name in ARITHMETIC)
        here = alike and result["data_sha256"] == self.data(cell.half).sha256
        return result if begun and here and is_current(cell, result) else None

    def of(self, cell: Cell) -> Weights | None:
        """What a cell begins with."""
        return self.weights if cell.countermeasure in PRETRAINED else None


def is_current(cell: Cell, result: Result) -> bool:
    """Whether a result is of the recipe as it is now; new fields of it had their defaults then."""
    now = as_dict(walk(cell, cell.config(len(result["config"]["target_map"]))))
    then = json.loads(json.dumps(as_dict(SEPConfig()))) | result["config"]
    return bool(json.loads(json.dumps(now)) == then and result.get("views") == _views(now))


def _views(config: Mapping[str, object]) -> list[str] | None:
    """What views are drawn from, where it is not the configuration that says it."""
    return list(views.HARDENED) if config["views"] == "hardened" else None


def measure(cell: Cell, bench: Bench) -> bool:
    """Measure a cell; False if it is done already or another process is at it."""
    with _lock(bench.cache / f"{cell.path}.lock", wait=False) as mine:
        if not mine or bench.done(cell):
            return False
        data = bench.data(cell.half)
        config = cell.config(data.classes)
        train, made = release(cell, data, config, bench)
        state = _state_path(cell, data, config, bench)
        curve, seconds = result_of(_appropriate(cell, train, data, config, bench, state))
        plain, renamed = zip(*curve, strict=True)
        result = asdict(cell) | {
            "last": plain[-1],
            "peak": max(plain),
            "accuracy_by_epoch": [round(accuracy, 4) for accuracy in plain],
            "renamed_last": renamed[-1],
            "renamed_peak": max(renamed),
            "train_images": len(data.train[0]),
            "test_images": len(data.test[0]),
            "data_sha256": data.sha256,
            "config": as_dict(walk(cell, config)),
            "plan": as_dict(bench.plan),
            "seconds": round(seconds, 1),
            "release": made,
            "versions": versions(bench.plan.device),
            "code_sha256": code_sha256(),
        }
        if weights := bench.of(cell):
            result["weights_sha256"] = weights.sha256
        if drawn := _views(as_dict(config)):
            result["views"] = drawn
        write_whole(bench.results / cell.path, json.dumps(result, indent=1).encode() + b"\n")
        state.unlink(missing_ok=True)
    return True


def _appropriate(
    cell: Cell, train: Split, data: Data, config: SEPConfig, bench: Bench, state: Path
) -> Generator[float, None, tuple[list[tuple[float, float]], float]]:
    """The accuracy after each epoch, plain and with answers renamed, and the seconds it took."""
    trial = replace(config, appropriator=cell.network, seed=hex_seed(cell.seed))
    weights = bench.of(cell)
    begin = partial(
        evaluation.appropriate,
        train,
        data.test,
        data.classes,
        trial,
        bench.plan,
        countermeasure=cell.countermeasure,
        pretrained=None if weights is None else weights.state(train[0].shape[-1]),
    )

    def figures(event: evaluation.Accuracy) -> tuple[float, float]:
        return event.accuracy, sum(event.renamed) / len(data.test[1])

    return trained(state, lambda begun: begin(resumed=begun), figures)


def _state_path(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> Path:
    """Of a training that goes on; of another recipe, data or weights it has another name."""
    weights, digest = bench.of(cell), _digest(as_dict(config), data, bench.plan)
    began = f"-{weights.sha256[:16]}" if weights else ""
    return bench.cache / f"{cell.path.removesuffix('.json')}-{digest}{began}.pt"


def release(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> tuple[Split, Result]:
    """The training images as they would leave, and what making them took."""
    if cell.recipe == CLEAN:
        return data.train, {"passes": 0, "seconds": 0.0}
    path = release_path(cell, data, config, bench)
    with _lock(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            save(path, _released(cell, data, config, bench, path.with_suffix("")))
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    stored = torch.load(path, weights_only=True)
    assert int((stored["pixels"].int() - data.train[0].int()).abs().max()) <= cell.levels
    return (stored["pixels"], data.train[1]), stored["made"]


def release_path(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> Path:
    """Where changed images are kept, by the digest of what they depend on."""
    return bench.cache / f"{cell.release}-{_digest(as_dict(config), data, bench.plan)}.pt"


def _released(cell: Cell, data: Data, config: SEPConfig, bench: Bench, parts: Path) -> Result:
    if cell.recipe in NOISES:
        began = time.perf_counter()
        pixels = NOISES[cell.recipe](*data.train, data.classes, config, bench.plan)
        return {"pixels": pixels, "made": {"seconds": round(time.perf_counter() - began, 1)}}
    ensemble = _ensemble(cell, data, config, bench)
    config = walk(cell, config)
    ensemble = ensemble[-config.checkpoints :]
    batches = _perturbed(data, ensemble, config, _plan(config, bench), parts)
    done = list(batches)
    seconds = sum(seconds for _, seconds in done)
    made = {"passes": gradient_passes(config), "seconds": round(seconds, 1)}
    return {"pixels": torch.cat([pixels for pixels, _ in done]), "made": made}


def walk(cell: Cell, config: SEPConfig) -> SEPConfig:
    """How the images are perturbed: the targeted poison knows the surrogate's last checkpoint."""
    return replace(config, checkpoints=1) if cell.recipe == "last" else config


def _patterns(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> Tensor | None:
    if not config.class_steps:
        return None
    *_, patterns = class_patterns(*data.train, data.classes, ensemble, config, plan)
    assert isinstance(patterns, Tensor)
    return patterns


def _perturbed(
    data: Data, ensemble: list[Checkpoint], config: SEPConfig, plan: Plan, folder: Path
) -> Iterator[tuple[Tensor, float]]:
    """Each batch and the seconds it took; batches lie in `folder`, so that hours may be stopped."""
    began = time.perf_counter()
    patterns = _patterns(data, ensemble, config, plan)
    parts = (torch.split(part, plan.batch_size) for part in data.train)
    for number, (pixels, labels) in enumerate(zip(*parts, strict=True)):
        path = folder / f"{number:05}.pt"
        if not path.exists():
            *_, done = protection.protect([pixels], labels, ensemble, config, plan, patterns)
            save(path, (done, time.perf_counter() - began))
        began = time.perf_counter()
        yield torch.load(path, weights_only=True)


def _ensemble(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> list[Checkpoint]:
    """The surrogate's checkpoints; what they depend on is their name in the cache."""
    path = surrogate_path(cell, data, config, bench)
    with _lock(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            begin = partial(
                surrogate.train, *data.train, data.classes, config, _plan(config, bench)
            )
            state = path.with_suffix(".state.pt")
            kept, _ = result_of(
                trained(state, begin, lambda k: (k.network.state_dict(), k.class_means, k.epoch))
            )
            save(path, kept)
            state.unlink(missing_ok=True)
    stored = torch.load(path, weights_only=True)
    plan = _plan(config, bench)
    return [restore(state, means, epoch, config, plan) for state, means, epoch in stored]


def surrogate_path(cell: Cell, data: Data, config: SEPConfig, bench: Bench) -> Path:
    """Where a surrogate's checkpoints are kept, by the digest of what they depend on."""
    training = as_dict(config) | dict.fromkeys(PERTURBATION)
    digest = _digest(training, data, _plan(config, bench))
    return bench.cache / f"surrogates/{cell.half}-{digest}.pt"


def _plan(config: SEPConfig, bench: Bench) -> Plan:
    """Surrogate and images at the recipe's own precision, where it names one."""
    if config.precision == "auto":
        return bench.plan
    return replace(bench.plan, precision=config.precision)


def _digest(config: Mapping[str, object], data: Data, plan: Plan) -> str:
    """A field that has its default does not count: what is kept outlives new fields."""
    defaults = as_dict(SEPConfig())
    told = sorted((name, value) for name, value in config.items() if value != defaults[name])
    whole = repr(
        [told, *filter(None, [_views(config)]), data.sha256, sorted(as_dict(plan).items())]
    )
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


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
