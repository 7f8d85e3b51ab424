"""A photograph keeps the colours that a viewer shows when its profile goes."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from api.archive import Pixels, read_pixels
from tests.api.archives import LIMITS, noise, picture, saved

# Columns X, Y, Z of the primaries, adapted to the D50 of profiles (Display P3; Lindbloom's sRGB).
P3 = np.array([[0.5151, 0.2919, 0.1572], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]])
D50 = (0.9642, 1.0, 0.8249)
GAMMA = 2.2
FORMATS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "TIFF": {}, "WEBP": {}}
FORMATS["WEBP"] = {"lossless": True}


def profile(primaries: np.ndarray, gamma: float, kind: bytes = b"RGB ") -> bytes:
    """A matrix profile (ICC.1:2001, sections 6.1 and 6.3) with one power for all channels."""

    def xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))

    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + bytes(2)
    tags = {b"desc": text, b"wtpt": xyz(D50), b"cprt": b"text\0\0\0\0test\0"}
    tags |= {name: xyz(primaries[:, at]) for at, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    white = struct.pack(">3i", *(round(65536 * value) for value in D50))
    header = struct.pack(
        ">I4sI4s4s4s", at + len(body), b"\0" * 4, 0x02400000, b"mntr", kind, b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return header + table + body


def in_srgb(pixels: Pixels, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """By IEC 61966-2-1, in floating point."""
    linear = (pixels / 255) ** gamma @ (np.linalg.inv(SRGB) @ primaries).T
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * curved)


@pytest.mark.parametrize("name", FORMATS)
def test_a_wide_gamut_is_brought_to_srgb(name: str) -> None:
    options = {**FORMATS[name], "icc_profile": profile(P3, GAMMA)}
    with_profile = saved(picture(), name, **options)
    assert "icc_profile" in Image.open(BytesIO(with_profile)).info
    stored = read_pixels(saved(picture(), name, **FORMATS[name]), LIMITS).pixels
    found = read_pixels(with_profile, LIMITS).pixels
    assert np.abs(found - in_srgb(stored, P3, GAMMA)).max() <= 1.5
    assert np.abs(found.astype(int) - stored).mean() > 4


def test_a_palette_has_colours_too() -> None:
    image = picture("P")
    data = saved(image, "PNG", icc_profile=profile(P3, GAMMA))
    found = read_pixels(data, LIMITS).pixels
    assert np.abs(found - in_srgb(np.asarray(image.convert("RGB")), P3, GAMMA)).max() <= 1.5


def test_srgb_by_any_name_changes_nothing() -> None:
    theirs = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for told in (theirs, profile(SRGB, GAMMA)):
        data = saved(picture(), "PNG", icc_profile=told)
        assert np.array_equal(read_pixels(data, LIMITS).pixels, noise()) is (told is theirs)


@pytest.mark.parametrize(
    "broken",
    [b"x", bytes(500), profile(P3, GAMMA)[:200], profile(P3, GAMMA, b"CMYK"), b"\xff" * 4096],
)
def test_a_profile_that_is_none_is_passed_over(broken: bytes) -> None:
    data = saved(picture(), "PNG", icc_profile=broken)
    assert np.array_equal(read_pixels(data, LIMITS).pixels, noise())


def test_grey_is_left_as_it_is() -> None:
    grey = picture("L")
    data = saved(grey, "PNG", icc_profile=profile(P3, GAMMA))
    assert np.array_equal(read_pixels(data, LIMITS).pixels[:, :, 0], np.asarray(grey))


def test_mutated_profiles_do_no_harm() -> None:
    """Whatever bytes: pixels come, of the same shape."""
    draws, good = np.random.default_rng(5), np.frombuffer(profile(P3, GAMMA), np.uint8)
    for _ in range(300):
        bad = good.copy()
        bad[draws.integers(0, len(bad), 4)] = draws.integers(0, 256, 4)
        data = saved(picture(), "PNG", icc_profile=bad.tobytes())
        assert read_pixels(data, LIMITS).pixels.shape == (12, 10, 3)
