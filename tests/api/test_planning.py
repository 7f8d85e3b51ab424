"""From a request to a frozen plan."""

from dataclasses import replace
from typing import Any

import pytest

from api.errors import AppError
from api.plans import planning, workload
from api.plans.speeds import Device
from sep_core.cells import Evaluation
from sep_core.config import NetworkName, SEPConfig, as_dict
from sep_core.costs import gradient_passes
from sep_core.presets import FAST, PAPER, PRESETS, QUICK, for_images

CPU = Device("cpu", bfloat16=False, threads=2, memory_bytes=2**33)
IMAGES = 5000
GPU = Device("cuda", bfloat16=True, threads=16, memory_bytes=2**36)
CLASSES = ["ant", "bee", "cat"]


def test_the_papers_cost() -> None:
    """900 gradient passes an image of CIFAR-10 are 100 PFLOP (two forward passes each)."""
    assert gradient_passes(PAPER) == 900
    assert workload.perturbing(PAPER, 50_000, 0).gflop == pytest.approx(100e6, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "device", "base"),
    [
        ("auto", CPU, for_images(QUICK, IMAGES)),
        ("auto", GPU, for_images(FAST, IMAGES)),
        ("quick", GPU, QUICK),
        ("paper", CPU, PAPER),
    ],
)
def test_a_preset_is_resolved(preset: str, device: Device, base: SEPConfig) -> None:
    requested = {"preset": preset, "config": {"steps": 5}}
    config, plan = planning.freeze(requested, 7, 5_000, 32, device)
    assert sorted(config.target_map) == list(range(7))
    assert all(target != label for label, target in enumerate(config.target_map))
    assert config.seed is not None
    assert len(config.seed) == 32
    drawn = {"seed": config.seed, "target_map": config.target_map, "steps": 5}
    assert config == replace(base, **drawn)  # type: ignore[arg-type]  # of mixed kinds
    assert (plan.device, plan.threads) == (device.device, device.threads)
    assert plan.batch_size == {"cpu": 128, "cuda": 512}[device.device]
    assert plan.shard_batches >= 1
    assert planning.load_config(as_dict(config)) == config
    assert planning.load_plan(as_dict(plan)) == plan


@pytest.mark.parametrize("images", [1, 10_000, 10_001, 50_000, 1_000_000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_suits_every_number_of_images(device: str, images: int) -> None:
    config = planning.configure("auto", {}, device, images, 32)
    assert 10 <= config.epochs <= 40
    assert config.checkpoints == min(15, config.epochs)
    asked = planning.configure("auto", {"epochs": 30, "checkpoints": 12}, device, images, 32)
    assert (asked.epochs, asked.checkpoints) == (30, 12)


@pytest.mark.parametrize("preset", ["quick", "fast"])
@pytest.mark.parametrize(
    ("asked", "per_step"),
    [
        ({}, 4),
        ({"checkpoints": 4}, 4),
        ({"checkpoints": 3}, 0),
        ({"checkpoints": 3, "checkpoints_per_step": 1}, 1),
    ],
)
def test_a_step_takes_no_more_checkpoints_than_there_are(
    preset: str, asked: dict[str, int], per_step: int
) -> None:
    config = planning.configure(preset, asked, "cpu", 1000, 32)
    assert config.checkpoints_per_step == per_step


@pytest.mark.parametrize(("epochs", "kept"), [(12, 12), (2, 2), (40, 15)])
def test_a_checkpoint_an_epoch_where_few_are_asked_for(epochs: int, kept: int) -> None:
    config = planning.configure("quick", {"epochs": epochs}, "cpu", 1000, 32)
    assert config.checkpoints == kept
    asked = {"epochs": epochs, "checkpoints": epochs + 1}
    with pytest.raises(AppError, match=f"checkpoints: expected 1 to {epochs}"):
        planning.configure("quick", asked, "cpu", 1000, 32)


def test_more_checkpoints_a_step_than_there_are_is_refused() -> None:
    asked = {"checkpoints": 3, "checkpoints_per_step": 4}
    with pytest.raises(AppError, match="checkpoints_per_step: expected 0 to 3, got 4"):
        planning.configure("quick", asked, "cpu", 1000, 32)


def test_quick_is_fast_judged_by_a_small_network() -> None:
    assert replace(QUICK, appropriator=FAST.appropriator) == FAST


@pytest.mark.parametrize(
    ("device", "memory_bytes", "network", "side", "size"),
    [
        (CPU, 2**33, "small", 32, 128),  # as many as pay
        (GPU, 2**36, "small", 32, 512),
        (CPU, 2**28, "small", 32, 64),  # 64 MiB, 0.562 of them an image
        (CPU, 2**28, "small", 224, 16),  # 3.95
        (CPU, 2**30, "resnet18", 32, 64),  # 256 MiB, 2.2 of them
        (GPU, 2**34, "resnet18", 224, 256),  # 4 GiB, 12.3 MiB of them
        (GPU, 2**34, "densenet121", 224, 32),
        (CPU, 2**20, "densenet121", 224, 16),  # fewer would not be worth their while
    ],
)
def test_a_batch_takes_its_share_of_memory(
    device: Device, memory_bytes: int, network: NetworkName, side: int, size: int
) -> None:
    config = replace(QUICK, surrogate=network, input_pixels=side)
    small = replace(device, memory_bytes=memory_bytes)
    assert workload.batch_size(config, small) == size
    request = {"preset": "quick", "config": {"surrogate": network, "input_pixels": side}}
    assert planning.freeze(request, 2, 5_000, 32, small)[1].batch_size == size


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_precision(device: Device, precision: str) -> None:
    requested = {"preset": "quick", "config": {"precision": precision}}
    _, plan = planning.freeze(requested, 2, 5_000, 32, device)
    best = "bfloat16" if device.bfloat16 else "float32"
    assert plan.precision == (best if precision == "auto" else precision)


def test_a_seed_that_is_given_stays() -> None:
    requested = {"preset": "quick", "config": {"seed": "ab" * 16, "target_map": "random"}}
    first, _ = planning.freeze(requested, 9, 5_000, 32, CPU)
    second, _ = planning.freeze(requested, 9, 5_000, 32, GPU)
    assert first.seed == "ab" * 16
    assert first.target_map == second.target_map
    drawn = {
        planning.freeze({"preset": "auto", "config": {}}, 2, 5_000, 32, CPU)[0].seed
        for _ in range(3)
    }
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"epsilon_levels": 65}, "epsilon_levels: expected 1 to 64, got 65"),
        ({"nothing": 1}, "nothing"),
        ({"steps": "x", "epochs": None}, "epochs"),
        ({"target_map": [1, 0, 2]}, "target_map"),
        ({"target_map": [1, 0]}, "target_map: expected one entry for each of 3 classes, got 2"),
        (
            {"protected_classes": ["bee", "Ant", ""]},
            "names of the data set's classes ('ant', 'bee', 'cat'), got 'Ant', ''",
        ),
        ({"protected_classes": []}, "protected_classes: expected names of classes, one or more"),
        ({"protected_classes": "ant"}, "protected_classes"),
        ({"protected_fraction": 0.0}, "protected_fraction: expected a share in (0, 1], got 0.0"),
        ({"checkpoints": 100}, "checkpoints"),  # `auto` may turn out to be `quick`: fewer epochs
    ],
)
def test_a_request_that_could_not_be_planned_is_refused_at_once(
    overrides: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AppError) as refused:
        planning.check("auto", overrides, CLASSES, 5_000, 32)
    assert (refused.value.status, refused.value.code) == (422, "INVALID_CONFIG")
    assert sentence in refused.value.message


