"""Images of any shapes: shards have no say in their bytes, and what leaves keeps the budget."""

import random
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from api import archive
from api.archive import Pixels
from api.plans import workload
from sep_core.arithmetic import prepare
from sep_core.cells import Evaluation
from sep_core.config import Plan, SEPConfig
from sep_core.networks import build
from sep_core.surrogate import Checkpoint, freeze
from tests.api.archives import ingested, picture, saved, zip_bytes
from worker.data import Job, Reader
from worker.steps.perturb import perturb

SIDE = 16
NOBODY = UUID(int=0)
FORMATS = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "jpg": "JPEG"}
CONFIG = SEPConfig(
    steps=4,
    checkpoints=2,
    inner_steps=2,
    input_pixels=SIDE,
    crop_padding=2,
    target_map=(1, 0),
    seed="0123456789abcdef" * 2,
)

File = tuple[tuple[str, str], int, int, int]
"""Mode and ending, seed of the noise, height, width."""
files_ = st.lists(
    st.tuples(
        st.sampled_from([("L", "png"), ("P", "png"), ("RGB", "jpg"), ("RGB", "bmp"), ("L", "tif")]),
        st.integers(0, 99),
        st.sampled_from([8, SIDE, 23]),
        st.sampled_from([9, SIDE, 40]),
    ),
    min_size=2,
    max_size=8,
)
changes_ = st.fixed_dictionaries(
    {
        "variant": st.sampled_from(["sep", "sep-fa", "sep-fa-vr"]),
        "epsilon_levels": st.integers(1, 64),
        "steps": st.integers(1, 3),
        "step_levels": st.floats(0.01, 64),
        "checkpoints_per_step": st.integers(0, 2),
        "perturb_momentum": st.sampled_from([0.0, 0.9]),
        "normalise_gradients": st.booleans(),
        "class_steps": st.integers(0, 1),
        "views": st.sampled_from(["identity", "crop", "hardened"]),
    }
)
plans = st.builds(
    Plan,
    device=st.just("cpu"),
    precision=st.sampled_from(["float32", "bfloat16"]),
    batch_size=st.integers(1, 5),
    max_batch_pixels=st.sampled_from([1, 1000, 2**20]),
    shard_batches=st.integers(1, 3),
)
# Without shrinking, which takes minutes: what fails is a handful of images as it is.
quick = settings(max_examples=15, phases=[Phase.reuse, Phase.generate])


@quick
@given(files_, changes_, plans, st.sampled_from([1, 2_000, 2**28]), st.randoms())
def test_shards_have_no_say_in_the_bytes(
    files: list[File],
    changes: dict[str, Any],
    plan: Plan,
    shard_bytes: int,
    order: random.Random,
) -> None:
    data, config = zipped(files), replace(CONFIG, **changes)
    whole = perturbed(data, config, replace(plan, shard_batches=len(files)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "SHARD_BYTES", shard_bytes)
        in_parts = perturbed(data, config, plan, order)
    assert sorted(whole) == sorted(in_parts) == list(range(len(files)))
    assert all(np.array_equal(whole[index], in_parts[index]) for index in whole)


@quick
@given(files_, changes_, plans)
def test_files_that_leave_keep_the_budget(
    files: list[File], changes: dict[str, Any], plan: Plan
) -> None:
    data, config = zipped(files), replace(CONFIG, **changes)
    for index, pixels in perturbed(data, config, plan).items():
        record = ingested(data).records[index]
        released = archive.decode_released(archive.encode(pixels, record.released_name))
        assert largest_change(original(data, index), released) <= config.epsilon_levels


def largest_change(original: Pixels, released: Pixels) -> int:
    return int(np.abs(original.astype(int) - released).max())


def test_both_are_about_images_that_change() -> None:
    files = [(("RGB", "bmp"), 1, 23, 40), (("L", "png"), 2, 8, 9), (("RGB", "jpg"), 3, SIDE, SIDE)]
    data, plan = zipped(files), Plan(device="cpu", precision="float32")
    for index, pixels in perturbed(data, CONFIG, plan).items():
        assert largest_change(original(data, index), pixels) == CONFIG.epsilon_levels


def perturbed(
    data: bytes, config: SEPConfig, plan: Plan, order: random.Random | None = None
) -> dict[int, Pixels]:
    """Every image by its index; each shard reads the archive anew, as another worker would."""
    prepare(plan)
    job = Job(NOBODY, NOBODY, config, plan, Evaluation(), ingested(data), "0" * 64)
    shards = workload.shards(job.records, config, plan)
    if order:
        order.shuffle(shards)
    result: dict[int, Pixels] = {}
    for shard in shards:
        events = perturb(job, reader(data), shard, ensemble(), patterns(config))
        images = [event for event in events if not isinstance(event, int)]
        result |= dict(zip([i for batch in shard for i in batch], images, strict=True))
    return result


def original(data: bytes, index: int) -> Pixels:
    return reader(data).pixels(ingested(data).records[index])


def reader(data: bytes) -> Reader:
    return Reader(BytesIO(data), released=False)


def zipped(files: list[File]) -> bytes:
    return zip_bytes(
        {
            f"{('ant', 'bee')[at % 2]}/{at}.{ending}": saved(picture(mode, *rest), FORMATS[ending])
            for at, ((mode, ending), *rest) in enumerate(files)
        }
    )


def patterns(config: SEPConfig) -> torch.Tensor | None:
    """As far as they may go from the images, as `class_steps` finds them."""
    if not config.class_steps:
        return None
    signs = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7)).round() * 2 - 1
    return signs * config.epsilon_levels / 255


@cache
def ensemble() -> tuple[Checkpoint, ...]:
    return tuple(_checkpoint(torch.Generator().manual_seed(number)) for number in range(2))


def _checkpoint(draws: torch.Generator) -> Checkpoint:
    halves = torch.full((3,), 0.5)
    network = freeze(build("small", 2, SIDE, halves, halves / 2, draws).eval())
    return Checkpoint(1, network, torch.rand(2, network.head.in_features, generator=draws))
