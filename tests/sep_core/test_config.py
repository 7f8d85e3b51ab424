import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sep_core.config import (
    Plan,
    SEPConfig,
    as_dict,
    checkpoint_epochs,
    drawn_seed,
    resolve,
    stable_integer,
)
from sep_core.costs import gradient_passes
from sep_core.patterns import STEP_SHARE
from sep_core.presets import PAPER, PRESETS, QUICK, at_budget, at_side, for_images, input_side

# For every bounded field: the smallest and largest value allowed, the next ones outside.
BOUNDS: dict[str, tuple[float, float, float, float]] = {
    "epsilon_levels": (1, 64, 0, 65),
    "steps": (1, 10_000, 0, 10_001),
    "step_levels": (0.01, 64, 0.009, 64.01),
    "checkpoints": (1, 120, 0, 121),
    "inner_steps": (1, 1_000, 0, 1_001),
    "checkpoints_per_step": (0, 15, -1, 16),
    "perturb_momentum": (0, 0.9999, -0.1, 1),
    "class_steps": (0, 10_000, -1, 10_001),
    "input_pixels": (16, 1024, 15, 1025),
    "epochs": (15, 10_000, 0, 10_001),
    "appropriator_epochs": (1, 10_000, 0, 10_001),
    "batch_size": (2, 65_536, 1, 65_537),
    "learning_rate": (1e-8, 100, 1e-9, 101),
    "momentum": (0, 0.9999, -0.1, 1),
    "weight_decay": (0, 1, -1e-9, 1.1),
    "warmup_epochs": (0, 120, -0.1, 120.1),
    "warmup_learning_rate": (0, 100, -0.1, 100.1),
    "crop_padding": (0, 16, -1, 17),
    "held_out_percent": (1, 90, 0, 91),
}


def test_warm_up_ends_within_the_shorter_training() -> None:
    with pytest.raises(ValueError, match=r"^warmup_epochs: expected 0 to 5, got 6"):
        SEPConfig(appropriator_epochs=5, warmup_epochs=6)


@pytest.mark.parametrize("field", BOUNDS)
def test_bounds_are_the_last_values_allowed(field: str) -> None:
    low, high, below, above = BOUNDS[field]
    for value in (low, high):
        assert getattr(_with(field, value), field) == value
    nan = [math.nan] if isinstance(getattr(SEPConfig(), field), float) else []
    for value in (below, above, *nan):
        with pytest.raises(ValueError, match=rf"^{field}: expected .* to .*, got {value}"):
            _with(field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("milestones", (0.0, 0.5)),
        ("milestones", (0.5, 1.0)),
        ("milestones", (0.7, 0.5)),
        ("milestones", (math.nan,)),
        ("seed", "0" * 31),
        ("seed", "0" * 33),
        ("seed", "A" * 32),
        ("seed", "g" * 32),
        ("target_map", (0, 1)),
        ("target_map", (1, 1)),
        ("target_map", (1, 2)),
        ("target_map", (0,)),
        ("target_map", ()),
        ("target_map", (1, 0, 2)),
        ("protected_classes", ()),
        ("protected_classes", ("ant", "bee", "ant")),
        ("protected_fraction", 0),
        ("protected_fraction", -0.1),
        ("protected_fraction", 1.001),
        ("protected_fraction", math.nan),
    ],
)
def test_other_fields_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected "):
        _with(field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "sep-xx"),
        ("surrogate", "vgg"),
        ("appropriator", "vgg"),
        ("schedule", "linear"),
        ("target_map", "identity"),
        ("precision", "float16"),
        ("flip", "perhaps"),
        ("views", "all"),
        ("normalise_gradients", "perhaps"),
        ("epsilon", 8),
    ],
)
def test_words_and_keys_that_are_not_known_are_refused_from_json(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(SEPConfig).validate_python({field: value})


def test_every_field_has_a_refusal_here() -> None:
    words = {"variant", "surrogate", "appropriator", "schedule", "precision", "flip", "views"}
    others = {"milestones", "seed", "target_map", "normalise_gradients"}
    others |= {"protected_classes", "protected_fraction"}
    assert {field.name for field in fields(SEPConfig)} == BOUNDS.keys() | words | others


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        SEPConfig(target_map=(1, 2, 0), seed="a" * 32),
        SEPConfig(protected_classes=("ant", "bee"), protected_fraction=1e-9),
    ],
)
def test_json_brings_a_configuration_back(config: SEPConfig) -> None:
    assert TypeAdapter(SEPConfig).validate_json(json.dumps(as_dict(config))) == config


def test_json_brings_a_plan_back_and_unknown_keys_are_refused() -> None:
    plan = Plan(device="cuda", precision="bfloat16", batch_size=7, threads=3)
    stored = as_dict(plan)
    assert TypeAdapter(Plan).validate_json(json.dumps(stored)) == plan
    with pytest.raises(ValidationError, match="workers"):
        TypeAdapter(Plan).validate_python(stored | {"workers": 2})


def test_the_paper() -> None:
    assert gradient_passes(PAPER) == 900
    assert gradient_passes(replace(PAPER, variant="sep", checkpoints=30)) == 900
    assert (PAPER.variant, PAPER.epsilon_levels, PAPER.target_map) == ("sep-fa-vr", 2, "shift")
    assert resolve(PAPER, 10).target_map == (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)


