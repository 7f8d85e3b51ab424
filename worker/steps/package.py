"""`package`: write the archive of what was encoded, store it, and read it back."""

import io
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from typing import IO, TypeVar

import numpy as np

from api import archive, protections, storage
from api.archive import ImageRecord
from api.errors import AppError
from api.models import StepKind
from api.scheduling.leases import Claim
from worker import alive, facts, metrics, preview
from worker.alive import Progress
from worker.data import Job, load_job, open_released, open_source, outputs
from worker.encoded import Encoded
from worker.lease import check_held, store
from worker.listed import Listed, write_json
from worker.metrics import Change
from worker.steps import Output, Work
from worker.steps.encode import encode

FORMAT_VERSION = 1
PREVIEW_COLUMNS = 8
WORST = 5

T = TypeVar("T")


def run(claim: Claim) -> Work:
    """Output: the archive's digest and size, and how much the images that go out have changed.

    Raises:
        AppError: BLOB_CHANGED, what was encoded is not what lies there; ARCHIVE_MISMATCH, nor is it
            what the finished archive holds.
    """
    job = load_job(claim)
    total = 2 * len(job.records)
    half = len(job.records), total
    found = outputs(job.protection_id, StepKind.ENCODE)
    found = found or (yield from _encoded_here(job, claim, total))
    with closing(Encoded(job)) as encoded:
        for _ in encoded.read_tables(found):
            yield 0, total
        with tempfile.TemporaryFile() as file:
            yield from _write(job, file, encoded, total)
            size = file.tell()
            key = storage.protection_key(job.protection_id, protections.ARCHIVE)
            writing = alive.reading(lambda: store(claim, key, file), file)
            digest = yield from alive.at(half, writing)
        try:
            yield from _verify(job, encoded, total)
        except AppError:
            check_held(claim)
            storage.remove_one(key)  # what must not leave does not lie there either
            raise
        summary = yield from alive.at((total, total), _tell(job, encoded))
    return {"archive_sha256": digest, "archive_bytes": size} | summary


def _tell(job: Job, encoded: Encoded) -> Generator[None, None, Output]:
    """Store pictures and record; how much has changed in all."""
    worst = _worst(job, encoded)
    yield from _store_pictures(job, encoded, worst)
    yield from _store_record(job, encoded)
    _store_refused(job)
    return (yield from alive.computing(lambda: _summary(job, encoded, worst)))


def _encoded_here(job: Job, claim: Claim, total: int) -> Generator[Progress, None, list[Output]]:
    """Of a protection that was planned before there were steps for it."""
    found: list[Output] = []
    for index in range(len(job.parts)):
        output = yield from alive.at((0, total), encode(job, claim, index))
        found.append(output)
    return found


def _write(
    job: Job, file: IO[bytes], encoded: Encoded, total: int
) -> Generator[Progress, None, None]:
    """Write images under their released names, then the manifest."""
    box: list[tuple[str, bytes | IO[bytes]]] = []
    writer = archive.write(file, _emptied(box))
    sizes, done = encoded.sizes_bytes, 0
    threads, groups = alive.groups(len(sizes), int(sizes.max()), facts.threads())
    with closing(alive.in_order(encoded.files, groups, threads)) as results:
        for result in results:
            for data in result or []:
                box.append((job.records[done].released_name, data))
                next(writer)
                done += 1
            yield done, total
    with tempfile.TemporaryFile() as manifest:
        written = alive.computing(lambda: write_json(_manifest(job, encoded), manifest.write))
        yield from alive.at((done, total), written)
        box.append((archive.MANIFEST_NAME, manifest))
        for _ in writer:  # the manifest, and the end of the archive
            pass


def _emptied(
    box: list[tuple[str, bytes | IO[bytes]]],
) -> Iterator[tuple[str, bytes | IO[bytes]]]:
    """What is in the box whenever the next is asked for, until nothing is."""
    while box:
        yield box.pop()


def _manifest(job: Job, encoded: Encoded) -> Output:
    def entry(index: int) -> Output:
        return _entry(job.records[index], encoded.sha256(index), encoded.change(index))

    return {
        "format_version": FORMAT_VERSION,
        "variant": job.config.variant,
        "epsilon_levels": job.config.epsilon_levels,
        "files": Listed(len(job.records), entry),
    }


def _entry(record: ImageRecord, digest: str, change: Change) -> Output:
    return {
        "name": record.released_name,
        "source_name": record.name,
        "sha256": digest,
        "largest_change_levels": change.largest_levels,
    }


