"""A file gives the pixels that a viewer shows, or a refusal; never anything else."""

import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from api.archive import ImageRefused, Limits, encode, read_pixels
from tests.api.archives import LIMITS, jpeg, mutations, noise, picture, png, saved

FORMATS = {
    "JPEG": jpeg(),
    "PNG": png(),
    "BMP": saved(picture(), "BMP"),
    "WEBP": saved(picture(), "WEBP", lossless=True),
    "TIFF": saved(picture(), "TIFF", compression="tiff_lzw"),
    "GIF": saved(picture("P"), "GIF"),
    "PPM": saved(picture(), "PPM"),
}


def code(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(ImageRefused) as caught:
        read_pixels(data, limits)
    assert caught.value.reason
    return caught.value.code


@pytest.mark.parametrize("name", FORMATS)
def test_every_accepted_format(name: str) -> None:
    decoded = read_pixels(FORMATS[name], LIMITS)
    assert decoded.source_format == name
    assert decoded.pixels.shape == (12, 10, 3)
    assert decoded.pixels.dtype == np.uint8
    if name not in ("JPEG", "GIF"):
        assert np.array_equal(decoded.pixels, noise())


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP", "TIFF", "PPM"])
def test_grey_stays_grey(name: str) -> None:
    assert read_pixels(saved(picture("L"), name), LIMITS).pixels.shape == (12, 10, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), name, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(read_pixels(data, LIMITS).pixels, expected)
    assert expected.shape == ((12, 10, 3) if orientation < 5 else (10, 12, 3))


@pytest.mark.parametrize("tiff", [b"MM\0*\xff\xff\xff\xff" + b"\xee" * 9, b"no TIFF header", b"MM"])
def test_broken_exif_leaves_an_image_as_it_is_stored(tiff: bytes) -> None:
    plain = read_pixels(jpeg(), LIMITS).pixels
    data = saved(picture(), "JPEG", quality=95, exif=b"Exif\0\0" + tiff)
    assert np.array_equal(read_pixels(data, LIMITS).pixels, plain)


def test_a_turned_jpeg_leaves_without_its_thumbnail() -> None:
    thumbnail = jpeg(seed=9, height=16, width=16)
    data = _jpeg_with_thumbnail(thumbnail)
    assert thumbnail in data
    pixels = read_pixels(data, LIMITS).pixels
    assert pixels.shape == (10, 12, 3)
    for name in ("x.png", "x.bmp", "x.tif"):
        released = encode(pixels, name)
        assert thumbnail[:20] not in released
        assert b"Exif" not in released
        assert not Image.open(BytesIO(released)).getexif().get_ifd(0x8769)


def _jpeg_with_thumbnail(thumbnail: bytes) -> bytes:
    """Turned by 90 degrees in IFD 0; the thumbnail in IFD 1, right behind it."""
    first = struct.pack(">H", 1) + struct.pack(">HHLHH", 0x0112, 3, 1, 6, 0)
    second_at = 8 + len(first) + 4
    fields = [(0x0201, second_at + 2 + 24 + 4), (0x0202, len(thumbnail))]
    second = struct.pack(">H", 2) + b"".join(struct.pack(">HHLL", t, 4, 1, v) for t, v in fields)
    tiff = b"MM\0*" + struct.pack(">L", 8) + first + struct.pack(">L", second_at)
    return saved(picture(), "JPEG", exif=b"Exif\0\0" + tiff + second + bytes(4) + thumbnail)


def test_palettes_become_rgb() -> None:
    image = picture("P")
    for name in ("PNG", "GIF", "BMP", "TIFF"):
        pixels = read_pixels(saved(image, name), LIMITS).pixels
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "channels", "name"),
    [
        *(("RGBA", 3, "PNG"), ("RGBA", 3, "TIFF"), ("RGBA", 3, "WEBP")),
        *(("LA", 1, "PNG"), ("LA", 1, "TIFF")),
    ],
)
def test_full_opacity_is_dropped_and_any_transparency_refused(
    mode: str, channels: int, name: str
) -> None:
    image = picture(mode)
    # WebP's encoder drops an alpha channel that says nothing.
    assert read_pixels(saved(image, name), LIMITS).pixels.shape == (12, 10, channels)
    alpha = Image.new("L", image.size, 255)
    alpha.putpixel((3, 3), 254)
    image.putalpha(alpha)
    assert code(saved(image, name, lossless=True)) == "TRANSPARENT"


def test_transparency_by_palette_or_key_colour() -> None:
    assert code(saved(picture("P"), "PNG", transparency=picture("P").getpixel((0, 0)))) == (
        "TRANSPARENT"
    )
    assert code(saved(picture(), "PNG", transparency=picture().getpixel((0, 0)))) == "TRANSPARENT"
    unused = saved(Image.new("RGB", (9, 9)), "PNG", transparency=(1, 2, 3))
    assert read_pixels(unused, LIMITS).pixels.shape == (9, 9, 3)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames(name: str) -> None:
    more = [picture(seed=seed) for seed in (1, 2)]
    data = saved(picture(), name, save_all=True, append_images=more)
    assert code(data) == "ANIMATED"


def test_the_first_image_of_a_cameras_mpo_is_its_jpeg() -> None:
    data = saved(picture(), "MPO", save_all=True, append_images=[picture(seed=1)])
    decoded = read_pixels(data, LIMITS)
    assert decoded.source_format == "JPEG"
    assert np.array_equal(decoded.pixels, read_pixels(saved(picture(), "JPEG"), LIMITS).pixels)


