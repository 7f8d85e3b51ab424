"""`package`: write the archive, store it, read it back, compare every image with its original."""

import hashlib
import io
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import IO, TypeVar

import numpy as np

from api import archive, protections, storage, workload
from api.archive import ImageRecord
from api.errors import AppError
from api.leases import Claim
from worker import alive, facts, metrics, preview, shards
from worker.alive import Progress
from worker.data import (
    Job,
    load_job,
    open_released,
    open_source,
)
from worker.lease import check_held, store
from worker.listed import Files, Listed, write_json
from worker.metrics import Change, Changes
from worker.steps import Output, Work

FORMAT_VERSION = 1
PREVIEW_COLUMNS = 8
WORST = 5
SMALL_BYTES = 3 * 96**2
"""Images that take less are compared faster by one thread than by several: each call is so short
that they wait for the interpreter's lock. Two take twice the time of one at 32 pixels, 1.2 times at
64, 0.85 at 112, half of it at 224."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Worst:
    """An image that changed much, as far as the report shows it."""

    record: ImageRecord
    change: Change
    crop: preview.Pair


@dataclass
class _Found:
    """Small parts of the images that reading the archive again has shown, so far.

    Attributes:
        columns: for the picture, of one protected image of each of the first classes.
        worst: the protected ones of lowest SSIM, the lowest first.
    """

    columns: dict[str, preview.Cells] = field(default_factory=dict)
    worst: list[_Worst] = field(default_factory=list)

    def picture(
        self, record: ImageRecord, pair: preview.Pair, change: Change, epsilon_levels: int
    ) -> None:
        """Take in what the pictures show of one protected image more."""
        if record.class_name not in self.columns and len(self.columns) < PREVIEW_COLUMNS:
            self.columns[record.class_name] = preview.column(pair, epsilon_levels)
        if len(self.worst) < WORST or change.ssim < self.worst[-1].change.ssim:
            self.worst.append(_Worst(record, change, preview.crop(pair)))
            self.worst.sort(key=lambda image: image.change.ssim)
            del self.worst[WORST:]


def run(claim: Claim) -> Work:
    """Output: the archive's digest and size, and how much the images that go out have changed.

    Raises:
        AppError: BUDGET_EXCEEDED, an image in the finished archive has changed by more than it may;
            UNPROTECTED_CHANGED, one that was not to be protected has changed at all;
            BLOB_CHANGED, a shard is not what was perturbed.
    """
    job = load_job(claim)
    total = 2 * len(job.records)
    half = len(job.records), total
    for _ in shards.check(job):
        yield 0, total
    with closing(Files()) as files, closing(Changes()) as changes:
        with tempfile.TemporaryFile() as file:
            yield from _write(job, file, files, total)
            size = file.tell()
            key = storage.protection_key(job.protection_id, protections.ARCHIVE)
            writing = alive.reading(lambda: store(claim, key, file), file)
            digest = yield from alive.at(half, writing)
        try:
            found = yield from _verify(job, files, changes, total)
        except AppError:
            check_held(claim)
            storage.remove_one(key)  # what must not leave does not lie there either
            raise
        _store_pictures(job, found)
        yield from alive.at((total, total), _store_record(job, files, changes))
        _store_refused(job)
        summarising = alive.computing(lambda: _summary(job, changes, found))
        summary = yield from alive.at((total, total), summarising)
    return {"archive_sha256": digest, "archive_bytes": size} | summary


def _write(job: Job, file: IO[bytes], files: Files, total: int) -> Generator[Progress, None, None]:
    """Write images under their released names, then the manifest, from `files`, which it fills."""
    box: list[tuple[str, bytes | IO[bytes]]] = []
    writer = archive.write(file, _emptied(box))
    with open_source(job.dataset_id) as reader, shards.opened(job) as perturbed:

        def encoded(index: int) -> tuple[int, bytes]:
            record = job.records[index]
            original = reader.pixels(record)
            pixels = perturbed.pixels(index, original)
            data = archive.encode(pixels, record.released_name)
            return metrics.largest(original, pixels), data

        for result in _for_all(job, encoded):
            if result is not None:
                largest, data = result
                box.append((job.records[len(files)].released_name, data))
                files.append(hashlib.sha256(data).digest(), largest)
                next(writer)
            yield len(files), total
    with tempfile.TemporaryFile() as manifest:
        written = alive.computing(lambda: write_json(_manifest(job, files), manifest.write))
        yield from alive.at((len(files), total), written)
        box.append((archive.MANIFEST_NAME, manifest))
        for _ in writer:  # the manifest, and the end of the archive
            pass


def _emptied(
    box: list[tuple[str, bytes | IO[bytes]]],
) -> Iterator[tuple[str, bytes | IO[bytes]]]:
    """What is in the box whenever the next is asked for, until nothing is."""
    while box:
        yield box.pop()


def _for_all(job: Job, call: Callable[[int], T]) -> Generator[T | None, None, None]:
    """The call for each image in order: several at once where that pays and there is room."""
    sizes = workload.sizes_bytes(job.records)
    before_and_after = 2 * int(sizes.max(initial=1))
    if are_small(sizes):
        threads, groups = alive.groups(len(sizes), before_and_after, 1)
    else:  # neighbours at once, which lie in one piece that is read of the archive
        threads, groups = alive.groups(len(sizes), before_and_after, facts.threads(), together=1)

    def call_each(group: range) -> list[T]:
        return [call(index) for index in group]

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


def _manifest(job: Job, files: Files) -> Output:
    return {
        "format_version": FORMAT_VERSION,
        "variant": job.config.variant,
        "epsilon_levels": job.config.epsilon_levels,
        "files": Listed(len(files), lambda index: _entry(job.records[index], files, index)),
    }


def _entry(record: ImageRecord, files: Files, index: int) -> Output:
    return {
        "name": record.released_name,
        "source_name": record.name,
        "sha256": files.sha256(index),
        "largest_change_levels": files.largest_levels(index),
    }


def _verify(
    job: Job, files: Files, changes: Changes, total: int
) -> Generator[Progress, None, _Found]:
    """Decode every image again from the stored archive and compare it with its original.

    `changes` are filled in the order of the records.
    """
    found = _Found()
    with open_source(job.dataset_id) as source, open_released(job.protection_id) as released:
        for _ in released.read_directory():
            yield len(job.records), total

        def compared(index: int) -> tuple[preview.Pair, Change]:
            record = job.records[index]
            pair = source.pixels(record), released.pixels(record)
            return pair, metrics.compare(*pair)

        for result in _for_all(job, compared):
            if result is not None:
                (pair, change), index = result, len(changes)
                _check_change(job, index, change, files.largest_levels(index))
                changes.append(change)
                if job.is_protected[index]:
                    found.picture(job.records[index], pair, change, job.config.epsilon_levels)
            yield len(job.records) + len(changes), total
    return found


def _store_pictures(job: Job, found: _Found) -> None:
    epsilon_levels = job.config.epsilon_levels
    pictures = {
        protections.PREVIEW: preview.draw(list(found.columns.values()), epsilon_levels),
        protections.WORST: preview.draw_worst([w.crop for w in found.worst], epsilon_levels),
    }
    for name, picture in pictures.items():
        store(job.claim, storage.protection_key(job.protection_id, name), picture)


def _store_record(job: Job, files: Files, changes: Changes) -> Generator[None, None, None]:
    key = storage.protection_key(job.protection_id, protections.RECORD)
    with tempfile.TemporaryFile() as file:
        yield from alive.computing(lambda: write_json(_record(job, files, changes), file.write))
        yield from alive.reading(lambda: store(job.claim, key, file), file)


def _store_refused(job: Job) -> None:
    """Apart from the record: the report's page shows them, and not every file."""
    with io.BytesIO() as refused:
        write_json({"refused": [asdict(refusal) for refusal in job.index.refusals]}, refused.write)
        store(job.claim, storage.protection_key(job.protection_id, protections.REFUSED), refused)


