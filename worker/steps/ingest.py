"""`ingest`: read the archive, decode every image, keep the index and the refused files."""

import tempfile
from collections import Counter
from dataclasses import asdict

from api import archive, datasets, sides, storage
from api.archive import IngestProgress, IngestResult
from api.leases import Claim
from worker.lease import store
from worker.steps import Output, Work


def run(claim: Claim) -> Work:
    """Output: the columns `summary` and `refused` of the data set's row."""
    assert claim.dataset_id is not None
    result: IngestResult | None = None
    with storage.open_blob(storage.dataset_key(claim.dataset_id, datasets.SOURCE)) as file:
        for event in archive.ingest(file, archive.Limits()):
            match event:
                case IngestProgress(done, total):
                    yield done, total
                case IngestResult():
                    result = event
    assert result is not None
    with tempfile.TemporaryFile() as index:
        archive.dump_index(result, index)
        store(claim, storage.dataset_key(claim.dataset_id, datasets.INDEX), index)
    return {"summary": _summary(result), "refused": [asdict(r) for r in result.refusals]}


def _summary(result: IngestResult) -> Output:
    splits = sorted({record.split for record in result.records})
    counts = Counter((record.split, record.class_name) for record in result.records)
    sizes = Counter(f"{record.width}x{record.height}" for record in result.records)
    return {
        "images": len(result.records),
        "refused": len(result.refusals),
        "classes": list(result.classes),
        "counts": {s: {c: counts[s, c] for c in result.classes} for s in splits},
        "sizes": dict(sizes.most_common(20)),
        "median_side": sides.median_side(result.records),
    }
