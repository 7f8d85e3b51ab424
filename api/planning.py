"""From data, request and worker to a frozen configuration, a plan and its steps. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from api.archive import ImageRecord
from api.choice import check_classes, chosen
from api.errors import AppError
from api.models import Protection, StepKind
from sep_core.cells import Evaluation, cells
from sep_core.config import (
    MAX_EPSILON_LEVELS,
    MAX_INPUT_PIXELS,
    MIN_INPUT_PIXELS,
    NetworkName,
    Plan,
    SEPConfig,
    Variant,
    resolve,
)
from sep_core.costs import (
    forward_gflop,
    gradient_bytes,
    gradient_passes,
    pattern_passes,
    training_cost,
)
from sep_core.presets import (
    PRESETS,
    at_budget,
    at_side,
    input_side,
    paper_for,
    quick_for,
)

AUTO = "auto"
# Their networks see 32 pixels whatever the data: the paper's, and what two cores can do.
AS_IT_IS = ("paper", "quick")
VARIANTS = get_args(Variant)
# Images that are perturbed together: as many as MEMORY_SHARE of the device holds, within these. The
# rest is for checkpoints, libraries, the batches before and after, and other processes of a host.
LEAST_BATCH_SIZE = 16
BATCH_SIZE: Mapping[str, int] = {"cpu": 128, "cuda": 512}
MEMORY_SHARE = 1 / 4
# Full-size images of a batch: on a CPU so few that a step stays in its cache (12 MiB a tensor).
MAX_BATCH_PIXELS: Mapping[str, int] = {"cpu": 2**20, "cuda": 2**22}
# About two minutes of work each, so that losing a shard costs little: GFLOP on two AVX-512 cores
# with bfloat16 and on a data-centre GPU.
SHARD_GFLOP: Mapping[str, float] = {"cpu": 40_000, "cuda": 15_000_000}
# A shard is held in memory until it is whole.
SHARD_BYTES = 2**28
# Decoding, encoding and comparing a pixel takes about as long as so many GFLOP on a CPU.
PACKAGE_GFLOP_A_PIXEL = 2.5e-4

_CONFIG = TypeAdapter(SEPConfig)
_PLAN = TypeAdapter(Plan)
_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Device:
    """What a worker registered of itself."""

    device: str
    bfloat16: bool
    threads: int
    memory_bytes: int


def load_config(stored: Mapping[str, Any]) -> SEPConfig:
    """A configuration from its JSON form."""
    return _CONFIG.validate_python(stored)


def load_plan(stored: Mapping[str, Any]) -> Plan:
    """A plan from its JSON form."""
    return _PLAN.validate_python(stored)


def load_evaluation(stored: Mapping[str, Any]) -> Evaluation:
    """An evaluation from its JSON form; what is missing is the default.

    Raises:
        AppError: 422 with every field that does not fit.
    """
    try:
        evaluation = _EVALUATION.validate_python(stored)
    except ValidationError as error:
        raise AppError(
            422, "INVALID_EVALUATION", f"The evaluation does not fit: {_sentences(error)}"
        ) from error
    pretrained = [c for c in evaluation.countermeasures if c.startswith("pretrained")]
    if pretrained:
        raise AppError(
            422,
            "PRETRAINED_UNAVAILABLE",
            f"{', '.join(pretrained)}: begins with a file of pretrained weights, and such a file "
            "can't be given over this API yet.",
        )
    return evaluation


def frozen_evaluation(protection: Protection) -> Evaluation:
    """Of a protection that is planned; one from before there was any to ask for has the default."""
    assert protection.config is not None
    networks = (protection.config["appropriator"],)
    return load_evaluation(protection.evaluation or {"networks": networks})


def configure(
    preset: str, overrides: Mapping[str, Any], device: str, train_images: int, median_side: int
) -> SEPConfig:
    """A preset with some fields replaced; its steps fit the budget, but for the paper's one level.

    Networks see images at 32 pixels, and in `fast`, in `hardened` and on a GPU at a size that
    follows from `median_side`, of the shorter sides of the training images; crops are padded by an
    eighth of it.

    `auto` is `paper` with a random target map on a GPU, and on a CPU `quick` with epochs that suit
    the number of images.

    Raises:
        AppError: 422 with every field that does not fit.
    """
    base = at_side(
        _base(preset, overrides, device, train_images),
        _side(preset, overrides, device, median_side),
    )
    whole = {name: getattr(base, name) for name in base.__dataclass_fields__} | dict(overrides)
    try:
        return load_config(whole)
    except ValidationError as error:
        raise AppError(
            422,
            "INVALID_CONFIG",
            f"The configuration (preset {preset}) does not fit: {_sentences(error)}",
        ) from error


def _base(preset: str, overrides: Mapping[str, Any], device: str, train_images: int) -> SEPConfig:
    if preset == "paper" or (preset == AUTO and device != "cpu"):
        variant: Any = overrides.get("variant")
        # A variant that is none is refused with the other fields.
        paper = paper_for(variant) if variant in VARIANTS else PRESETS["paper"]
        # The paper's own map, y + 1, is one that every attacker would try first.
        return paper if preset == "paper" else replace(paper, target_map="random")
    base = quick_for(train_images) if preset == AUTO else PRESETS[preset]
    levels = overrides.get("epsilon_levels")
    # A budget that is none is refused with the other fields.
    if isinstance(levels, int) and 1 <= levels <= MAX_EPSILON_LEVELS:
        return at_budget(base, levels)
    return base


def _side(preset: str, overrides: Mapping[str, Any], device: str, median_side: int) -> int:
    side = overrides.get("input_pixels")
    # A side that is none is refused with the other fields.
    if isinstance(side, int) and MIN_INPUT_PIXELS <= side <= MAX_INPUT_PIXELS:
        return side
    if preset in AS_IT_IS or (preset == AUTO and device == "cpu"):
        return SEPConfig.input_pixels
    return input_side(median_side)


def check(
    preset: str,
    overrides: Mapping[str, Any],
    classes: Sequence[str],
    train_images: int,
    median_side: int,
) -> None:
    """Refuse at once what planning would refuse later, and classes that the data don't have.

    Raises:
        AppError: 422.
    """
    for device in ("cpu", "cuda"):
        try:
            config = configure(preset, overrides, device, train_images, median_side)
            resolve(config, len(classes))
            check_classes(config, classes)
        except ValueError as error:
            raise AppError(422, "INVALID_CONFIG", str(error)) from error


def freeze(
    requested: Mapping[str, Any], classes: int, train_images: int, median_side: int, device: Device
) -> tuple[SEPConfig, Plan]:
    """Everything that was open is decided here, once, and kept on the row."""
    preset, overrides = requested["preset"], requested["config"]
    asked = configure(preset, overrides, device.device, train_images, median_side)
    config = resolve(asked, classes)
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.bfloat16 else "float32"
    plan = Plan(
        device="cuda" if device.device == "cuda" else "cpu",
        precision=precision,
        batch_size=batch_size(config, device),
        max_batch_pixels=MAX_BATCH_PIXELS[device.device],
        threads=device.threads,
    )
    batch_gflop = perturb_gflop(config, _batch_size(plan, median_side**2))
    return config, replace(
        plan, shard_batches=max(1, round(SHARD_GFLOP[device.device] / batch_gflop))
    )


def batch_size(config: SEPConfig, device: Device) -> int:
    """Images that are perturbed together on such a device: a power of two."""
    image = gradient_bytes(config.surrogate, config.input_pixels)
    fitting = max(1, int(MEMORY_SHARE * device.memory_bytes / image))
    power = 1 << (fitting.bit_length() - 1)
    return min(max(power, LEAST_BATCH_SIZE), BATCH_SIZE[device.device])


def batches(records: Sequence[ImageRecord], config: SEPConfig, plan: Plan) -> list[list[int]]:
    """Indices of images that are perturbed together: of like shape, in the order of their names."""
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for index in chosen(records, config):
        record = records[index]
        alike[record.height, record.width, record.channels].append(index)
    result = []
    for (height, width, _), members in sorted(alike.items()):
        size = _batch_size(plan, height * width)
        result += [members[at : at + size] for at in range(0, len(members), size)]
    return result


def _batch_size(plan: Plan, pixels: int) -> int:
    """Of images with so many pixels each."""
    return max(1, min(plan.batch_size, plan.max_batch_pixels // pixels))


def shards(records: Sequence[ImageRecord], config: SEPConfig, plan: Plan) -> list[list[list[int]]]:
    """The batches of each `perturb` step: so many as the plan says, in at most SHARD_BYTES."""
    result: list[list[list[int]]] = []
    room = 0
    for batch in batches(records, config, plan):
        size = sum(_bytes(records[index]) for index in batch)
        if not result or len(result[-1]) == plan.shard_batches or size > room:
            result.append([])
            room = SHARD_BYTES
        result[-1].append(batch)
        room -= size
    return result


def _bytes(record: ImageRecord) -> int:
    return record.height * record.width * record.channels


def costs(
    config: SEPConfig,
    plan: Plan,
    evaluation: Evaluation,
    records: Sequence[ImageRecord],
    train_images: int,
) -> dict[StepKind, list[float]]:
    """Work of every step in GFLOP, as far as it can be told beforehand: what the ETA rests on."""
    pixels = sum(record.height * record.width for record in records)
    return {
        StepKind.TRAIN: [
            _training_gflop(config.surrogate, config.epochs, config, train_images)
            + _patterns_gflop(config, train_images)
        ],
        StepKind.PERTURB: [
            perturb_gflop(config, sum(map(len, shard))) for shard in shards(records, config, plan)
        ],
        StepKind.PACKAGE: [pixels * PACKAGE_GFLOP_A_PIXEL],
        StepKind.EVALUATE: [
            _training_gflop(cell.network, config.appropriator_epochs, config, train_images)
            * training_cost(cell.countermeasure)
            for cell in cells(evaluation)
        ],
    }


def trained_images(counts: Mapping[str, Mapping[str, int]], held_out_percent: int) -> int:
    """Training images that are left when a part of each class is set aside, where one has to be.

    Args:
        counts: images by split and class.
    """
    train = counts["train"].values()
    if set(counts) != {"train"}:
        return sum(train)
    return sum(n - min(max(1, round(n * held_out_percent / 100)), n - 1) for n in train if n)


def perturb_gflop(config: SEPConfig, images: int) -> float:
    """GFLOP to perturb so many images: a gradient pass is two forward passes."""
    forward = forward_gflop(config.surrogate, config.input_pixels)
    return 2 * forward * gradient_passes(config) * images


def _patterns_gflop(config: SEPConfig, images: int) -> float:
    forward = forward_gflop(config.surrogate, config.input_pixels)
    return 2 * forward * pattern_passes(config, images, len(config.target_map))


def _training_gflop(network: NetworkName, epochs: int, config: SEPConfig, images: int) -> float:
    forward = forward_gflop(network, config.input_pixels)
    return 3 * forward * epochs * images


def _sentences(error: ValidationError) -> str:
    return "; ".join(
        ".".join(map(str, item["loc"])) + (": " if item["loc"] else "") + item["msg"]
        for item in error.errors(include_url=False)
    )
