"""Reads an uploaded archive: what it promises, and the whole of it."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO

import numpy as np

from api.archive.catalog import Catalog
from api.archive.images import read_pixels
from api.archive.layout import EXPECTED_LAYOUT, find_layout, sort_out
from api.archive.model import (
    Entry,
    ImageRecord,
    ImageRefused,
    IngestProgress,
    IngestResult,
    Limits,
    Pixels,
    Refusal,
)
from api.archive.names import released_name, shown
from api.archive.table import Records, Table
from api.errors import ArchiveRefused

_FIRST_REASONS = 3
_SIGN_EVERY = 10_000
"""Files that are looked at, and not decoded, between two signs of life."""


def ingest(file: IO[bytes], limits: Limits) -> Iterator[IngestProgress | IngestResult]:
    """Decodes every file: progress after each, and now and then before and after; last the result.

    Raises:
        ArchiveRefused: the archive as a whole is refused, or TOO_FEW_CLASSES.
    """
    with closing(Catalog(file, limits)) as catalog:
        for _ in catalog.read_directory():
            yield IngestProgress(0, 0)
        images, refusals = yield from _decode(catalog, limits)
        yield (yield from _result(catalog, images, refusals))


def _decode(
    catalog: Catalog, limits: Limits
) -> Generator[IngestProgress, None, tuple[Records, list[Refusal]]]:
    refusals, total, layout = [], 0, find_layout(catalog.names())
    for number, item in enumerate(sort_out(catalog.names(), layout), start=1):
        if isinstance(item, Refusal):
            refusals.append(item)
        else:
            total += 1
        if number % _SIGN_EVERY == 0:
            yield IngestProgress(0, 0)
    items = sort_out(catalog.names(), layout)
    entries = (item for item in items if isinstance(item, Entry))
    with closing(Table()) as images:
        for done, entry in enumerate(entries, start=1):
            read = _read(catalog, entry, limits)
            if isinstance(read, Refusal):
                refusals.append(read)
            else:
                images.append(read)
            yield IngestProgress(done, total)
        return images.records(), refusals


def _read(catalog: Catalog, entry: Entry, limits: Limits) -> ImageRecord | Refusal:
    """Under the name that it came by."""
    try:
        decoded = read_pixels(catalog.read(entry.name), limits)
    except ImageRefused as refused:
        return Refusal(entry.name, refused.code, refused.reason)
    height, width, channels = decoded.pixels.shape
    return ImageRecord(
        name=entry.name,
        split=entry.split,
        class_name=entry.class_name,
        height=height,
        width=width,
        channels=channels,
        source_format=decoded.source_format,
        pixels_sha256=_digest(decoded.pixels),
        released_name=entry.name,
        place=catalog.place(entry.name),
    )


def _digest(pixels: Pixels) -> str:
    """Equal for pictures that look the same: grey ones kept in one channel or in three."""
    grey = pixels[:, :, :1]
    if (pixels == grey).all():
        pixels = grey
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _result(
    catalog: Catalog, images: Records, refusals: list[Refusal]
) -> Generator[IngestProgress, None, IngestResult]:
    classes, total = _with_training(images), len(images)
    with closing(Table()) as accepted:
        for number, image in enumerate(images, start=1):
            if number % _SIGN_EVERY == 0:
                yield IngestProgress(total, total)
            if image.class_name in classes:
                name = released_name(image.name, catalog.claim)
                accepted.append(replace(image, released_name=name))
            else:
                refusals.append(_without_training(image))
        records = accepted.records()
    refusals.sort(key=lambda refusal: refusal.name)
    _check_classes(classes, refusals)
    return IngestResult(records, tuple(refusals), tuple(sorted(classes)))


def _with_training(images: Records) -> set[str]:
    """Classes that have training images."""
    splits, split = images.words("split")
    names, number = images.words("class_name")
    train = [at for at, name in enumerate(splits) if name == "train"]
    return {names[at] for at in np.unique(number[np.isin(split, train)])}


def _without_training(image: ImageRecord) -> Refusal:
    reason = f"Expected training images of class {shown(image.class_name)}, got none."
    return Refusal(image.name, "CLASS_WITHOUT_TRAINING_IMAGES", reason)


def _check_classes(classes: set[str], refusals: Sequence[Refusal]) -> None:
    if len(classes) >= 2:
        return
    found = ", ".join(shown(name) for name in classes) or "none"
    telling = [item for item in refusals if item.code != "METADATA_FILE"]
    first = "".join(f" {shown(r.name)}: {r.reason}" for r in telling[:_FIRST_REASONS])
    reasons = f" The first of them:{first}" if first else ""
    raise ArchiveRefused(
        "TOO_FEW_CLASSES",
        f"Expected at least two classes with training images, got {found}. "
        f"{len(refusals)} files were refused.{reasons} {EXPECTED_LAYOUT}",
    )
