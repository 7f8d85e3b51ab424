"""How the work of a protection is cut into batches, shards and steps, and what it costs.

Of what it is given and of `shard_seconds` in the settings alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from api import archive
from api.archive import ImageRecord
from api.models import StepKind
from api.plans.choice import chosen
from api.plans.speeds import Device, Load, seconds
from api.settings import settings
from sep_core.cells import Evaluation, cells
from sep_core.config import NetworkName, Plan, SEPConfig
from sep_core.costs import (
    forward_gflop,
    gradient_bytes,
    gradient_passes,
    held_out_images,
    pattern_passes,
    training_cost,
    walks,
)

# Images that are perturbed together: as many as MEMORY_SHARE of the device holds, within these. The
# rest is for checkpoints, libraries, the batches before and after, and other processes of a host.
LEAST_BATCH_SIZE = 16
BATCH_SIZE: Mapping[str, int] = {"cpu": 128, "cuda": 512}
MEMORY_SHARE = 1 / 4
# Full-size images of a batch: on a CPU so few that a step stays in its cache (12 MiB a tensor).
MAX_BATCH_PIXELS: Mapping[str, int] = {"cpu": 2**20, "cuda": 2**22}
LEAST_SHARD_SECONDS = 15
"""Of work in a shard, so that beginning one is little of it. At most it is what the settings say,
so that losing one costs little, and a worker that is told to end can end it first."""
SHARDS_A_WORKER = 10
"""At least, where they are not shorter than the least: the last ones leave others idle."""
# A shard waits in a temporary file until it is whole. To encode it takes one thread about a minute
# where its images are small and as many as may be; that is what is begun again when it is lost.
SHARD_BYTES, SHARD_IMAGES = 2**28, 2**16


def plan(config: SEPConfig, median_side: int, device: Device, images: int, workers: int) -> Plan:
    """How such a device is to do it, to be kept on the row: the bytes depend on it.

    But for `shard_batches`: how batches are shared out changes no byte.

    Args:
        images: about how many there are to perturb.
        workers: how many of them will share the work.
    """
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.bfloat16 else "float32"
    unsharded = Plan(
        device="cuda" if device.device == "cuda" else "cpu",
        precision=precision,
        batch_size=batch_size(config, device),
        max_batch_pixels=MAX_BATCH_PIXELS[device.device],
        threads=device.threads,
    )
    fitting = max(1, unsharded.max_batch_pixels // median_side**2)

    def spent(images: int) -> float:
        load = perturbing(config, images, images * median_side**2)
        return seconds(StepKind.PERTURB, load, config.input_pixels, device)

    share = spent(images) / workers / SHARDS_A_WORKER
    aim = min(max(share, LEAST_SHARD_SECONDS), settings().shard_seconds)
    wanted = max(1.0, aim / spent(min(unsharded.batch_size, fitting)))
    # A power of two: measured again, a speed is a little different.
    return replace(unsharded, shard_batches=2 ** int(math.log2(wanted)))


def batch_size(config: SEPConfig, device: Device) -> int:
    """Images that are perturbed together on such a device: a power of two."""
    image = gradient_bytes(config.surrogate, config.input_pixels)
    fitting = max(1, int(MEMORY_SHARE * device.memory_bytes / image))
    power = 1 << (fitting.bit_length() - 1)
    return min(max(power, LEAST_BATCH_SIZE), BATCH_SIZE[device.device])


def batches(records: Sequence[ImageRecord], config: SEPConfig, plan: Plan) -> list[archive.Numbers]:
    """Indices of images that are perturbed together: by shape, and in the order of their names.

    A batch is full by the number of its images or of their pixels; its images may differ in height
    and width, and not in channels.
    """
    members = chosen(records, config)
    sizes = archive.sizes(records)[members]
    heights, widths, channels = sizes.T
    order = np.lexsort((widths, heights, channels))  # by the last one first
    starts: list[int] = []
    room = before = 0
    for at, size in enumerate(sizes[order]):
        height, width, depth = size.tolist()
        full = not starts or at - starts[-1] == plan.batch_size or height * width > room
        if full or depth != before:
            starts.append(at)
            room, before = plan.max_batch_pixels, depth
        room -= height * width
    return np.split(members[order], starts[1:]) if starts else []


def shards(
    records: Sequence[ImageRecord], config: SEPConfig, plan: Plan
) -> list[list[archive.Numbers]]:
    """The batches of each `perturb` step: so many as the plan says, within what a shard may be."""
    result: list[list[archive.Numbers]] = []
    sizes, room, images = sizes_bytes(records), 0, 0
    for batch in batches(records, config, plan):
        size = int(sizes[batch].sum())
        is_full = not result or len(result[-1]) == plan.shard_batches
        if is_full or size > room or len(batch) > images:
            result.append([])
            room, images = SHARD_BYTES, SHARD_IMAGES
        result[-1].append(batch)
        room, images = room - size, images - len(batch)
    return result


def parts(
    records: Sequence[ImageRecord], shards: Sequence[Sequence[archive.Numbers]]
) -> list[archive.Numbers]:
    """Indices, rising, of the images that each `encode` step takes.

    Those of each shard, then those of none, which leave as they came, in parts of like size.
    """
    perturbed = [np.sort(np.concatenate(shard)) for shard in shards]
    left = np.ones(len(records), np.bool_)
    for part in perturbed:
        left[part] = False
    others = np.flatnonzero(left)
    by_bytes = np.cumsum(sizes_bytes(records)[others]) // SHARD_BYTES
    by_images = np.arange(len(others)) // SHARD_IMAGES
    starts = np.flatnonzero(np.diff(by_bytes) + np.diff(by_images)) + 1
    return [*perturbed, *(np.split(others, starts) if len(others) else [])]


def sizes_bytes(records: Sequence[ImageRecord]) -> archive.Numbers:
    """(n): of each image's raw pixels, as in a shard."""
    sizes: archive.Numbers = archive.sizes(records).prod(axis=1)
    return sizes


