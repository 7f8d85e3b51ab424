"""`package`: write the archive, store it, read it back, compare every image with its original."""

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import IO, TypeVar

import numpy as np

from api import archive, protections, storage, workload
from api.archive import ImageRecord, Pixels
from api.errors import AppError
from api.leases import Claim
from worker import alive, facts, metrics, preview
from worker.data import (
    Job,
    dump_json,
    load_job,
    open_released,
    open_source,
    shard_key,
)
from worker.metrics import Change
from worker.steps import Output, Work

FORMAT_VERSION = 1
PREVIEW_COLUMNS = 8
WORST = 5
AT_ONCE_BYTES = 192_000_000
"""Of pixels that are encoded or compared at once: no more than the largest accepted takes."""

T = TypeVar("T")
Progress = tuple[int, int]


@dataclass(frozen=True)
class _Worst:
    """An image that changed much, as far as the report shows it."""

    record: ImageRecord
    change: Change
    crop: preview.Pair


@dataclass
class _Found:
    """What reading the archive again has shown, so far; of the images themselves only small parts.

    Attributes:
        changes: of all images, in the order of their records.
        columns: for the picture, of one protected image of each of the first classes.
        worst: the protected ones of lowest SSIM, the lowest first.
    """

    changes: list[Change] = field(default_factory=list)
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
            UNPROTECTED_CHANGED, one that was not to be protected has changed at all.
    """
    job = load_job(claim)
    total = 2 * len(job.records)
    half = len(job.records), total
    with tempfile.TemporaryFile() as file:
        manifest = yield from _write(job, file, total)
        size = file.tell()
        key = storage.protection_key(job.protection_id, protections.ARCHIVE)
        digest = yield from _at(half, alive.reading(lambda: storage.write(key, file), file))
    try:
        found = yield from _verify(job, manifest, total)
    except AppError:
        storage.remove_one(key)  # what must not leave does not lie there either
        raise
    _store_pictures(job, found)
    record, summary = yield from _at(
        (total, total), alive.computing(lambda: _figures(job, manifest, found))
    )
    storage.write(storage.protection_key(job.protection_id, protections.RECORD), record)
    return {"archive_sha256": digest, "archive_bytes": size} | summary


def _at(progress: Progress, work: Generator[None, None, T]) -> Generator[Progress, None, T]:
    """Signs of life of work that is no progress by itself."""
    try:
        while True:
            next(work)
            yield progress
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()


def _write(job: Job, file: IO[bytes], total: int) -> Generator[Progress, None, Output]:
    """Write images under their released names, then the manifest; returns the manifest."""
    files: list[Output] = []
    manifest: Output = {
        "format_version": FORMAT_VERSION,
        "variant": job.config.variant,
        "epsilon_levels": job.config.epsilon_levels,
        "files": files,
    }
    box: list[tuple[str, bytes]] = []
    writer = archive.write(file, _emptied(box))
    with open_source(job.dataset_id) as reader, _shards(job) as shards:

        def encoded(index: int) -> tuple[Output, bytes]:
            record = job.records[index]
            original = reader.pixels(record)
            pixels = shards.pixels(index, original)
            data = archive.encode(pixels, record.released_name)
            return _entry(record, data, metrics.largest(original, pixels)), data

        for result in _for_all(job, encoded):
            if result is not None:
                entry, data = result
                files.append(entry)
                box.append((entry["name"], data))
                next(writer)
            yield len(files), total
    dumped = yield from _at((len(files), total), alive.computing(lambda: dump_json(manifest)))
    box.append((archive.MANIFEST_NAME, dumped))
    for _ in writer:  # the manifest, and the end of the archive
        pass
    return manifest


def _emptied(box: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """What is in the box whenever the next is asked for, until nothing is."""
    while box:
        yield box.pop()


def _for_all(job: Job, call: Callable[[int], T]) -> Generator[T | None, None, None]:
    """The call for each image in order: several at once, but fewer where images are large."""
    largest = max((workload.size_bytes(record) for record in job.records), default=1)
    threads = max(1, min(facts.threads(), AT_ONCE_BYTES // (2 * largest)))  # before and after
    with warnings.catch_warnings():  # as in `tensors.at_input_size`
        warnings.simplefilter("ignore")
        with closing(alive.in_order(call, range(len(job.records)), threads)) as results:
            yield from results


def _entry(record: ImageRecord, data: bytes, largest_levels: int) -> Output:
    return {
        "name": record.released_name,
        "source_name": record.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "largest_change_levels": largest_levels,
    }


class _Shards:
    """Pixels that were perturbed, picked from the shards; by several threads at once, too."""

    def __init__(self, job: Job, files: Sequence[IO[bytes]]) -> None:
        self._job, self._files, self._lock = job, files, Lock()
        self._places: dict[int, tuple[int, int]] = {}
        for shard_index, shard in enumerate(workload.shards(job.records, job.config, job.plan)):
            offset = 0
            for index in (index for batch in shard for index in batch):
                self._places[index] = shard_index, offset
                offset += workload.size_bytes(job.records[index])

    def pixels(self, index: int, original: Pixels) -> Pixels:
        """What leaves of an image: the original where it was not to be perturbed."""
        if index not in self._places:
            return original
        shard_index, offset = self._places[index]
        with self._lock:
            self._files[shard_index].seek(offset)
            raw = self._files[shard_index].read(original.nbytes)
        return np.frombuffer(raw, np.uint8).reshape(original.shape)


@contextmanager
def _shards(job: Job) -> Iterator[_Shards]:
    number = len(workload.shards(job.records, job.config, job.plan))
    with ExitStack() as stack:
        keys = (shard_key(job.protection_id, job.plan, index) for index in range(number))
        yield _Shards(job, [stack.enter_context(storage.open_blob(key)) for key in keys])


def _verify(job: Job, manifest: Output, total: int) -> Generator[Progress, None, _Found]:
    """Decode every image again from the stored archive and compare it with its original."""
    found = _Found()
    with open_source(job.dataset_id) as source, open_released(job.protection_id) as released:

        def compared(index: int) -> tuple[preview.Pair, Change]:
            record = job.records[index]
            pair = source.pixels(record), released.pixels(record)
            return pair, metrics.compare(*pair)

        for result in _for_all(job, compared):
            if result is not None:
                (pair, change), index = result, len(found.changes)
                _check_change(job, index, change, manifest["files"][index])
                found.changes.append(change)
                if index in job.protected:
                    found.picture(job.records[index], pair, change, job.config.epsilon_levels)
            yield len(job.records) + len(found.changes), total
    return found


def _store_pictures(job: Job, found: _Found) -> None:
    epsilon_levels = job.config.epsilon_levels
    pictures = {
        protections.PREVIEW: preview.draw(list(found.columns.values()), epsilon_levels),
        protections.WORST: preview.draw_worst([w.crop for w in found.worst], epsilon_levels),
    }
    for name, picture in pictures.items():
        storage.write(storage.protection_key(job.protection_id, name), picture)


def _check_change(job: Job, index: int, change: Change, entry: Output) -> None:
    record, allowed = job.records[index], job.config.epsilon_levels
    if index not in job.protected and change.largest_levels:
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
    if change.largest_levels != entry["largest_change_levels"]:
        raise AppError(
            500,
            "ARCHIVE_MISMATCH",
            f"{record.released_name}: the finished archive holds other pixels than were packed.",
        )


def _figures(job: Job, manifest: Output, found: _Found) -> tuple[bytes, Output]:
    """The owner's record of every file, and a summary of the protected: others would flatter."""
    files = _owners_record(job, manifest, found.changes)
    record = {"files": files, "refused": [asdict(refusal) for refusal in job.index.refusals]}
    worst = [
        {"name": image.record.released_name} | _measured(image.change) for image in found.worst
    ]
    changes = [found.changes[index] for index in sorted(job.protected)]
    counts = {"images": len(job.records), "protected_images": len(changes)}
    return dump_json(record), counts | metrics.summarise(changes) | {"worst": worst}


def _owners_record(job: Job, manifest: Output, changes: list[Change]) -> list[Output]:
    """What the manifest says of each file, and what only the owner may know."""
    return [
        entry
        | {
            "original_pixels_sha256": record.pixels_sha256,
            "split": record.split,
            "class": record.class_name,
            "protected": index in job.protected,
            "histogram": change.histogram,
        }
        | _measured(change)
        for index, (record, entry, change) in enumerate(
            zip(job.records, manifest["files"], changes, strict=True)
        )
    ]


def _measured(change: Change) -> Output:
    return {
        "ssim": round(change.ssim, 6),
        "psnr_db": change.psnr_db,
        "changed_share": round(change.changed_share, 6),
        "largest_change_levels": change.largest_levels,
    }
