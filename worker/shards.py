"""What `perturb` left of the images of a shard."""

import hashlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from api import storage
from api.archive import Pixels
from api.models import StepKind
from api.plans import workload
from worker.data import PIECE_BYTES, Job, check_digest, output, shard_key


def copy(job: Job, index: int, file: IO[bytes]) -> Iterator[None]:
    """Copy a shard into a file; yields whenever a piece is read.

    Raises:
        AppError: BLOB_CHANGED, it is not what was perturbed.
    """
    key, digest = shard_key(job.protection_id, job.plan, index), hashlib.sha256()
    with storage.open_blob(key) as blob:
        while piece := blob.read(PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
            yield
    found = output(job.protection_id, StepKind.PERTURB, index)
    check_digest(key, digest.hexdigest(), found["sha256"])
    file.flush()


class Shard:
    """Pixels that were perturbed, of a copy in a file; by several threads at once, too."""

    def __init__(self, job: Job, index: int, file: IO[bytes]) -> None:
        indices = np.concatenate(job.shards[index])
        sizes = workload.sizes_bytes(job.records)[indices]
        self._starts = (np.cumsum(sizes) - sizes)[np.argsort(indices)]
        self._bytes = np.memmap(file, np.uint8, "r", shape=(int(sizes.sum()),))

    def pixels(self, number: int, original: Pixels) -> Pixels:
        """Of the image of that number in the shard, by rising index: what leaves of `original`."""
        start = self._starts[number]
        return np.asarray(self._bytes[start : start + original.nbytes]).reshape(original.shape)