def loads(
    config: SEPConfig,
    plan: Plan,
    evaluation: Evaluation,
    records: Sequence[ImageRecord],
    train_images: int,
) -> dict[StepKind, list[Load]]:
    """Work of every step, as far as it can be told beforehand: what the ETA rests on."""
    training = _training_gflop(config.surrogate, config.epochs, config, train_images)
    patterns = _patterns_gflop(config, train_images)
    return {
        StepKind.TRAIN: [Load(config.surrogate, training + patterns)],
        **planned_loads(config, plan, records),
        StepKind.PACKAGE: [Load(config.surrogate, pixels=int(_pixels(records).sum()))],
        StepKind.EVALUATE: [
            Load(
                cell.network,
                _training_gflop(cell.network, config.appropriator_epochs, config, train_images)
                * training_cost(cell.countermeasure),
            )
            for cell in cells(evaluation)
        ],
    }


def planned_loads(
    config: SEPConfig, plan: Plan, records: Sequence[ImageRecord]
) -> dict[StepKind, list[Load]]:
    """The same of the steps of which the plan says how many there are."""
    pixels, cut = _pixels(records), shards(records, config, plan)
    taken = parts(records, cut)
    return {
        StepKind.PERTURB: [
            perturbing(config, len(part), int(pixels[part].sum())) for part in taken[: len(cut)]
        ],
        StepKind.ENCODE: [Load(config.surrogate, pixels=int(pixels[part].sum())) for part in taken],
    }


def _pixels(records: Sequence[ImageRecord]) -> archive.Numbers:
    """(n): of each image."""
    sizes: archive.Numbers = archive.sizes(records)[:, :2].prod(axis=1)
    return sizes


def trained_images(counts: Mapping[str, Mapping[str, int]], held_out_percent: int) -> int:
    """Training images that are left when a part of each class is set aside, where one has to be.

    Args:
        counts: images by split and class.
    """
    train = counts["train"].values()
    if set(counts) != {"train"}:
        return sum(train)
    return sum(n - held_out_images(n, held_out_percent) for n in train if n)


def perturbing(config: SEPConfig, images: int, pixels: int) -> Load:
    """Of so many images, of so many pixels together: a gradient pass is two forward passes."""
    forward = forward_gflop(config.surrogate, config.input_pixels)
    gflop = 2 * forward * gradient_passes(config) * images
    return Load(config.surrogate, gflop, walks(config) * pixels)


def _patterns_gflop(config: SEPConfig, images: int) -> float:
    forward = forward_gflop(config.surrogate, config.input_pixels)
    return 2 * forward * pattern_passes(config, images, len(config.target_map))


def _training_gflop(network: NetworkName, epochs: int, config: SEPConfig, images: int) -> float:
    forward = forward_gflop(network, config.input_pixels)
    return 3 * forward * epochs * images
