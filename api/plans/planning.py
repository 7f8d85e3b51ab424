"""From data, request and worker to a frozen configuration, a plan and its steps."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from api.errors import AppError
from api.models import Protection
from api.plans import workload
from api.plans.choice import check_classes
from api.plans.speeds import Device
from sep_core.cells import Evaluation, named
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
from sep_core.presets import (
    PRESETS,
    at_budget,
    at_side,
    for_images,
    input_side,
    paper_for,
)

AUTO = "auto"
# Their networks see 32 pixels whatever the data: the paper's, and what two cores can do.
AS_IT_IS = ("paper", "quick")
VARIANTS = get_args(Variant)
DEVICES = ("cpu", "cuda")  # a request is checked for each: which one it meets, is not known yet

_CONFIG = TypeAdapter(SEPConfig)
_PLAN = TypeAdapter(Plan)
_EVALUATION = TypeAdapter(Evaluation)


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
        return _EVALUATION.validate_python(stored)
    except ValidationError as error:
        raise AppError(
            422, "INVALID_EVALUATION", f"The evaluation does not fit: {_sentences(error)}"
        ) from error


def frozen_evaluation(protection: Protection) -> Evaluation:
    """Of a protection that is planned; one from before there was any to ask for has the default."""
    assert protection.config is not None
    networks = (protection.config["appropriator"],)
    return load_evaluation(protection.evaluation or {"networks": networks})


def configure(
    preset: str, overrides: Mapping[str, Any], device: str, train_images: int, median_side: int
) -> SEPConfig:
    """A preset with some fields replaced; its steps fit the budget, but for the paper's one level.

    Where fewer epochs are asked for than a preset keeps checkpoints, each ends with one; where
    fewer checkpoints than it draws for a step, every step takes them all.

    Networks see images at 32 pixels, and in `fast`, in `hardened` and on a GPU at a size that
    follows from `median_side`, of the shorter sides of the training images; crops are padded by an
    eighth of it.

    `auto` is `fast` on a GPU and `quick` on a CPU, with epochs that suit the number of images.

    Raises:
        AppError: 422 with every field that does not fit.
    """
    base = at_side(
        _base(preset, overrides, device, train_images),
        _side(preset, overrides, device, median_side),
    )
    whole = {name: getattr(base, name) for name in base.__dataclass_fields__} | dict(overrides)
    whole["checkpoints"] = _checkpoints(base, overrides)
    whole["checkpoints_per_step"] = _per_step(base, whole["checkpoints"], overrides)
    try:
        return load_config(whole)
    except ValidationError as error:
        raise AppError(
            422,
            "INVALID_CONFIG",
            f"The configuration (preset {preset}) does not fit: {_sentences(error)}",
        ) from error


def _base(preset: str, overrides: Mapping[str, Any], device: str, train_images: int) -> SEPConfig:
    if preset == "paper":
        variant: Any = overrides.get("variant")
        # A variant that is none is refused with the other fields.
        return paper_for(variant) if variant in VARIANTS else PRESETS["paper"]
    if preset == AUTO:
        base = for_images(PRESETS["quick" if device == "cpu" else "fast"], train_images)
    else:
        base = PRESETS[preset]
    levels = overrides.get("epsilon_levels")
    # A budget that is none is refused with the other fields.
    if isinstance(levels, int) and 1 <= levels <= MAX_EPSILON_LEVELS:
        return at_budget(base, levels)
    return base


def _checkpoints(base: SEPConfig, overrides: Mapping[str, Any]) -> object:
    """The preset's, or one an epoch where fewer are asked for; what is asked for is checked."""
    epochs = overrides.get("epochs", base.epochs)
    fewer = isinstance(epochs, int) and 0 < epochs < base.checkpoints
    return overrides.get("checkpoints", epochs if fewer else base.checkpoints)


def _per_step(base: SEPConfig, checkpoints: object, overrides: Mapping[str, Any]) -> object:
    """The preset's, or all where there are fewer checkpoints; what is asked for is checked."""
    fewer = isinstance(checkpoints, int) and 0 < checkpoints < base.checkpoints_per_step
    return overrides.get("checkpoints_per_step", 0 if fewer else base.checkpoints_per_step)


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
    for device in DEVICES:
        try:
            config = configure(preset, overrides, device, train_images, median_side)
            resolve(config, len(classes))
            check_classes(config, classes)
        except ValueError as error:
            raise AppError(422, "INVALID_CONFIG", str(error)) from error


def judges(
    evaluation: Evaluation,
    preset: str,
    overrides: Mapping[str, Any],
    train_images: int,
    median_side: int,
) -> tuple[NetworkName, ...]:
    """Networks that may be trained: where none is named, on every kind of device its own."""
    configs = (configure(preset, overrides, d, train_images, median_side) for d in DEVICES)
    found = [name for config in configs for name in named(evaluation, config).networks]
    return tuple(dict.fromkeys(found))


def freeze(
    requested: Mapping[str, Any],
    classes: int,
    train_images: int,
    median_side: int,
    device: Device,
    workers: int = 1,
) -> tuple[SEPConfig, Plan]:
    """Everything that was open is decided here, once, and kept on the row."""
    preset, overrides = requested["preset"], requested["config"]
    asked = configure(preset, overrides, device.device, train_images, median_side)
    config = resolve(asked, classes)
    return config, workload.plan(config, median_side, device, train_images, workers)


def _sentences(error: ValidationError) -> str:
    return "; ".join(
        ".".join(map(str, item["loc"]))
        + (": " if item["loc"] else "")
        + item["msg"].removeprefix("Value error, ")  # Pydantic's own words
        for item in error.errors(include_url=False)
    )
