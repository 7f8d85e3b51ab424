"""How images are cut into batches and shards, and what these cost."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.archive import ImageRecord, Numbers
from api.models import StepKind
from api.plans import planning, workload
from api.plans.choice import chosen
from api.plans.speeds import Load, Speed
from api.settings import settings
from sep_core.cells import Evaluation, named
from sep_core.config import Plan
from sep_core.costs import pattern_passes
from sep_core.presets import QUICK
from tests.api.test_planning import CPU


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
def test_work_names_every_step(records: list[ImageRecord], images: int) -> None:
    plan = Plan(device="cpu", precision="float32", batch_size=4, shard_batches=2)
    loads = workload.loads(QUICK, plan, named(Evaluation(), QUICK), records, images)
    shards = workload.shards(records, QUICK, plan)
    assert len(loads[StepKind.PERTURB]) == len(shards)
    pixels = _pixels(records, range(len(records)))
    perturb = workload.perturbing(QUICK, len(records), pixels)
    assert _gflop(loads[StepKind.PERTURB]) == pytest.approx(perturb.gflop)
    assert _summed(loads[StepKind.PERTURB]) == perturb.pixels == QUICK.steps * pixels
    assert len(loads[StepKind.ENCODE]) == len(workload.parts(records, shards))
    assert _summed(loads[StepKind.ENCODE]) == _summed(loads[StepKind.PACKAGE]) == pixels
    assert [len(loads[kind]) for kind in (StepKind.TRAIN, StepKind.PACKAGE)] == [1, 1]
    assert loads[StepKind.EVALUATE][0] == loads[StepKind.EVALUATE][1]
    assert loads[StepKind.EVALUATE][0].gflop > 0
    patterns = 2 * 0.07 * pattern_passes(QUICK, images, len(QUICK.target_map))
    training = 3 * 0.07 * QUICK.epochs * images
    assert _gflop(loads[StepKind.TRAIN]) == pytest.approx(training + patterns)


def _gflop(loads: Sequence[Load]) -> float:
    return sum(each.gflop for each in loads)


def _summed(loads: Sequence[Load]) -> float:
    return sum(each.pixels for each in loads)


@given(records_, plans, st.sampled_from([0.3, 1.0]), st.sampled_from([500, 2**28]))
def test_parts_hold_every_image_once_and_first_those_of_each_shard(
    records: list[ImageRecord], plan: Plan, fraction: float, part_bytes: int
) -> None:
    config = replace(QUICK, protected_fraction=fraction, seed="0" * 32)
    shards = workload.shards(records, config, plan)
    with patch.object(workload, "SHARD_BYTES", part_bytes):
        parts = workload.parts(records, shards)
    assert sorted(index for part in parts for index in part) == list(range(len(records)))
    assert all(sorted(part) == list(part) for part in parts)
    for shard, part in zip(shards, parts, strict=False):
        assert sorted(np.concatenate(shard)) == list(part)
    sizes = workload.sizes_bytes(records)
    for part in parts[len(shards) :]:
        assert len(part) > 0
        assert sizes[part[1:]].sum() < part_bytes


@given(records_, plans)
def test_only_chosen_images_are_perturbed(records: list[ImageRecord], plan: Plan) -> None:
    config = replace(QUICK, protected_fraction=0.3, seed="0" * 32)
    batches = workload.batches(records, config, plan)
    assert sorted(index for batch in batches for index in batch) == list(chosen(records, config))
    loads = workload.loads(config, plan, named(Evaluation(), config), records, 9)
    of_chosen = workload.perturbing(config, len(chosen(records, config)), 0).gflop
    assert _gflop(loads[StepKind.PERTURB]) == pytest.approx(of_chosen)
    whole = workload.loads(QUICK, plan, named(Evaluation(), QUICK), records, 9)
    for kind in (StepKind.TRAIN, StepKind.PACKAGE, StepKind.EVALUATE):
        assert loads[kind] == whole[kind]


def test_variance_reduction_moves_images_in_its_inner_steps_too() -> None:
    config = replace(QUICK, variant="sep-fa-vr", inner_steps=4)
    assert workload.perturbing(config, 1, 50 * 90).pixels == QUICK.steps * 5 * 50 * 90


def test_shards_take_the_same_time_on_fast_and_slow_workers() -> None:
    request = {"preset": "quick", "config": {}}
    for gflops in (50.0, 500.0, 5_000.0):
        speed = Speed(32, gflops, gflops, walked_pixels=math.inf)
        config, plan = planning.freeze(request, 2, 10**8, 32, replace(CPU, speeds=(speed,)))
        gflop = workload.perturbing(config, plan.batch_size * plan.shard_batches, 0).gflop
        assert 30 < gflop / gflops <= settings().shard_seconds


def test_many_workers_share_many_shards() -> None:
    device = replace(CPU, speeds=(Speed(32, 500.0, 500.0, walked_pixels=math.inf),))
    seconds = []
    for workers in (1, 8, 64, 512):
        config, plan = planning.freeze(
            {"preset": "quick", "config": {}}, 2, 10**6, 32, device, workers
        )
        gflop = workload.perturbing(config, plan.batch_size * plan.shard_batches, 0).gflop
        seconds.append(gflop / 500)
        whole = workload.perturbing(config, 10**6, 0).gflop / 500
        assert whole / seconds[-1] > workload.SHARDS_A_WORKER * workers / 2 or seconds[-1] < 30
    assert seconds == sorted(seconds, reverse=True)
    assert (30 < seconds[0] <= settings().shard_seconds, 7 < seconds[-1] <= 15) == (True, True)


@pytest.mark.parametrize("walked", [1e6, 1e8, math.inf])
def test_shards_of_large_images_take_as_long(walked: float) -> None:
    request = {"preset": "quick", "config": {"input_pixels": 64}}
    device = replace(CPU, speeds=(Speed(32, 333.0, 333.0, walked_pixels=walked),))
    for side, images in ((64, 128), (1024, 1)):
        config, plan = planning.freeze(request, 2, 10**8, side, device)
        assert plan.batch_size == 128
        load = workload.perturbing(config, images, images * side**2)
        batch = load.gflop / 333 + load.pixels / walked
        least = min(30, batch)  # a shard is one batch at least
        assert least <= batch * plan.shard_batches <= max(settings().shard_seconds, batch)