def _png16(colour_type: int, channels: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", crc)

    rows = b"".join(b"\0" + bytes([200, 7]) * 10 * channels for _ in range(12))
    header = struct.pack(">LLBBBBB", 10, 12, 16, colour_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(picture("CMYK"), "JPEG"), id="CMYK JPEG"),
        pytest.param(saved(picture("I;16"), "PNG"), id="16-bit grey PNG"),
        pytest.param(_png16(2, 3), id="16-bit RGB PNG"),
        pytest.param(_png16(6, 4), id="16-bit RGBA PNG"),
        pytest.param(b"P6 10 12 65535\n" + bytes(720), id="16-bit PPM"),
        pytest.param(b"P5 10 12 65535\n" + bytes(240), id="16-bit PGM"),
        *(
            pytest.param(saved(picture(mode), "TIFF"), id=f"TIFF {mode}")
            for mode in ("1", "I;16", "I", "F", "CMYK", "YCbCr", "LAB")
        ),
        pytest.param(saved(picture("1"), "PNG"), id="1-bit PNG"),
    ],
)
def test_modes_that_are_not_8_bit_grey_or_rgb(data: bytes) -> None:
    assert code(data) == "UNSUPPORTED_MODE"


@pytest.mark.parametrize("name", FORMATS)
def test_half_an_image(name: str) -> None:
    assert code(FORMATS[name][: len(FORMATS[name]) // 2]) == "BROKEN_IMAGE"


@pytest.mark.parametrize("data", [b"", b"Dear Sir,", b"\0" * 5000, b"<svg></svg>", b"%PDF-1.7"])
def test_what_is_no_image(data: bytes) -> None:
    assert code(data) == "NOT_AN_IMAGE"


@pytest.mark.parametrize("name", ["ICO", "JPEG2000", "PCX", "TGA", "EPS", "ICNS", "PDF"])
def test_formats_beside_the_allowlist(name: str) -> None:
    assert code(saved(picture(height=16, width=16), name)) == "NOT_AN_IMAGE"


@pytest.mark.parametrize("side", [20_000, 200_000, 2**31 - 1])
def test_an_absurd_size_is_refused_before_it_is_allocated(side: int) -> None:
    header = b"IHDR" + struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0)
    data = png()[:12] + header + struct.pack(">L", zlib.crc32(header)) + png()[33:]
    with pytest.raises(ImageRefused, match="Expected at most 64000000 pixels, got") as refusal:
        read_pixels(data, LIMITS)
    assert refusal.value.code == "IMAGE_TOO_LARGE"


def test_size_limits() -> None:
    assert code(png(height=7, width=20)) == "IMAGE_TOO_SMALL"
    assert code(png(height=20, width=7)) == "IMAGE_TOO_SMALL"
    assert read_pixels(png(height=8, width=8), LIMITS).pixels.shape == (8, 8, 3)
    assert code(png(height=12, width=10), Limits(max_image_pixels=119)) == "IMAGE_TOO_LARGE"
    assert read_pixels(png(height=12, width=10), Limits(max_image_pixels=120))


def test_pillows_own_warning_about_size_is_no_crash() -> None:
    # 90 million pixels: Pillow warns, and warnings are errors here.
    data = b"P5 10000 9000 255\n" + bytes(100)
    assert code(data) == "IMAGE_TOO_LARGE"
    assert code(data, Limits(max_image_pixels=10**9)) == "BROKEN_IMAGE"


@pytest.mark.parametrize("compressed", ["zTXt", "iTXt"])
def test_a_bomb_in_a_text_chunk(compressed: str) -> None:
    info = PngImagePlugin.PngInfo()
    bomb = "x" * 70_000_000
    if compressed == "zTXt":
        info.add_text("Comment", bomb, zip=True)
    else:
        info.add_itxt("Comment", bomb, zip=True)
    assert code(saved(picture(), "PNG", pnginfo=info)) == "BROKEN_IMAGE"


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: FORMATS[name] for name in FORMATS),
        lambda: saved(picture("P"), "PNG"),
        lambda: saved(picture("LA"), "PNG"),
        lambda: saved(picture(), "JPEG", progressive=True),
        lambda: saved(picture(), "TIFF", compression="jpeg"),
        lambda: saved(picture("P"), "BMP"),
        lambda: _jpeg_with_thumbnail(jpeg(seed=9)),
        lambda: saved(picture(), "GIF", save_all=True, append_images=[picture(seed=1)]),
        lambda: saved(picture(), "WEBP", exif=Image.Exif()),
    ],
)
def test_mutated_images_give_pixels_or_a_refusal(make: Callable[[], bytes]) -> None:
    for data in mutations(make(), 600, seed=5):
        with suppress(ImageRefused):
            pixels = read_pixels(data, LIMITS).pixels
            assert pixels.ndim == 3
            assert pixels.shape[2] in (1, 3)


def test_a_lack_of_memory_is_not_the_images_fault(tmp_path: Path) -> None:
    """In a process that may not have as much as the image needs: 7,000 x 7,000 pixels, 147 MB."""
    path = tmp_path / "large.png"
    Image.new("RGB", (7000, 7000)).save(path)
    script = """
        import resource, sys
        from pathlib import Path
        from api.archive import Limits
        from api.archive.images import read_pixels
        data = Path(sys.argv[1]).read_bytes()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        try:
            read_pixels(data, Limits())
        except MemoryError:
            print("MemoryError")
    """
    words = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ran.stdout == "MemoryError\n"


def test_scans_without_end() -> None:
    """Each takes a decoder as long as the whole picture, and 100 bytes."""
    data = saved(picture(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    assert read_pixels(data[:-2] + 20 * scan + data[-2:], LIMITS).pixels.size
    with pytest.raises(ImageRefused, match="at most 200 scans") as refused:
        read_pixels(data[:-2] + 200 * scan + data[-2:], LIMITS)
    assert refused.value.code == "TOO_MANY_SCANS"
