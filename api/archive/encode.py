"""Pixels to lossless files and back: what leaves the house is what was computed."""

from io import BytesIO

import numpy as np
from PIL import Image

from api.archive.images import read_pixels
from api.archive.model import UNLIMITED, Pixels
from api.archive.names import released_format

_OPTIONS: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 6},
    "BMP": {},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


def encode(pixels: Pixels, released_name: str) -> bytes:
    """A file in the format that the name's ending promises: lossless, no metadata, repeatable.

    Raises:
        ValueError: the ending promises no lossless format, or these are no pixels.
    """
    file_format = released_format(released_name)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"expected uint8 pixels (h, w, 1 or 3), got {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    out = BytesIO()
    image.save(out, file_format, **_OPTIONS[file_format])
    return out.getvalue()


def decode_released(data: bytes) -> Pixels:
    """The pixels of a file that `encode` made.

    Raises:
        ImageRefused: it is broken.
    """
    return read_pixels(data, UNLIMITED).pixels