def test_who_may_judge() -> None:
    plain, chosen_ = Evaluation(), Evaluation(networks=("mlp", "vit"))
    for preset, overrides, names in (
        ("auto", {}, ("small", "resnet18")),
        ("quick", {}, ("small",)),
        ("auto", {"appropriator": "mlp"}, ("mlp",)),
    ):
        assert planning.judges(plain, preset, overrides, IMAGES, 32) == names
        assert planning.judges(chosen_, preset, overrides, IMAGES, 32) == ("mlp", "vit")


def test_presets_fit_any_data() -> None:
    for preset in ("auto", *PRESETS):
        planning.check(preset, {}, CLASSES[:2], 5_000, 32)
        planning.check(preset, {}, [str(number) for number in range(1000)], 5_000, 32)


@pytest.mark.parametrize("preset", ["auto", "quick", "fast", "hardened"])
@pytest.mark.parametrize("levels", [2, 4, 16])
def test_a_budget_brings_its_step_along(preset: str, levels: int) -> None:
    whole = planning.configure(preset, {}, "cpu", IMAGES, 32)
    config = planning.configure(preset, {"epsilon_levels": levels}, "cpu", IMAGES, 32)
    assert config.step_levels / levels == whole.step_levels / whole.epsilon_levels
    asked = {"epsilon_levels": levels, "step_levels": 0.5}
    assert planning.configure(preset, asked, "cpu", IMAGES, 32).step_levels == 0.5


def test_the_papers_step_is_one_level_whatever_the_budget() -> None:
    assert planning.configure("paper", {"epsilon_levels": 8}, "cpu", IMAGES, 32).step_levels == 1


@pytest.mark.parametrize("levels", [0, 65])
def test_a_budget_that_is_none_is_refused_by_its_name_alone(levels: int) -> None:
    with pytest.raises(AppError, match="epsilon_levels") as refused:
        planning.configure("quick", {"epsilon_levels": levels}, "cpu", IMAGES, 32)
    assert "step_levels" not in str(refused.value)


@pytest.mark.parametrize(
    ("preset", "device", "median_side", "side"),
    [
        ("quick", "cpu", 31, 32),
        ("quick", "cpu", 100, 32),
        ("quick", "cuda", 500, 32),
        ("auto", "cpu", 500, 32),
        ("auto", "cuda", 63, 32),
        ("auto", "cuda", 500, 224),
        ("fast", "cpu", 500, 224),
        ("hardened", "cuda", 130, 128),
        ("paper", "cuda", 500, 32),
    ],
)
def test_the_input_size_follows_the_data(
    preset: str, device: str, median_side: int, side: int
) -> None:
    config = planning.configure(preset, {}, device, IMAGES, median_side)
    assert (config.input_pixels, config.crop_padding) == (side, side // 8)
    asked = planning.configure(preset, {"input_pixels": 48}, device, IMAGES, median_side)
    assert (asked.input_pixels, asked.crop_padding) == (48, 6)
    asked = planning.configure(preset, {"crop_padding": 3}, device, IMAGES, median_side)
    assert (asked.input_pixels, asked.crop_padding) == (side, 3)


@pytest.mark.parametrize("side", [15, 1025, "x", None])
def test_an_input_size_that_is_none_is_refused_by_its_name_alone(side: object) -> None:
    with pytest.raises(AppError, match="input_pixels") as refused:
        planning.configure("quick", {"input_pixels": side}, "cpu", IMAGES, 100)
    assert "crop_padding" not in str(refused.value)
