"""What `perturb` left, picked from its shards by image."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import IO

import numpy as np

from api import storage, workload
from api.archive import Pixels
from api.models import StepKind
from worker.data import Job, check_digest, outputs, shard_key

PIECE_BYTES = 2**22


def check(job: Job) -> Iterator[None]:
    """Whether all are what was perturbed; yields whenever a piece is read.

    Raises:
        AppError: BLOB_CHANGED.
    """
    for index, found in enumerate(outputs(job.protection_id, StepKind.PERTURB)):
        key, digest = shard_key(job.protection_id, job.plan, index), hashlib.sha256()
        with storage.open_blob(key) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                yield
        check_digest(key, digest.hexdigest(), found["sha256"])


class Shards:
    """Pixels that were perturbed, picked from the shards; by several threads at once, too."""

    def __init__(self, job: Job, files: Sequence[IO[bytes]]) -> None:
        self._files, self._lock = files, Lock()
        self._shard_of = np.full(len(job.records), -1, np.int32)
        self._offset_of = np.zeros(len(job.records), np.int64)
        sizes = workload.sizes_bytes(job.records)
        for shard_index, shard in enumerate(job.shards):
            indices = np.concatenate(shard)
            self._shard_of[indices] = shard_index
            self._offset_of[indices] = np.cumsum(sizes[indices]) - sizes[indices]

    def pixels(self, index: int, original: Pixels) -> Pixels:
        """What leaves of an image: the original where it was not to be perturbed."""
        if self._shard_of[index] < 0:
            return original
        file = self._files[self._shard_of[index]]
        with self._lock:
            file.seek(int(self._offset_of[index]))
            raw = file.read(original.nbytes)
        return np.frombuffer(raw, np.uint8).reshape(original.shape)


@contextmanager
def opened(job: Job) -> Iterator[Shards]:
    """While they are read."""
    with ExitStack() as stack:
        keys = (shard_key(job.protection_id, job.plan, index) for index in range(len(job.shards)))
        yield Shards(job, [stack.enter_context(storage.open_blob(key)) for key in keys])
