"""What a protection is asked to do (`SEPConfig`) and how its bytes are computed (`Plan`).

Imports no torch, so that the application can validate a request without it.
"""

import hashlib
import json
import math
import random
import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from sep_core.ranges import Within, check_ranges, in_range

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
    "projection",
    "short",
    "adversarial-2",
    "adversarial-4",
    "adversarial-8",
    "pretrained-frozen",
    "pretrained-tuned",
]
COUNTERMEASURES: tuple[Countermeasure, ...] = get_args(Countermeasure)
PRETRAINED: tuple[Countermeasure, ...] = ("pretrained-frozen", "pretrained-tuned")
"""Countermeasures that begin with weights from elsewhere."""
Precision = Literal["float32", "bfloat16"]
Views = Literal["identity", "crop", "hardened"]

SEED_HEX_DIGITS = 32
MAX_EPSILON_LEVELS = 64
MIN_INPUT_PIXELS, MAX_INPUT_PIXELS = 16, 1024


@dataclass(frozen=True, kw_only=True)
class SEPConfig:
    """One protection, whole and frozen. The defaults are the paper's (section 4.1, appendix A).

    Beside its type every field has its range and what it means, for the API's description too.

    Raises:
        ValueError: a field is out of its range; the message names field, expectation and value.
    """

    # Unknown keys are refused wherever pydantic reads this class.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    variant: Annotated[
        Variant,
        "the objective: taken for another class by cross-entropy (`sep`), near its mean "
        "feature (`sep-fa`), or that with variance reduction over the checkpoints (`sep-fa-vr`)",
    ] = "sep-fa-vr"
    epsilon_levels: Annotated[
        int,
        Within(1, MAX_EPSILON_LEVELS),
        "the budget: no value changes by more grey levels of 255 than this",
    ] = 2
    steps: Annotated[int, Within(1, 10_000), "outer steps T of the perturbation"] = 30
    step_levels: Annotated[float, Within(0.01, MAX_EPSILON_LEVELS), "step size in grey levels"] = (
        1.0
    )
    checkpoints: Annotated[int, Within(1, 10_000), "ensemble size n, at most `epochs`"] = 15
    inner_steps: Annotated[
        int, Within(1, 1_000), "M of the variance reduction; only `sep-fa-vr` reads it"
    ] = 15
    checkpoints_per_step: Annotated[
        int,
        Within(0, 10_000),
        "drawn afresh for every outer step, at most `checkpoints`; 0 takes all, as the paper does",
    ] = 0
    perturb_momentum: Annotated[
        float, Within(0, 0.9999), "share of the last outer step's direction in the next"
    ] = 0.0
    normalise_gradients: Annotated[
        bool, "whether every checkpoint's gradient of an image gets the same weight"
    ] = False
    class_steps: Annotated[
        int,
        Within(0, 10_000),
        "steps of a change common to each class, from which every image's walk begins; 0 begins "
        "at the image itself, as the paper does",
    ] = 0
    views: Annotated[
        Views,
        "what checkpoints are shown while images are perturbed: the image itself (`identity`, "
        "the paper), random crops as in training (`crop`), or these of images that are first "
        "compressed, greyed or shrunk as appropriators do (`hardened`)",
    ] = "identity"
    surrogate: Annotated[NetworkName, "network whose checkpoints are the ensemble"] = "resnet18"
    appropriator: Annotated[NetworkName, "network that judges, where no others are asked for"] = (
        "resnet18"
    )
    input_pixels: Annotated[
        int,
        Within(MIN_INPUT_PIXELS, MAX_INPUT_PIXELS),
        "side of the square that networks see; images keep their own size",
    ] = 32
    epochs: Annotated[int, Within(1, 10_000), "length of the surrogate's training"] = 120
    appropriator_epochs: Annotated[
        int, Within(1, 10_000), "length of each training that judges"
    ] = 120
    batch_size: Annotated[int, Within(2, 65_536), "images a step of SGD in both trainings"] = 128
    learning_rate: Annotated[float, Within(1e-8, 100), "of SGD in both trainings"] = 0.1
    momentum: Annotated[float, Within(0, 0.9999), "of SGD in both trainings"] = 0.9
    weight_decay: Annotated[float, Within(0, 1), "of SGD in both trainings"] = 5e-4
    warmup_epochs: Annotated[
        float,
        Within(0, 10_000),
        "length of a linear rise from `warmup_learning_rate`, at most that of either training",
    ] = 1.0
    warmup_learning_rate: Annotated[float, Within(0, 100), "where that rise begins"] = 0.001
    schedule: Annotated[
        Literal["step", "cosine"],
        "`step` divides the rate by ten at each of `milestones`, `cosine` lets it fall to 0",
    ] = "step"
    milestones: Annotated[tuple[float, ...], "shares of the training, each in (0, 1), rising"] = (
        75 / 120,
        90 / 120,
    )
    crop_padding: Annotated[
        int,
        Within(0, MAX_INPUT_PIXELS // 2),
        "of random crops, in pixels, at most half of `input_pixels`",
    ] = 4
    flip: Annotated[bool, "whether trainings flip images at random"] = True
    target_map: Annotated[
        Literal["shift", "random"] | tuple[int, ...],
        "which class each class is moved towards: a list (class y goes to `target_map[y]`), "
        "`shift` (y + 1; the paper asks for any fixed permutation) or `random`, a derangement "
        "drawn from the seed",
    ] = "shift"
    held_out_percent: Annotated[
        int,
        Within(1, 90),
        "percent of each class that are set aside for testing where the data have no test split",
    ] = 10
    protected_classes: Annotated[
        tuple[str, ...] | None,
        "names of the classes whose images are changed; null takes all. Images of the others "
        "leave as clean copies, and can be learned from; the verdict is on test images of "
        "these classes alone",
    ] = None
    protected_fraction: Annotated[
        float,
        "share of the images of each split and class that is changed, in (0, 1], at least one "
        "of each; which ones depends on their pixels alone. Images of the same pixels in these "
        "classes are treated alike, so it may be more where the data have duplicates. The "
        "others leave as clean copies",
    ] = 1.0
    seed: Annotated[
        str | None,
        "32 lower-case hexadecimal digits, a key to the protection; null draws it when the "
        "protection is planned",
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        "of the networks' arithmetic; `auto` is bfloat16 where the device has it",
    ] = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)
        in_range("checkpoints", self.checkpoints, 1, self.epochs)
        in_range("checkpoints_per_step", self.checkpoints_per_step, 0, self.checkpoints)
        shorter = min(self.epochs, self.appropriator_epochs)
        in_range("warmup_epochs", self.warmup_epochs, 0, shorter)
        in_range("crop_padding", self.crop_padding, 0, self.input_pixels // 2)
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(
            self.milestones
        ):
            raise ValueError(
                f"milestones: expected rising shares in (0, 1), got {json.dumps(self.milestones)}"
            )
        _check_protected(self.protected_classes, self.protected_fraction)
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
        batch_size: images that are perturbed together, of whatever sizes.
        max_batch_pixels: fewer are taken where the images are so large that this would be exceeded;
            the default is what stays in a CPU's cache.
        threads: of PyTorch on a CPU.
        world_size: processes that train the surrogate together.
        shard_batches: batches in one `perturb` step.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    device: Literal["cpu", "cuda"]
    precision: Precision
    batch_size: int = 128
    max_batch_pixels: int = 2**20
    threads: int = 1
    world_size: int = 1
    shard_batches: int = 8


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
            f"got {json.dumps(target_map)}"
        )


def _check_protected(classes: tuple[str, ...] | None, fraction: float) -> None:
    if classes is not None and not 0 < len(set(classes)) == len(classes):
        raise ValueError(
            "protected_classes: expected names of classes, one or more, none twice, "
            f"got {json.dumps(classes)}"
        )
    if not 0 < fraction <= 1:  # also refuses NaN
        raise ValueError(f"protected_fraction: expected a share in (0, 1], got {fraction}")


def _is_seed(seed: str) -> bool:
    return len(seed) == SEED_HEX_DIGITS and all(digit in "0123456789abcdef" for digit in seed)


def as_dict(config: SEPConfig | Plan) -> dict[str, Any]:
    """The JSON form that travels and is stored."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
