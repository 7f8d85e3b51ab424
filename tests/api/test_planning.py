"""From a request to a frozen plan: pure, so tested by properties."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import planning, workload
from api.archive import ImageRecord, Numbers
from api.choice import chosen
from api.errors import AppError
from api.models import StepKind
from api.workload import Device
from sep_core.cells import Evaluation, named
from sep_core.config import NetworkName, Plan, SEPConfig, as_dict
from sep_core.costs import gradient_passes, pattern_passes
from sep_core.presets import FAST, PAPER, PRESETS, QUICK, for_images

CPU = Device("cpu", bfloat16=False, threads=2, memory_bytes=2**33)
IMAGES = 5000
GPU = Device("cuda", bfloat16=True, threads=16, memory_bytes=2**36)
CLASSES = ["ant", "bee", "cat"]


def record(name: str, height: int, width: int, channels: int) -> ImageRecord:
    return ImageRecord(name, "train", "cat", height, width, channels, "PNG", "0" * 64, name)


shapes = st.tuples(
    st.sampled_from([8, 32, 500]), st.sampled_from([8, 900]), st.sampled_from([1, 3])
)
records_ = st.lists(shapes, max_size=60).map(
    lambda found: [record(f"{at:05d}.png", *shape) for at, shape in enumerate(found)]
)
plans = st.builds(
    Plan,
    device=st.just("cpu"),
    precision=st.just("float32"),
    batch_size=st.integers(1, 20),
    max_batch_pixels=st.sampled_from([1, 10_000, 2**22]),
    shard_batches=st.integers(1, 5),
)


def shape(record: ImageRecord) -> tuple[int, int, int]:
    return record.channels, record.height, record.width


def listed(batches: Iterable[Numbers]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@given(records_, plans)
def test_batches_are_whole_and_no_larger_than_planned(
    records: list[ImageRecord], plan: Plan
) -> None:
    batches = workload.batches(records, QUICK, plan)
    assert sorted(index for batch in batches for index in batch) == list(range(len(records)))
    for batch in batches:
        assert 0 < len(batch) <= plan.batch_size
        assert len({records[index].channels for index in batch}) == 1
        assert len(batch) == 1 or _pixels(records, batch) <= plan.max_batch_pixels


@given(records_, plans)
def test_batches_are_full_and_equal_shapes_neighbours(
    records: list[ImageRecord], plan: Plan
) -> None:
    batches = workload.batches(records, QUICK, plan)
    order = [index for batch in batches for index in batch]
    assert order == sorted(order, key=lambda index: (shape(records[index]), index))
    for batch, following in itertools.pairwise(batches):
        more = [*batch, following[0]]
        assert (
            len(more) > plan.batch_size
            or _pixels(records, more) > plan.max_batch_pixels
            or len({records[index].channels for index in more}) == 2
        )


def _pixels(records: list[ImageRecord], batch: Iterable[int]) -> int:
    return sum(records[index].height * records[index].width for index in batch)


@given(st.integers(0, 60), shapes, plans)
def test_images_of_one_shape_are_cut_evenly(
    count: int, shape: tuple[int, int, int], plan: Plan
) -> None:
    records = [record(f"{at:05d}.png", *shape) for at in range(count)]
    size = max(1, min(plan.batch_size, plan.max_batch_pixels // (shape[0] * shape[1])))
    expected = [list(range(count))[at : at + size] for at in range(0, count, size)]
    assert listed(workload.batches(records, QUICK, plan)) == expected


@given(records_, plans)
def test_shards_are_the_batches_in_their_order(records: list[ImageRecord], plan: Plan) -> None:
    shards = workload.shards(records, QUICK, plan)
    batches = [batch for shard in shards for batch in shard]
    assert listed(batches) == listed(workload.batches(records, QUICK, plan))
    assert all(0 < len(shard) <= plan.shard_batches for shard in shards)
    assert all(len(shard) == plan.shard_batches for shard in shards[:-1])
    again = workload.shards(list(records), QUICK, replace(plan))
    assert [listed(shard) for shard in shards] == [listed(shard) for shard in again]


@given(records_, st.integers(2, 100))
def test_costs_name_every_step(records: list[ImageRecord], images: int) -> None:
    plan = Plan(device="cpu", precision="float32", batch_size=4, shard_batches=2)
    costs = workload.costs(QUICK, plan, named(Evaluation(), QUICK), records, images)
    assert len(costs[StepKind.PERTURB]) == len(workload.shards(records, QUICK, plan))
    assert sum(costs[StepKind.PERTURB]) == pytest.approx(
        workload.perturb_gflop(QUICK, len(records))
    )
    assert [len(costs[kind]) for kind in (StepKind.TRAIN, StepKind.PACKAGE)] == [1, 1]
    assert costs[StepKind.EVALUATE][0] == costs[StepKind.EVALUATE][1] > 0
    patterns = 2 * 0.07 * pattern_passes(QUICK, images, len(QUICK.target_map))
    assert costs[StepKind.TRAIN][0] == pytest.approx(3 * 0.07 * QUICK.epochs * images + patterns)


@given(records_, plans)
def test_only_chosen_images_are_perturbed(records: list[ImageRecord], plan: Plan) -> None:
    config = replace(QUICK, protected_fraction=0.3, seed="0" * 32)
    batches = workload.batches(records, config, plan)
    assert sorted(index for batch in batches for index in batch) == list(chosen(records, config))
    costs = workload.costs(config, plan, named(Evaluation(), config), records, 9)
    assert sum(costs[StepKind.PERTURB]) == pytest.approx(
        workload.perturb_gflop(config, len(chosen(records, config)))
    )
    whole = workload.costs(QUICK, plan, named(Evaluation(), QUICK), records, 9)
    for kind in (StepKind.TRAIN, StepKind.PACKAGE, StepKind.EVALUATE):
        assert costs[kind] == whole[kind]


def test_the_papers_cost() -> None:
    """900 gradient passes an image of CIFAR-10 are 100 PFLOP (two forward passes each)."""
    assert gradient_passes(PAPER) == 900
    assert workload.perturb_gflop(PAPER, 50_000) == pytest.approx(100e6, rel=0.01)


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


def test_shards_take_the_same_time_on_fast_and_slow_workers() -> None:
    request = {"preset": "quick", "config": {}}
    for gflops in (50.0, 500.0, 5_000.0):
        device = replace(CPU, speeds=(workload.Speed(32, gflops, gflops),))
        config, plan = planning.freeze(request, 2, 10**8, 32, device)
        gflop = workload.perturb_gflop(config, plan.batch_size * plan.shard_batches)
        assert 30 < gflop / gflops <= workload.SHARD_SECONDS


def test_many_workers_share_many_shards() -> None:
    device = replace(CPU, speeds=(workload.Speed(32, 500.0, 500.0),))
    seconds = []
    for workers in (1, 8, 64, 512):
        config, plan = planning.freeze(
            {"preset": "quick", "config": {}}, 2, 10**6, 32, device, workers
        )
        gflop = workload.perturb_gflop(config, plan.batch_size * plan.shard_batches)
        seconds.append(gflop / 500)
        whole = workload.perturb_gflop(config, 10**6) / 500
        assert whole / seconds[-1] > workload.SHARDS_A_WORKER * workers / 2 or seconds[-1] < 30
    assert seconds == sorted(seconds, reverse=True)
    assert (30 < seconds[0] <= workload.SHARD_SECONDS, 7 < seconds[-1] <= 15) == (True, True)


def test_shards_of_large_images_are_as_much_work() -> None:
    request = {"preset": "quick", "config": {"input_pixels": 64}}
    small, large = (
        planning.freeze(request, 2, IMAGES, side, CPU)[1].shard_batches for side in (64, 1024)
    )
    assert large == pytest.approx(128 * small, rel=0.05)
