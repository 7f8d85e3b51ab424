"""What a protection is asked to do (`SEPConfig`) and how its bytes are computed (`Plan`).

Imports no torch, so that the application can validate a request without it.
"""

import hashlib
import math
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

Variant = Literal["sep", "sep-fa", "sep-fa-vr"]
NetworkName = Literal[
    "resnet18", "senet18", "vgg16", "densenet121", "googlenet", "vit", "mlp", "linear", "small"
]
Countermeasure = Literal[
    "none",
    "crop-flip",
    "cutout",
    "mixup",
    "cutmix",
    "randaugment",
    "grey",
    "bit-depth",
    "jpeg-90",
    "jpeg-50",
    "jpeg-10",
    "rescale",
    "blur",
    "adversarial-2",
    "adversarial-4",
    "adversarial-8",
    "pretrained-frozen",
    "pretrained-tuned",
]
COUNTERMEASURES: tuple[Countermeasure, ...] = get_args(Countermeasure)
Precision = Literal["float32", "bfloat16"]
Views = Literal["identity", "crop", "hardened"]

# From this side on networks have the form that torchvision gives them, below it one for 32 pixels.
LARGE_PIXELS = 64

# GFLOP of one forward pass of one image, a multiply-add counted as two (measured with
# torch.utils.flop_counter, ten classes): a fixed part, and one for every 32 x 32 pixels. A training
# image costs three of them, an input gradient two.
FORWARD_GFLOP: dict[NetworkName, tuple[float, float]] = {
    "resnet18": (0.0, 1.11),
    "senet18": (0.0, 1.11),
    "vgg16": (0.0, 0.626),
    "densenet121": (0.0, 1.777),
    "googlenet": (0.0, 2.674),
    "vit": (0.3645, 0.00118),
    "mlp": (0.000534, 0.003146),
    "linear": (0.0, 0.00006144),
    "small": (0.0, 0.07),
}
LARGE_FORWARD_GFLOP: dict[NetworkName, tuple[float, float]] = FORWARD_GFLOP | {
    "resnet18": (0.0, 0.0740),
    "senet18": (0.0, 0.0741),
    "vgg16": (0.239, 0.626),
    "densenet121": (0.0, 0.1156),
    "googlenet": (0.0, 0.0611),
    "small": (0.0, 0.00553),
}

SEED_HEX_DIGITS = 32
MAX_EPSILON_LEVELS = 64