def _check_change(job: Job, index: int, change: Change, packed_levels: int) -> None:
    record, allowed = job.records[index], job.config.epsilon_levels
    if not job.is_protected[index] and change.largest_levels:
        raise AppError(
            500,
            "UNPROTECTED_CHANGED",
            f"{record.released_name}: expected no change in the finished archive, since this image "
            f"is not among those to protect, got {change.largest_levels} levels.",
        )
    if change.largest_levels > allowed:
        raise AppError(
            500,
            "BUDGET_EXCEEDED",
            f"{record.released_name}: expected a change of at most {allowed} levels in the "
            f"finished archive, got {change.largest_levels}.",
        )
    if change.largest_levels != packed_levels:
        raise AppError(
            500,
            "ARCHIVE_MISMATCH",
            f"{record.released_name}: the finished archive holds other pixels than were packed.",
        )


def _summary(job: Job, changes: Changes, found: _Found) -> Output:
    """Of the protected: others would flatter."""
    worst = [
        {"name": image.record.released_name} | _measured(image.change) for image in found.worst
    ]
    counts = {"images": len(job.records), "protected_images": int(job.is_protected.sum())}
    protected = (changes[int(index)] for index in np.flatnonzero(job.is_protected))
    return counts | metrics.summarise(protected) | {"worst": worst}


def _record(job: Job, files: Files, changes: Changes) -> Output:
    """What the manifest says of each file, and what only the owner may know."""

    def told(index: int) -> Output:
        record, change = job.records[index], changes[index]
        return (
            _entry(record, files, index)
            | {
                "original_pixels_sha256": record.pixels_sha256,
                "split": record.split,
                "class": record.class_name,
                "protected": bool(job.is_protected[index]),
                "histogram": change.histogram,
            }
            | _measured(change)
        )

    refused = [asdict(refusal) for refusal in job.index.refusals]
    return {"files": Listed(len(files), told), "refused": refused}


def _measured(change: Change) -> Output:
    return {
        "ssim": round(change.ssim, 6),
        "psnr_db": change.psnr_db,
        "changed_share": round(change.changed_share, 6),
        "largest_change_levels": change.largest_levels,
    }
