"""Makes images and odd zips for tests: real bytes, some of them patched by hand."""

import random
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from api.archive import Catalog, Entry, IngestResult, Limits, Pixels, Refusal, ingest
from api.archive.layout import find_layout, sort_out

LIMITS = Limits()
_CENTRAL_FIELDS = {
    "flags": (8, "<H"),
    "method": (10, "<H"),
    "crc": (16, "<L"),
    "packed": (20, "<L"),
    "size": (24, "<L"),
    "disk": (34, "<H"),
    "attributes": (38, "<L"),
    "offset": (42, "<L"),
}


def noise(height: int = 12, width: int = 10, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(mode: str = "RGB", seed: int = 0, height: int = 12, width: int = 10) -> Image.Image:
    """A noisy opaque image in any of Pillow's modes."""
    image = Image.fromarray(noise(height, width, seed=seed))
    if mode.startswith("I;16"):
        return Image.fromarray(np.arange(height * width, dtype=np.uint16).reshape(height, width))
    return image.convert(mode)


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png(seed: int = 0, height: int = 12, width: int = 10) -> bytes:
    return saved(picture("RGB", seed, height, width), "PNG")


def jpeg(seed: int = 0, height: int = 12, width: int = 10) -> bytes:
    return saved(picture("RGB", seed, height, width), "JPEG", quality=95)


def zip_bytes(
    files: Mapping[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]],
    method: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    pairs = files.items() if isinstance(files, Mapping) else files
    out = BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in pairs:
            archive.writestr(name, content)
    return out.getvalue()


def two_classes(**more: bytes) -> dict[str, bytes]:
    """A small whole data set and further files (`__` in a keyword stands for `/`)."""
    files = {f"{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(2)}
    return files | {name.replace("__", "/"): content for name, content in more.items()}


def headers(data: bytes) -> dict[str, int]:
    """Name -> where its central directory header begins."""
    places, at = {}, struct.unpack_from("<L", data, data.rfind(b"PK\5\6") + 16)[0]
    while data[at : at + 4] == b"PK\1\2":
        name, extra, comment = struct.unpack_from("<3H", data, at + 28)
        places[data[at + 46 : at + 46 + name].decode()] = at
        at += 46 + name + extra + comment
    return places


def patched(data: bytes, name: str, **fields: int) -> bytes:
    """The zip with other values in the central directory header of one entry."""
    changed, header = bytearray(data), headers(data)[name]
    for field, value in fields.items():
        place, form = _CENTRAL_FIELDS[field]
        struct.pack_into(form, changed, header + place, value)
    return bytes(changed)


def ingested(data: bytes, limits: Limits = LIMITS) -> IngestResult:
    *_, last = ingest(BytesIO(data), limits)
    assert isinstance(last, IngestResult)
    return last


class Inspection(NamedTuple):
    """What becomes of every file by the directory alone; both sorted by name."""

    entries: list[Entry]
    refusals: list[Refusal]


def inspect(data: bytes, limits: Limits = LIMITS) -> Inspection:
    with closing(Catalog.of(BytesIO(data), limits)) as catalog:
        found = list(sort_out(catalog.names(), find_layout(catalog.names())))
    entries = [item for item in found if isinstance(item, Entry)]
    refusals = [item for item in found if isinstance(item, Refusal)]
    assert [*sorted(found, key=lambda item: item.name)] == found
    return Inspection(entries, refusals)


def mutations(data: bytes, number: int, seed: int) -> Iterable[bytes]:
    """Flipped, cut, doubled and overwritten bytes: the same ones for the same seed."""
    draw = random.Random(seed)
    ways: list[Callable[[bytearray], None]] = [
        lambda b: b.__setitem__(draw.randrange(len(b)), draw.randrange(256)),
        lambda b: b.__setitem__(draw.randrange(min(len(b), 64)), draw.randrange(256)),
        lambda b: b.__delitem__(slice(draw.randrange(1, len(b)), None)),
        lambda b: b.__setitem__(slice(at := draw.randrange(len(b)), at + 4), b"\xff" * 4),
        lambda b: b.__delitem__(slice(at := draw.randrange(len(b)), at + draw.randrange(1, 9))),
    ]
    for _ in range(number):
        changed = bytearray(data)
        for way in draw.choices(ways, k=draw.randrange(1, 4)):
            if len(changed) > 1:
                way(changed)
        yield bytes(changed)


TEXT = b"0123456789" * 50


def read(data: bytes, name: str = "cat/x", limits: Limits = LIMITS) -> bytes:
    with closing(Catalog.of(BytesIO(data), limits)) as catalog:
        return catalog.read(name)