def test_the_quick_preset_fills_the_ball_and_walks_no_further_than_its_patterns_last() -> None:
    assert QUICK.class_steps * STEP_SHARE >= 1
    assert QUICK.steps * QUICK.step_levels <= QUICK.epsilon_levels / 2
    assert gradient_passes(QUICK) <= 50


@pytest.mark.parametrize("preset", ["fast", "hardened"])
def test_cheap_presets_take_a_fifteenth_of_the_papers_passes(preset: str) -> None:
    config = PRESETS[preset]
    assert gradient_passes(config) * 15 <= gradient_passes(PAPER)
    assert config.target_map == "random"
    assert config.views == ("crop" if preset == "fast" else "hardened")


@pytest.mark.parametrize("levels", [1, 2, 8, 64])
def test_steps_fit_the_budget(levels: int) -> None:
    fitted = at_budget(QUICK, levels)
    assert fitted.epsilon_levels == levels
    assert fitted.step_levels / levels == QUICK.step_levels / QUICK.epsilon_levels
    assert replace(fitted, epsilon_levels=8, step_levels=QUICK.step_levels) == QUICK


@pytest.mark.parametrize(
    ("median_side", "side"),
    [
        (8, 32),
        (32, 32),
        (63, 32),
        (64, 64),
        (127, 64),
        (128, 128),
        (223, 128),
        (224, 224),
        (5_000, 224),
    ],
)
def test_the_input_size_follows_the_data(median_side: int, side: int) -> None:
    assert input_side(median_side) == side


@pytest.mark.parametrize(("side", "padding"), [(16, 2), (32, 4), (64, 8), (128, 16), (224, 28)])
def test_crops_grow_with_the_input(side: int, padding: int) -> None:
    assert at_side(QUICK, side) == replace(QUICK, input_pixels=side, crop_padding=padding)
    assert at_side(QUICK, QUICK.input_pixels) == QUICK


@pytest.mark.parametrize(
    ("images", "epochs", "batch_size"),
    [
        (0, 40, 32),
        (400, 40, 33),
        (1_200, 40, 100),
        (3_750, 40, 128),
        (5_000, 30, 128),
        (15_000, 10, 128),
        (50_000, 10, 128),
    ],
)
def test_fewer_images_are_trained_on_for_longer(images: int, epochs: int, batch_size: int) -> None:
    expected = replace(
        QUICK,
        epochs=epochs,
        appropriator_epochs=epochs,
        batch_size=batch_size,
        checkpoints=min(15, epochs),
    )
    assert for_images(QUICK, images) == expected


@given(classes=st.integers(2, 300), seed=st.integers(0, 2**128 - 1))
def test_a_random_target_map_is_a_derangement(classes: int, seed: int) -> None:
    config = SEPConfig(target_map="random", seed=f"{seed:032x}")
    target_map = resolve(config, classes).target_map
    assert sorted(map(int, target_map)) == list(range(classes))
    assert all(g != y for y, g in enumerate(target_map))


def test_the_seed_decides_the_random_target_map() -> None:
    config = SEPConfig(target_map="random")
    maps = [resolve(replace(config, seed=f"{n:032x}"), 10).target_map for n in (1, 1, 2)]
    assert maps[0] == maps[1] != maps[2]


def test_derangements_are_equally_likely() -> None:
    counts: dict[object, int] = {}
    for n in range(900):
        config = SEPConfig(target_map="random", seed=f"{n:032x}")
        g = resolve(config, 4).target_map
        counts[g] = counts.get(g, 0) + 1
    assert len(counts) == 9
    assert min(counts.values()) > 60  # 100 expected, standard deviation 9.4
    assert max(counts.values()) < 140


def test_an_explicit_target_map_must_have_every_class() -> None:
    config = SEPConfig(target_map=(1, 2, 0))
    assert resolve(config, 3).target_map == (1, 2, 0)
    for classes in (2, 4):
        with pytest.raises(ValueError, match=f"target_map: expected one entry .* {classes} cl.* 3"):
            resolve(config, classes)


def test_one_class_has_nothing_to_be_moved_towards() -> None:
    with pytest.raises(ValueError, match="classes: expected at least 2, got 1"):
        resolve(PAPER, 1)


def test_a_seed_is_drawn_once_and_kept() -> None:
    first, second = resolve(PAPER, 10), resolve(PAPER, 10)
    assert drawn_seed(first) != drawn_seed(second)
    assert resolve(first, 10) == first
    with pytest.raises(ValueError, match="seed: expected a resolved"):
        drawn_seed(PAPER)


def test_stable_integers_are_the_same_in_every_process_and_version() -> None:
    assert stable_integer("a", 1) == 4665976284724862560
    assert all(0 <= stable_integer(n) < 2**63 for n in range(100))


@given(epochs=st.integers(1, 500), data=st.data())
def test_checkpoints_are_equidistant_and_the_last_epoch_is_one(
    epochs: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, epochs))
    kept = checkpoint_epochs(epochs, count)
    assert len(kept) == len(set(kept)) == count
    assert kept[0] >= 1
    assert kept[-1] == epochs
    gaps = [b - a for a, b in zip([0, *kept], kept, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_checkpoint_epochs_of_the_paper() -> None:
    assert checkpoint_epochs(120, 15) == list(range(8, 121, 8))


def _with(field: str, value: object) -> SEPConfig:
    changes: dict[str, Any] = {field: value}
    return replace(SEPConfig(), **changes)
