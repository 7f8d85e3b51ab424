"""Which steps have to run again, since what they had stored is not there or damaged."""

import logging
from collections.abc import Collection, Iterator

from api import protections, storage
from api.models import StepKind
from api.scheduling.joins import ORDER, Named
from api.scheduling.leases import Claim
from sep_core.cells import is_clean
from worker.data import (
    BlobChanged,
    Job,
    checkpoint_key,
    encoded_key,
    load_job,
    outputs,
    patterns_key,
    shard_key,
    table_key,
)

log = logging.getLogger(__name__)

CODES = "BLOB_MISSING", "BLOB_CHANGED"


def before(claim: Claim, error: Exception) -> list[Named]:
    """Of what a step reads, and of what is read to make that again, for as far as it is lost.

    A shard goes when it is encoded and its files when the archive is stored, so that either of them
    may take all of its makers.
    """
    if claim.kind not in ORDER[1:]:  # nothing was stored before it but the upload
        return []
    try:
        return list(_before(load_job(claim), claim.kind, claim.index, error))
    except Exception:  # storage is away now, say: then the next attempt looks again
        log.exception("what is lost could not be found out")
        return []


def _before(job: Job, kind: StepKind, index: int, error: Exception) -> Iterator[Named]:
    there = storage.keys(storage.protection_key(job.protection_id))
    if isinstance(error, BlobChanged):
        there.discard(error.key)
    lost: Collection[int] = [] if kind is StepKind.EVALUATE and is_clean(index) else [index]
    for maker in reversed(ORDER[: ORDER.index(kind)]):
        read = _read(job, maker, lost)
        lost = [index for index in read if not there.issuperset(_stored(job, maker, index))]
        yield from ((maker, index) for index in lost)


def _read(job: Job, maker: StepKind, readers: Collection[int]) -> Collection[int]:
    """Indices of the steps whose results are read by steps of the kind that comes after theirs."""
    match maker:
        case StepKind.PERTURB:
            return [index for index in readers if index < len(job.shards)]
        case StepKind.ENCODE:
            return range(len(job.parts)) if readers else []
        case _:
            return [0] if readers else []


def _stored(job: Job, kind: StepKind, index: int) -> Iterator[str]:
    """Keys of what a step has stored that others read."""
    match kind:
        case StepKind.TRAIN:
            (found,) = outputs(job.protection_id, kind)
            for number in range(len(found["checkpoints"])):
                yield checkpoint_key(job.protection_id, number)
            if found["class_patterns_sha256"] is not None:
                yield patterns_key(job.protection_id)
        case StepKind.PERTURB:
            yield shard_key(job.protection_id, job.plan, index)
        case StepKind.ENCODE:
            yield encoded_key(job.protection_id, job.plan, index)
            yield table_key(job.protection_id, job.plan, index)
        case StepKind.PACKAGE:
            yield storage.protection_key(job.protection_id, protections.ARCHIVE)
