"""How large the images of a data set are: what the networks' input size is chosen by."""

from collections.abc import Iterable, Mapping
from statistics import median_low
from typing import Any

from api.archive import ImageRecord


def median_side(records: Iterable[ImageRecord]) -> int:
    """Median of the shorter sides of the training images, in pixels."""
    return median_low(
        min(record.height, record.width) for record in records if record.split == "train"
    )


def summary_side(summary: Mapping[str, Any]) -> int:
    """The same of a data set's summary: what requests are checked, estimated and planned by.

    One from before it was kept has the most frequent sizes of all its images, which come near it.
    """
    if "median_side" in summary:
        return int(summary["median_side"])
    return median_low(
        min(map(int, size.split("x")))
        for size, count in summary["sizes"].items()
        for _ in range(count)
    )
