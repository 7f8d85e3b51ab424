"""Named ways to change the images: the product's, the paper's, and the baselines'."""

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.baselines import BASELINES, Baseline
from benchmarks.baselines.learned import error_minimising
from sep_core.config import SEPConfig, resolve
from sep_core.presets import PRESETS

CLEAN = "clean"
OWN = "fast-own"
"""Of `benchmarks.paper`: `fast` as it is, through its own small surrogate; the trainings on it are
the paper's."""

# Both sides of every comparison: the small network, 15 checkpoints, 30 epochs.
COMMON: dict[str, Any] = {
    "checkpoints": 15,
    "surrogate": "small",
    "appropriator": "small",
    "epochs": 30,
    "appropriator_epochs": 30,
    "batch_size": 128,
    "normalise_gradients": False,
    "views": "identity",
    "class_steps": 0,
    "checkpoints_per_step": 0,
    "perturb_momentum": 0.0,
    "steps": 30,
    "step_levels": 1.0,
}
# Twenty times the images of a half.
EPOCHS: dict[str, dict[str, Any]] = {"whole": {"epochs": 15, "appropriator_epochs": 15}}
PER_STEP: dict[str, Any] = {"normalise_gradients": True, "views": "crop", "perturb_momentum": 0.9}


def _preset(name: str) -> dict[str, Any]:
    """What a preset does to the images."""
    preset = PRESETS[name]
    share = preset.step_levels / preset.epsilon_levels
    return {field: getattr(preset, field) for field in PERTURBING} | {"step_share": share}


PERTURBING = ("variant", "class_steps", "checkpoints_per_step", "steps", *PER_STEP)

SHORT = PER_STEP | {"variant": "sep", "class_steps": 100, "steps": 4, "step_share": 1 / 8}

RECIPES: dict[str, dict[str, Any]] = {
    # The paper's, 900 and 450 passes an image.
    "sep-fa-vr": {"variant": "sep-fa-vr"},
    "sep-fa": {"variant": "sep-fa"},
    "sep": {"variant": "sep"},
    # The targeted poison: the last checkpoint alone.
    "last": {"variant": "sep"},
    # Candidates for `fast`, named by objective, checkpoints a step and steps.
    "sep-2x30": PER_STEP | {"variant": "sep", "checkpoints_per_step": 2},
    "sep-fa-2x30": PER_STEP | {"variant": "sep-fa", "checkpoints_per_step": 2},
    "sep-1x30": PER_STEP | {"variant": "sep", "checkpoints_per_step": 1},
    "sep-fa-1x30": PER_STEP | {"variant": "sep-fa", "checkpoints_per_step": 1},
    "sep-4x15": PER_STEP | {"variant": "sep", "checkpoints_per_step": 4, "steps": 15},
    "sep-fa-4x15": PER_STEP | {"variant": "sep-fa", "checkpoints_per_step": 4, "steps": 15},
    "sep-6x10": PER_STEP | {"variant": "sep", "checkpoints_per_step": 6, "steps": 10},
    "sep-12x5": PER_STEP | {"variant": "sep", "checkpoints_per_step": 12, "steps": 5},
    # The product's presets, as they perturb.
    "fast": _preset("fast"),
    "hardened": _preset("hardened"),
    # From a change common to each class.
    "class-4x15": PER_STEP
    | {"variant": "sep", "checkpoints_per_step": 4, "steps": 15, "class_steps": 40},
    # Briefly, or the images lose the pattern again; the first is what `fast` became.
    "class-4x4": SHORT | {"checkpoints_per_step": 4},
    "class-1x4": SHORT | {"checkpoints_per_step": 1},
    # `fast` in float32, to be compared with bfloat16.
    "fast-float32": _preset("fast") | {"precision": "float32"},
    "sep-2x15": PER_STEP | {"variant": "sep", "checkpoints_per_step": 2, "steps": 15},
}
# Drawn recipes walk to the edge of the ball in four steps: momentum keeps them from dithering.
STEP_SHARE = 0.25

ROUNDS = 10  # at most, of error-minimising noise
# Gradient passes an image of those that take any.
NOISE_PASSES = {"error-minimising": ROUNDS * 20, "targeted": 250}
NOISES: dict[str, Baseline] = {
    **BASELINES,
    "error-minimising": partial(error_minimising, rounds=ROUNDS),
}
OTHERWISE = f"""All are judged as SEP is. Those that ask a network ask the small one, trained on the
same images, and take gradients of images as they are. Otherwise than in the papers,

- `error-minimising` ends after {ROUNDS} rounds (the method as written here after 30), even if the
  network still errs on 1 % or more; the paper goes on until it does not;
- `targeted` steps by the gradient's sign; the paper by signed Adam, through random crops and flips;
- `shortcuts` and `autoregressive` fill the L-infinity budget in every channel of every image; the
  papers bound L2. The coefficients of `autoregressive` are those that fill it best of some drawn;
  the paper draws again those that explode or that another class's filter hardly notices.

`uniform` and `class-wise` are random levels. `none` is a training without crops and
flips, which undo all of `class-wise` and most of `error-minimising`."""


def configure(recipe: str, levels: int, seed: int, classes: int, half: str) -> SEPConfig:
    """The whole configuration of a recipe; clean images and baselines have the common one.

    `half` of the images: all of them need fewer epochs.

    Raises:
        ValueError: no such recipe.
    """
    if recipe not in RECIPES and recipe not in NOISES and recipe != CLEAN:
        raise ValueError(f"recipe: expected one of {known()}, got {recipe!r}")
    changes = dict(RECIPES.get(recipe, {}))
    share = changes.pop("step_share", STEP_SHARE)
    if "checkpoints_per_step" in changes:
        changes["step_levels"] = levels * share
    whole = COMMON | EPOCHS.get(half, {}) | changes
    config = replace(PRESETS["quick"], **whole, epsilon_levels=levels or 1)
    return resolve(replace(config, seed=hex_seed(seed)), classes)


def hex_seed(seed: int) -> str:
    """A small number as a configuration's seed."""
    return f"{seed:032x}"


def known() -> list[str]:
    """All names."""
    return [CLEAN, *RECIPES, *NOISES]