def _verify(job: Job, encoded: Encoded, total: int) -> Generator[Progress, None, None]:
    """Read every file again from the stored archive: those that were compared are what leaves."""
    with open_released(job.protection_id) as released:
        for _ in released.read_directory():
            yield len(job.records), total
        for index, record in enumerate(job.records):
            found = sha256(released.file(record)).hexdigest()
            if found != encoded.sha256(index):
                raise AppError(
                    500,
                    "ARCHIVE_MISMATCH",
                    f"{record.released_name}: expected the file that was encoded, of SHA-256 "
                    f"{encoded.sha256(index)}, got one of {found} in the finished archive.",
                )
            yield len(job.records) + index + 1, total


def _worst(job: Job, encoded: Encoded) -> list[int]:
    """The protected images of lowest SSIM, the lowest first."""
    protected = np.flatnonzero(job.is_protected)
    order = np.argsort(encoded.ssim[protected], kind="stable")
    found: list[int] = protected[order[:WORST]].tolist()
    return found


def _first_of_classes(job: Job) -> list[int]:
    """A protected image of each of the first classes that have one."""
    protected = np.flatnonzero(job.is_protected)
    classes = archive.words(job.records, "class_name")[1][protected]
    firsts = np.sort(np.unique(classes, return_index=True)[1])
    found: list[int] = protected[firsts[:PREVIEW_COLUMNS]].tolist()
    return found


def _store_pictures(
    job: Job, encoded: Encoded, worst: Sequence[int]
) -> Generator[None, None, None]:
    """Of few images, which are decoded one at a time: each may be large."""
    levels = job.config.epsilon_levels
    with open_source(job.dataset_id) as source:

        def pair(index: int) -> preview.Pair:
            (data,) = encoded.files(range(index, index + 1))
            return source.pixels(job.records[index]), archive.decode_released(data)

        def column(index: int) -> preview.Cells:
            return preview.column(pair(index), levels)

        def crop(index: int) -> preview.Pair:
            return preview.crop(pair(index))

        columns = yield from _each(column, _first_of_classes(job))
        crops = yield from _each(crop, worst)
    pictures = {
        protections.PREVIEW: preview.draw(columns, levels),
        protections.WORST: preview.draw_worst(crops, levels),
    }
    for name, picture in pictures.items():
        store(job.claim, storage.protection_key(job.protection_id, name), picture)
        yield


def _each(call: Callable[[int], T], indices: Sequence[int]) -> Generator[None, None, list[T]]:
    found: list[T] = []
    for index in indices:
        result = yield from alive.computing(partial(call, index))
        found.append(result)
    return found


def _store_record(job: Job, encoded: Encoded) -> Generator[None, None, None]:
    key = storage.protection_key(job.protection_id, protections.RECORD)
    with tempfile.TemporaryFile() as file:
        yield from alive.computing(lambda: write_json(_record(job, encoded), file.write))
        yield from alive.reading(lambda: store(job.claim, key, file), file)


def _store_refused(job: Job) -> None:
    """Apart from the record: the report's page shows them, and not every file."""
    with io.BytesIO() as refused:
        write_json({"refused": [asdict(refusal) for refusal in job.index.refusals]}, refused.write)
        store(job.claim, storage.protection_key(job.protection_id, protections.REFUSED), refused)


def _summary(job: Job, encoded: Encoded, worst: Sequence[int]) -> Output:
    """Of the protected: others would flatter."""
    shown = [
        {"name": job.records[index].released_name} | _measured(encoded.change(index))
        for index in worst
    ]
    counts = {"images": len(job.records), "protected_images": int(job.is_protected.sum())}
    protected = (encoded.change(int(index)) for index in np.flatnonzero(job.is_protected))
    return counts | metrics.summarise(protected) | {"worst": shown}


def _record(job: Job, encoded: Encoded) -> Output:
    """What the manifest says of each file, and what only the owner may know."""

    def told(index: int) -> Output:
        record, change = job.records[index], encoded.change(index)
        return (
            _entry(record, encoded.sha256(index), change)
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
    return {"files": Listed(len(job.records), told), "refused": refused}


def _measured(change: Change) -> Output:
    return {
        "ssim": round(change.ssim, 6),
        "psnr_db": change.psnr_db,
        "changed_share": round(change.changed_share, 6),
        "largest_change_levels": change.largest_levels,
    }