@dataclass(frozen=True, kw_only=True)
class SEPConfig:
    """One protection, whole and frozen. The defaults are the paper's (section 4.1, appendix A).

    Attributes:
        variant: the objective; see `sep_core.protection`.
        epsilon_levels: the budget, an L-infinity bound in grey levels of 255, 1 to 64.
        steps: outer steps T of the perturbation.
        step_levels: step size in grey levels, above 0.
        checkpoints: ensemble size n, at most `epochs`.
        inner_steps: M of the variance reduction; only `sep-fa-vr` reads it.
        checkpoints_per_step: drawn afresh for every outer step, at most `checkpoints`; 0 takes
            all, as the paper does.
        perturb_momentum: share of the last outer step's direction in the next, in [0, 1).
        normalise_gradients: every checkpoint's gradient of an image gets the same weight.
        views: what checkpoints are shown while images are perturbed: the image itself
            (`identity`, the paper), random crops as in training (`crop`), or these of images that
            are first compressed, greyed or shrunk as appropriators do (`hardened`).
        surrogate, appropriator: networks, see `sep_core.networks`.
        input_pixels: side of the square that both networks see.
        epochs, appropriator_epochs: lengths of the two trainings.
        batch_size, learning_rate, momentum, weight_decay: SGD, for both trainings.
        warmup_epochs: length of a linear rise from `warmup_learning_rate`, in epochs.
        schedule: `step` divides the rate by ten at each of `milestones`, `cosine` lets it fall
            to 0.
        milestones: shares of the training in (0, 1), rising.
        crop_padding: random-crop padding in pixels; flip: random horizontal flips.
        target_map: g as a list (class y is moved towards class `target_map[y]`), `shift` (the
            paper's y + 1) or `random`, a derangement drawn from the seed.
        held_out_percent: share of each class set aside for testing where the data have no test
            split.
        seed: 32 hexadecimal digits; drawn when the protection is planned if None.
        precision: of the networks' arithmetic; `auto` is bfloat16 where the device has it.

    Raises:
        ValueError: a field is out of its range; the message names field, expectation and value.
    """

    # Unknown keys are refused wherever pydantic reads this class.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    variant: Variant = "sep-fa-vr"
    epsilon_levels: int = 2
    steps: int = 30
    step_levels: float = 1.0
    checkpoints: int = 15
    inner_steps: int = 15
    checkpoints_per_step: int = 0
    perturb_momentum: float = 0.0
    normalise_gradients: bool = False
    views: Views = "identity"
    surrogate: NetworkName = "resnet18"
    appropriator: NetworkName = "resnet18"
    input_pixels: int = 32
    epochs: int = 120
    appropriator_epochs: int = 120
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    warmup_learning_rate: float = 0.001
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (75 / 120, 90 / 120)
    crop_padding: int = 4
    flip: bool = True
    target_map: Literal["shift", "random"] | tuple[int, ...] = "shift"
    held_out_percent: int = 10
    seed: str | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        _in_range("epsilon_levels", self.epsilon_levels, 1, MAX_EPSILON_LEVELS)
        _in_range("steps", self.steps, 1, 10_000)
        _in_range("step_levels", self.step_levels, 0.01, MAX_EPSILON_LEVELS)
        _in_range("epochs", self.epochs, 1, 10_000)
        _in_range("appropriator_epochs", self.appropriator_epochs, 1, 10_000)
        _in_range("checkpoints", self.checkpoints, 1, self.epochs)
        _in_range("inner_steps", self.inner_steps, 1, 1_000)
        _in_range("checkpoints_per_step", self.checkpoints_per_step, 0, self.checkpoints)
        _in_range("perturb_momentum", self.perturb_momentum, 0, 0.9999)
        _in_range("input_pixels", self.input_pixels, 16, 1024)
        _in_range("batch_size", self.batch_size, 2, 65_536)
        _in_range("learning_rate", self.learning_rate, 1e-8, 100)
        _in_range("momentum", self.momentum, 0, 0.9999)
        _in_range("weight_decay", self.weight_decay, 0, 1)
        _in_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _in_range("warmup_learning_rate", self.warmup_learning_rate, 0, 100)
        _in_range("crop_padding", self.crop_padding, 0, self.input_pixels // 2)
        _in_range("held_out_percent", self.held_out_percent, 1, 90)
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(
            self.milestones
        ):
            raise ValueError(f"milestones: expected rising shares in (0, 1), got {self.milestones}")
        if self.seed is not None and not _is_seed(self.seed):
            raise ValueError(
                f"seed: expected {SEED_HEX_DIGITS} lower-case hexadecimal digits, got {self.seed!r}"
            )
        if not isinstance(self.target_map, str):
            _check_target_map(self.target_map)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the bytes of a protection depend on beside data and configuration.

    Attributes:
        device: kind of device, `cpu` or `cuda`.
        precision: of the networks' arithmetic.
        batch_size: images of like size that are perturbed together.
        max_batch_pixels: fewer are taken where the images are so large that this would be exceeded.
        threads: of PyTorch on a CPU.
        world_size: processes that train the surrogate together.
        shard_batches: batches in one `perturb` step.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    device: Literal["cpu", "cuda"]
    precision: Precision
    batch_size: int = 128
    max_batch_pixels: int = 2**22
    threads: int = 1
    world_size: int = 1
    shard_batches: int = 8


def forward_gflop(name: NetworkName, side: int) -> float:
    """GFLOP of one forward pass of one square image of `side` pixels, to 2 % at multiples of 32."""
    fixed, growing = (LARGE_FORWARD_GFLOP if side >= LARGE_PIXELS else FORWARD_GFLOP)[name]
    return fixed + growing * (side / 32) ** 2


def paper_for(variant: Variant) -> SEPConfig:
    """The paper's configuration of a variant: 15 checkpoints with variance reduction, else 30."""
    return replace(PAPER, variant=variant, checkpoints=15 if variant == "sep-fa-vr" else 30)


def resolve(config: SEPConfig, classes: int) -> SEPConfig:
    """Draw what is still open: the seed (128 random bits) and the target map.

    Args:
        config: as asked for.
        classes: number of classes of the data, at least 2.

    Raises:
        ValueError: an explicit target map does not fit the number of classes.
    """
    seed = config.seed or secrets.token_hex(SEED_HEX_DIGITS // 2)
    return replace(config, seed=seed, target_map=_resolve_target_map(config, seed, classes))


def drawn_seed(config: SEPConfig) -> str:
    """The seed of a resolved configuration.

    Raises:
        ValueError: the configuration has none yet.
    """
    if config.seed is None:
        raise ValueError("seed: expected a resolved configuration, got None")
    return config.seed


def stable_integer(*parts: object) -> int:
    """A 63-bit integer that depends on the parts alone: the root of every random draw."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def checkpoint_epochs(epochs: int, checkpoints: int) -> list[int]:
    """The epochs, counted from 1, after which one is kept: equidistant, the last included."""
    return [math.ceil(epochs * (i + 1) / checkpoints) for i in range(checkpoints)]


def gradient_passes(config: SEPConfig) -> int:
    """Gradient passes through one network that every image costs (paper, section 4.1)."""
    inner = config.inner_steps if config.variant == "sep-fa-vr" else 0
    return config.steps * ((config.checkpoints_per_step or config.checkpoints) + inner)


def _resolve_target_map(config: SEPConfig, seed: str, classes: int) -> tuple[int, ...]:
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    if config.target_map == "shift":
        return tuple((y + 1) % classes for y in range(classes))
    if config.target_map == "random":
        return _derangement(classes, random.Random(stable_integer(seed, "target map")))  # noqa: S311
    if len(config.target_map) != classes:
        raise ValueError(
            f"target_map: expected one entry for each of {classes} classes, "
            f"got {len(config.target_map)}"
        )
    return config.target_map


def _derangement(classes: int, draws: random.Random) -> tuple[int, ...]:
    """A uniform permutation without fixed points, by rejection (1 in e is one)."""
    permutation = list(range(classes))
    while any(y == g for y, g in enumerate(permutation)):
        draws.shuffle(permutation)
    return tuple(permutation)


def _check_target_map(target_map: tuple[int, ...]) -> None:
    permutation = sorted(target_map) == list(range(len(target_map)))
    if len(target_map) < 2 or not permutation or any(y == g for y, g in enumerate(target_map)):
        raise ValueError(
            "target_map: expected a permutation of the classes without fixed points, "
            f"got {target_map}"
        )


def _is_seed(seed: str) -> bool:
    return len(seed) == SEED_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in seed)


def _in_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{field}: expected {low:g} to {high:g}, got {value}")


def as_dict(config: SEPConfig | Plan) -> dict[str, Any]:
    """The JSON form that travels and is stored."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


PAPER = SEPConfig(precision="float32")
"""The paper's headline: CIFAR-10, ResNet-18, 2/255, sep-fa-vr, n = M = 15."""

QUICK = SEPConfig(
    variant="sep",
    epsilon_levels=8,
    steps=8,
    step_levels=4.0,
    checkpoints=10,
    normalise_gradients=True,
    views="crop",
    surrogate="small",
    appropriator="small",
    epochs=30,
    appropriator_epochs=30,
    schedule="cosine",
    target_map="random",
)
"""Small enough for two CPU cores; strength and time are in the README."""

QUICK_TRAINING_IMAGES = 150_000
QUICK_EPOCHS = (10, 40)
QUICK_BATCH = 32


def quick_for(images: int) -> SEPConfig:
    """`QUICK` with epochs enough that small data are learned and large data do not take all day.

    Args:
        images: of the training part; an appropriator is shown about 150,000, in 10 to 40 epochs of
            a dozen batches or more, or else a few hundred images would be learned by luck alone.
    """
    fewest, most = QUICK_EPOCHS
    epochs = min(max(QUICK_TRAINING_IMAGES // max(images, 1), fewest), most)
    batch_size = min(max(images // 12, QUICK_BATCH), QUICK.batch_size)
    return replace(QUICK, epochs=epochs, appropriator_epochs=epochs, batch_size=batch_size)


PRESETS: Mapping[str, SEPConfig] = MappingProxyType({"paper": PAPER, "quick": QUICK})

MAX_CELLS = 500


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which trainings judge a protection: the matrix of its evidence.

    Attributes:
        countermeasures: what whoever trains on the released data does to get round the protection.
        networks: appropriators; none stands for the configuration's own.
        seeds: trainings of every kind, each from draws of its own.

    Raises:
        ValueError: a field is out of its range; the message names field, expectation and value.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    countermeasures: tuple[Countermeasure, ...] = ("crop-flip",)
    networks: tuple[NetworkName, ...] = ()
    seeds: int = 1

    def __post_init__(self) -> None:
        _are_names("countermeasures", self.countermeasures, COUNTERMEASURES)
        _are_names("networks", self.networks, get_args(NetworkName))
        if not self.countermeasures:
            raise ValueError("countermeasures: expected at least one, got none")
        _in_range("seeds", self.seeds, 1, MAX_CELLS)
        if self.trainings > MAX_CELLS:
            raise ValueError(
                f"evaluation: expected at most {MAX_CELLS} trainings "
                f"(2 x networks x countermeasures x seeds), got {self.trainings}"
            )

    @property
    def trainings(self) -> int:
        """How many cells there are: each is trained on originals and on what leaves."""
        return 2 * max(len(self.networks), 1) * len(self.countermeasures) * self.seeds


@dataclass(frozen=True)
class Cell:
    """One training of an appropriator.

    Attributes:
        network, countermeasure: who trains, and how.
        seed: number of the draws, from 1; the same draws for originals and protected images.
        clean: whether it trains on the originals.
    """

    network: NetworkName
    countermeasure: Countermeasure
    seed: int
    clean: bool


def named(evaluation: Evaluation, config: SEPConfig) -> Evaluation:
    """The evaluation with the configuration's appropriator where it names no network."""
    return replace(evaluation, networks=evaluation.networks or (config.appropriator,))


def cells(evaluation: Evaluation) -> list[Cell]:
    """Every training of an evaluation, in the order in which steps number them.

    Clean and protected alternate; seeds, countermeasures and networks follow, slower and slower.

    Raises:
        ValueError: the evaluation names no network; see `named`.
    """
    if not evaluation.networks:
        raise ValueError("networks: expected at least one, got none")
    return [
        Cell(network, countermeasure, seed, clean)
        for network in evaluation.networks
        for countermeasure in evaluation.countermeasures
        for seed in range(1, evaluation.seeds + 1)
        for clean in (True, False)
    ]


def cell_config(config: SEPConfig, cell: Cell) -> SEPConfig:
    """What a cell trains by. Its draws are everybody's: nothing of the protection's own seed."""
    return replace(config, appropriator=cell.network, seed=f"{cell.seed:0{SEED_HEX_DIGITS}x}")


def training_cost(countermeasure: Countermeasure) -> float:
    """Work of a training in plain trainings, three forward passes an image.

    An adversarial one looks for the worst image first: `adversarial.STEPS` gradient passes of two.
    """
    return 3.0 if countermeasure.startswith("adversarial") else 1.0


def _are_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(f"{field}: expected different ones of {', '.join(known)}, got {names}")
