"""`perturb`: one shard of images, through all checkpoints."""

import tempfile
from collections.abc import Iterator, Sequence

from torch import Tensor

from api.archive import Numbers, Pixels
from api.models import StepKind
from api.scheduling.leases import Claim
from sep_core.arithmetic import prepare
from sep_core.costs import gradient_passes
from sep_core.protection import protect
from sep_core.reading import READ_THREADS, read_ahead
from sep_core.surrogate import Checkpoint
from worker import alive, checkpoints, tensors
from worker.data import (
    Job,
    Reader,
    load_job,
    open_source,
    outputs,
    patterns_key,
    shard_key,
)
from worker.lease import store
from worker.steps import Work


def run(claim: Claim) -> Work:
    """Writes the shard's protected pixels, raw, in the order of its batches.

    Output: their digest, and how many images they are of.
    """
    job = load_job(claim)
    prepare(job.plan)
    shard = job.shards[claim.index]
    total = len(shard) * gradient_passes(job.config)
    yield 0, total
    (trained,) = outputs(job.protection_id, StepKind.TRAIN)
    ensemble = checkpoints.ensemble(job, trained["checkpoints"])
    patterns = _patterns(job, trained["class_patterns_sha256"])
    with tempfile.TemporaryFile() as protected, open_source(job.dataset_id) as reader:
        for event in perturb(job, reader, shard, ensemble, patterns):
            if isinstance(event, int):
                yield event, total
            else:
                protected.write(event.tobytes())
        key = shard_key(job.protection_id, job.plan, claim.index)
        writing = alive.reading(lambda: store(claim, key, protected), protected)
        digest = yield from alive.at((total, total), writing)
    return {"sha256": digest, "images": sum(map(len, shard))}


def perturb(
    job: Job,
    reader: Reader,
    shard: Sequence[Numbers],
    ensemble: Sequence[Checkpoint],
    patterns: Tensor | None,
) -> Iterator[int | Pixels]:
    """Yields passes of a batch done so far, and each image of a batch that is done, in order."""
    for number, batch in enumerate(_decoded(job, reader, shard)):
        for event in protect(*batch, ensemble, job.config, job.plan, patterns):
            if isinstance(event, int):
                yield number * gradient_passes(job.config) + event
            else:
                yield from tensors.arrays(event)


def _decoded(
    job: Job, reader: Reader, shard: Sequence[Numbers]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Parts and labels of each batch; the next are decoded while this one is computed.

    An accelerator is faster than one thread decodes, and fetches by itself what is pinned.
    """
    on_gpu = job.plan.device == "cuda"

    def decode(batch: Numbers) -> tuple[list[Tensor], Tensor]:
        records = [job.records[index] for index in batch.tolist()]
        parts = tensors.parts([reader.pixels(record) for record in records])
        pinned = [part.pin_memory() for part in parts] if on_gpu else parts
        return pinned, tensors.labels(records, job.index)

    return read_ahead(alive.about_this(decode), shard, READ_THREADS if on_gpu else 1)


def _patterns(job: Job, sha256: str | None) -> Tensor | None:
    if sha256 is None:
        return None
    patterns: Tensor = checkpoints.load(patterns_key(job.protection_id), sha256)
    return patterns
