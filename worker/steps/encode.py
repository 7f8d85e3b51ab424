"""`encode`: one part of the images as files, which are decoded again and compared."""

import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from typing import IO

from api import archive
from api.archive import ImageRecord, Pixels
from api.errors import AppError
from api.plans import workload
from api.scheduling.leases import Claim
from worker import alive, facts, metrics, shards
from worker.data import Job, encoded_key, load_job, open_source, table_key
from worker.encoded import Table
from worker.lease import store
from worker.metrics import Change
from worker.steps import Work

SMALL_BYTES = 3 * 96**2
"""Images that take less are encoded faster by one thread than by several: each call is so short
that they wait for the interpreter's lock. Two take twice the time of one at 32 pixels, 1.2 times at
64, 0.85 at 112, half of it at 224."""

File = tuple[bytes, Change]


def run(claim: Claim) -> Work:
    """Writes the images' files, one after the other, and a table of what they are.

    Output: digests of both, and how many images they are of.

    Raises:
        AppError: BUDGET_EXCEEDED, an image has changed by more than it may; UNPROTECTED_CHANGED,
            one that was not to be protected has changed at all; BLOB_CHANGED, the shard is not what
            was perturbed.
    """
    return (yield from encode(load_job(claim), claim, claim.index))


def encode(job: Job, claim: Claim, index: int) -> Work:
    """A part of that index."""
    part, records = job.parts[index], job.records
    total = len(part)
    yield 0, total
    with tempfile.TemporaryFile() as perturbed, tempfile.TemporaryFile() as files:
        if index < len(job.shards):
            yield from ((0, total) for _ in shards.copy(job, index, perturbed))
        with tempfile.TemporaryFile() as told:
            table = Table(told)
            for file in _files(job, index, perturbed):
                if file is not None:
                    files.write(file[0])
                    table.append(records[int(part[len(table)])], *file)
                yield len(table), total
            table.write()
            done = total, total
            key = encoded_key(job.protection_id, job.plan, index)
            digest = yield from alive.at(done, _stored(claim, key, files))
            yield done
            key = table_key(job.protection_id, job.plan, index)
            table_digest = yield from alive.at(done, _stored(claim, key, told))
    return {"sha256": digest, "table_sha256": table_digest, "images": total}


def _stored(claim: Claim, key: str, file: IO[bytes]) -> Generator[None, None, str]:
    return (yield from alive.reading(lambda: store(claim, key, file), file))


def _files(job: Job, index: int, perturbed: IO[bytes]) -> Generator[File | None, None, None]:
    part = job.parts[index]
    shard = shards.Shard(job, index, perturbed) if index < len(job.shards) else None
    with open_source(job.dataset_id) as reader:

        def file(number: int) -> File:
            at = int(part[number])
            record = job.records[at]
            original = reader.pixels(record)
            pixels = original if shard is None else shard.pixels(number, original)
            data, change = _encoded(record, original, pixels)
            check_change(record, change, 0 if shard is None else job.config.epsilon_levels)
            return data, change

        yield from _for_all(workload.sizes_bytes(job.records)[part], file)


def _encoded(record: ImageRecord, original: Pixels, pixels: Pixels) -> File:
    """The change is that of the file, as whoever gets it decodes it."""
    data = archive.encode(pixels, record.released_name)
    released = archive.decode_released(data)
    if released.shape != original.shape:
        name, shape = record.released_name, original.shape
        raise ValueError(f"{name}: expected pixels of shape {shape}, got {released.shape}")
    return data, metrics.compare(original, released)


def _for_all(
    sizes: archive.Numbers, call: Callable[[int], File]
) -> Generator[File | None, None, None]:
    """The call for each image in order: several at once where that pays and there is room."""
    decoded = 3 * int(sizes.max(initial=1))  # original, perturbed and released
    if are_small(sizes):
        threads, groups = alive.groups(len(sizes), decoded, 1)
    else:  # neighbours at once, which lie in one piece that is read of the archive
        threads, groups = alive.groups(len(sizes), decoded, facts.threads(), together=1)

    def call_each(group: range) -> list[File]:
        return [call(number) for number in group]

    with warnings.catch_warnings():  # as in `tensors.at_input_size`
        warnings.simplefilter("ignore")
        with closing(alive.in_order(call_each, groups, threads)) as results:
            for result in results:
                if result is None:
                    yield None
                else:
                    yield from result
                    result.clear()  # or it would be held until the next is there


def are_small(sizes: archive.Numbers) -> bool:
    """Whether most of the pixels are in small images."""
    return bool(2 * sizes[sizes < SMALL_BYTES].sum() > sizes.sum())


def check_change(record: ImageRecord, change: Change, allowed: int) -> None:
    """Refuse what has changed by more levels than its image may: 0 where it is not protected.

    Raises:
        AppError: UNPROTECTED_CHANGED, BUDGET_EXCEEDED.
    """
    if change.largest_levels <= allowed:
        return
    if not allowed:
        raise AppError(
            500,
            "UNPROTECTED_CHANGED",
            f"{record.released_name}: expected no change in the encoded file, since this image "
            f"is not among those to protect, got {change.largest_levels} levels.",
        )
    raise AppError(
        500,
        "BUDGET_EXCEEDED",
        f"{record.released_name}: expected a change of at most {allowed} levels in the "
        f"encoded file, got {change.largest_levels}.",
    )
