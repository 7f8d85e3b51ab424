"""From a file's bytes to the pixels that a viewer shows, or to the reason why not."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from api.archive.colours import in_srgb
from api.archive.model import Decoded, ImageRefused, Limits, Pixels

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"GIF8", b"BM")
_START_OF_SCAN = b"\xff\xda"
_MOST_SCANS = 200
"""Progressive ones have about ten, and a preview or a second eye in the file a few more."""
_PLAIN_MODES = {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB", "PA": "RGB"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's parsers were seen to throw on hostile bytes. Not Exception: what a signal handler
# of the worker raises must pass, and so must a MemoryError, which says nothing of the image.
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
    *(struct.error, zlib.error),
)


def read_pixels(data: bytes, limits: Limits) -> Decoded:
    """Decodes one still image wholly: turned as EXIF says, in sRGB, palettes resolved, without
    metadata.

    Raises:
        ImageRefused: NOT_AN_IMAGE, BROKEN_IMAGE, IMAGE_TOO_LARGE, IMAGE_TOO_SMALL, ANIMATED,
            UNSUPPORTED_MODE, TOO_MANY_SCANS, TRANSPARENT.
    """
    with _refusing(data, limits), Image.open(BytesIO(data), formats=FORMATS) as image:
        _check_size(image, limits)
        _check_kind(image)
        source_format = _format(image)
        if source_format == "JPEG":
            _check_scans(data)
        image.load()
        return Decoded(_array(_opaque(_upright(image))), source_format)


@contextmanager
def _refusing(data: bytes, limits: Limits) -> Iterator[None]:
    """Turns whatever hostile bytes make Pillow throw into a refusal; its warnings say nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageRefused:
        raise
    except Image.DecompressionBombError as error:
        reason = f"Expected at most {limits.max_image_pixels} pixels, got far more."
        raise ImageRefused("IMAGE_TOO_LARGE", reason) from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _BROKEN as error:
        reason = f"Expected an image that decodes to its end, got: {error or type(error).__name__}."
        raise ImageRefused("BROKEN_IMAGE", reason) from error


def _unidentified(data: bytes) -> ImageRefused:
    if data.startswith(_BEGINNINGS):
        reason = "Expected an image, got one that breaks within its header."
        return ImageRefused("BROKEN_IMAGE", reason)
    got = f"a file that begins with {data[:8]!r}" if data else "an empty file"
    reason = f"Expected one of {', '.join(FORMATS)}, got {got}."
    return ImageRefused("NOT_AN_IMAGE", reason)


def _check_size(image: Image.Image, limits: Limits) -> None:
    """By the header, before anything of that size is allocated."""
    width, height = image.size
    if width * height > limits.max_image_pixels:
        reason = f"Expected at most {limits.max_image_pixels} pixels, got {width} x {height}."
        raise ImageRefused("IMAGE_TOO_LARGE", reason)
    if max(width, height) > limits.max_side:
        reason = f"Expected at most {limits.max_side} pixels a side, got {width} x {height}."
        raise ImageRefused("IMAGE_TOO_LARGE", reason)
    if min(width, height) < limits.min_side:
        reason = f"Expected at least {limits.min_side} pixels a side, got {width} x {height}."
        raise ImageRefused("IMAGE_TOO_SMALL", reason)


def _check_kind(image: ImageFile.ImageFile) -> None:
    # A camera's MPO is a JPEG followed by previews or a second eye: viewers show the JPEG.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageRefused("ANIMATED", "Expected one still image, got several frames or pages.")
    if image.mode not in _PLAIN_MODES or _is_deep(image):
        deep = "more than 8 bits a channel, " if _is_deep(image) else ""
        reason = f"Expected 8-bit grey or RGB, got {deep}Pillow mode {image.mode}."
        raise ImageRefused("UNSUPPORTED_MODE", reason)


def _check_scans(data: bytes) -> None:
    """Each goes over the whole picture: a few bytes more that take a decoder as long again."""
    scans = data.count(_START_OF_SCAN)
    if scans > _MOST_SCANS:
        reason = f"Expected a JPEG of at most {_MOST_SCANS} scans, got {scans}."
        raise ImageRefused("TOO_MANY_SCANS", reason)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether there are more than 8 bits a channel: Pillow drops them from colour silently."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return any(bits > 8 for bits in image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ()))
    arguments = [tile.args for tile in image.tile]
    if image.format == "PNG":
        return any(";16" in str(argument) for argument in arguments)
    if image.format == "PPM":
        return any(isinstance(pair, tuple) and int(pair[1]) > 255 for pair in arguments)
    return False


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF (or XMP) says. A TIFF has turned itself while loading and forgotten it.

    ImageOps.exif_transpose would also write the EXIF block anew, and fail on odd ones.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BROKEN:
        # Viewers show an image with broken EXIF as it is stored.
        return image
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    """Mode L or sRGB. A pixel that shines through has no colour of its own: refused."""
    if image.has_transparency_data:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if lowest != 255:
            reason = f"Expected an opaque image, got one with transparency ({image.mode})."
            raise ImageRefused("TRANSPARENT", reason)
    return in_srgb(image.convert(_PLAIN_MODES[image.mode]))


def _array(image: Image.Image) -> Pixels:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
