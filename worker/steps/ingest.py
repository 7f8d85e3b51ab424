"""`ingest`: read the archive, decode every image, keep the index and the refused files."""

import tempfile
from collections import Counter
from dataclasses import asdict

from api import archive, datasets, storage
from api.archive import IngestProgress, IngestResult
from api.plans import sides
from api.scheduling.leases import Claim
from worker import alive
from worker.lease import store
from worker.steps import Output, Work


def run(claim: Claim) -> Work:
    """Output: the columns `summary` and `refused` of the data set's row."""
    assert claim.dataset_id is not None
    result: IngestResult | None = None
    progress = (0, 1)
    with storage.open_blob(storage.dataset_key(claim.dataset_id, datasets.SOURCE)) as file:
        for event in archive.ingest(file, archive.Limits()):
            match event:
                case IngestProgress(done, total):
                    progress = done, total
                    yield progress
                case IngestResult():
                    result = event
    assert result is not None
    with tempfile.TemporaryFile() as index:
        archive.dump_index(result, index)
        key = storage.dataset_key(claim.dataset_id, datasets.INDEX)
        yield from alive.at(progress, alive.reading(lambda: store(claim, key, index), index))
    return {"summary": _summary(result), "refused": [asdict(r) for r in result.refusals]}


def _summary(result: IngestResult) -> Output:
    splits, split_of = archive.words(result.records, "split")
    classes, class_of = archive.words(result.records, "class_name")
    groups = Counter(zip(split_of.tolist(), class_of.tolist(), strict=True))
    counts = {(splits[split], classes[name]): count for (split, name), count in groups.items()}
    sizes = Counter(
        f"{width}x{height}" for height, width, _ in archive.sizes(result.records).tolist()
    )
    return {
        "images": len(result.records),
        "refused": len(result.refusals),
        "classes": list(result.classes),
        "counts": {
            split: {name: counts.get((split, name), 0) for name in result.classes}
            for split in sorted({split for split, _ in counts})
        },
        "sizes": dict(sizes.most_common(20)),
        "median_side": sides.median_side(result.records),
    }
