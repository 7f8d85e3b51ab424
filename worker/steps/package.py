"""`package`: write the archive, store it, read it back, compare every image with its original."""

import hashlib
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import IO

import numpy as np

from api import archive, planning, protections, storage
from api.archive import ImageRecord, Pixels
from api.errors import AppError
from api.leases import Claim
from worker import metrics, preview
from worker.data import (
    Job,
    dump_json,
    load_job,
    open_released,
    open_source,
    shard_key,
    size_bytes,
)
from worker.metrics import Change
from worker.steps import Output, Work

FORMAT_VERSION = 1
PREVIEW_COLUMNS = 8


def run(claim: Claim) -> Work:
    """Output: the archive's digest and size, and how much the images that go out have changed.

    Raises:
        AppError: BUDGET_EXCEEDED, an image in the finished archive has changed by more than it may.
    """
    job = load_job(claim)
    total = 2 * len(job.records)
    key = storage.protection_key(job.protection_id, protections.ARCHIVE)
    with tempfile.TemporaryFile() as file:
        manifest = yield from _write(job, file, total)
        size = file.tell()
        digest = storage.write(key, file)
    changes = yield from _verify(job, manifest, total)
    files = _owners_record(job, manifest, changes)
    record = {"files": files, "refused": [asdict(refusal) for refusal in job.index.refusals]}
    storage.write(storage.protection_key(job.protection_id, protections.RECORD), dump_json(record))
    summary = metrics.summarise(changes)
    return {"archive_sha256": digest, "archive_bytes": size, "images": len(changes)} | summary


def _write(job: Job, file: IO[bytes], total: int) -> Generator[tuple[int, int], None, Output]:
    """Write images, then the manifest; returns the manifest."""
    manifest: Output = {
        "format_version": FORMAT_VERSION,
        "variant": job.config.variant,
        "epsilon_levels": job.config.epsilon_levels,
        "files": [],
    }
    for number, _ in enumerate(archive.write(file, _members(job, manifest))):
        yield number, total
    return manifest


def _members(job: Job, manifest: Output) -> Iterator[tuple[str, bytes]]:
    """Every image under its released name, entered into the manifest, which comes last."""
    with open_source(job.dataset_id) as reader:
        for record, pixels in _protected(job):
            data = archive.encode(pixels, record.released_name)
            entry = {
                "name": record.released_name,
                "source_name": record.name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "largest_change_levels": metrics.largest(reader.pixels(record), pixels),
            }
            manifest["files"].append(entry)
            yield record.released_name, data
    yield archive.MANIFEST_NAME, dump_json(manifest)


def _protected(job: Job) -> Iterator[tuple[ImageRecord, Pixels]]:
    """Protected pixels in the order of names, picked from the shards."""
    places: dict[int, tuple[int, int]] = {}
    shards = planning.shards(job.records, job.plan)
    for shard_index, shard in enumerate(shards):
        offset = 0
        for index in (index for batch in shard for index in batch):
            places[index] = (shard_index, offset)
            offset += size_bytes(job.records[index])
    with ExitStack() as stack:
        files = [
            stack.enter_context(storage.open_blob(shard_key(job.protection_id, index)))
            for index in range(len(shards))
        ]
        for index, record in enumerate(job.records):
            shard_index, offset = places[index]
            files[shard_index].seek(offset)
            raw = files[shard_index].read(size_bytes(record))
            shape = (record.height, record.width, record.channels)
            yield record, np.frombuffer(raw, np.uint8).reshape(shape)


def _verify(
    job: Job, manifest: Output, total: int
) -> Generator[tuple[int, int], None, list[Change]]:
    """Decode every image again from the stored archive and compare it with its original."""
    changes: list[Change] = []
    pairs: dict[str, tuple[Pixels, Pixels]] = {}
    with open_source(job.dataset_id) as source, open_released(job.protection_id) as released:
        for record, entry in zip(job.records, manifest["files"], strict=True):
            original, protected = source.pixels(record), released.pixels(record)
            change = metrics.compare(original, protected)
            _check_budget(job, record, change, entry)
            changes.append(change)
            pairs.setdefault(record.class_name, (original, protected))
            yield len(job.records) + len(changes), total
    picture = preview.draw(list(pairs.values())[:PREVIEW_COLUMNS], job.config.epsilon_levels)
    storage.write(storage.protection_key(job.protection_id, protections.PREVIEW), picture)
    return changes


def _check_budget(job: Job, record: ImageRecord, change: Change, entry: Output) -> None:
    allowed = job.config.epsilon_levels
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


def _owners_record(job: Job, manifest: Output, changes: list[Change]) -> list[Output]:
    """What the manifest says of each file, and what only the owner may know."""
    return [
        entry
        | {
            "original_pixels_sha256": record.pixels_sha256,
            "split": record.split,
            "class": record.class_name,
            "ssim": round(change.ssim, 6),
            "changed_share": round(change.changed_share, 6),
        }
        for record, entry, change in zip(job.records, manifest["files"], changes, strict=True)
    ]
