"""How much an image changed, against scikit-image's own functions and against counting."""

import io
from typing import Any

import numpy as np
import pytest
import skimage.metrics
from PIL import Image

from api.archive import Pixels
from tests import pictures
from worker import metrics
from worker.metrics import Change

library: Any = skimage.metrics  # has no types


def photograph(size: tuple[int, int], form: str = "JPEG") -> Pixels:
    """Decoded from a real file."""
    data = pictures.encoded(pictures.image(1, 5, size), form)
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return pixels


def moved(original: Pixels, levels: int, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, original.shape)
    released: Pixels = np.clip(original + noise, 0, 255).astype(np.uint8)
    return released


@pytest.mark.parametrize("size", [(8, 8), (7, 300), (300, 7), (61, 70), (63, 70), (200, 90)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strip_pixels", [1, 70 * 60, 2**18])
def test_strips_give_what_the_whole_image_gives(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], channels: int, strip_pixels: int
) -> None:
    monkeypatch.setattr(metrics, "STRIP_PIXELS", strip_pixels)
    original = photograph(size)[:, :, :channels]
    released = moved(original, 8)
    change = metrics.compare(original, released)
    difference = np.abs(original.astype(int) - released.astype(int))
    whole = library.structural_similarity(original, released, channel_axis=2, data_range=255)
    assert change.ssim == pytest.approx(whole, abs=1e-12)
    assert change.psnr_db == pytest.approx(
        library.peak_signal_noise_ratio(original, released), abs=1e-3
    )
    assert change.changed_share == difference.any(axis=2).mean()
    assert list(change.histogram) == [(difference == n).sum() for n in range(difference.max() + 1)]
    assert change.largest_levels == difference.max()
    assert change.squared_error == pytest.approx((difference**2).mean(), rel=1e-12)


def test_a_strip_is_no_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "STRIP_PIXELS", 70 * 60)
    original = photograph((200, 70))
    strips = list(metrics._strips(original, original, overlap=6))
    assert [len(strip) for strip, _ in strips] == [66, 66, 66, 20]


def test_a_pixel_has_changed_if_one_of_its_channels_has() -> None:
    original = photograph((10, 10), "PNG")
    released = original.copy()
    released[3, 4, 1] ^= 128
    change = metrics.compare(original, released)
    assert change.changed_share == 0.01
    assert change.largest_levels == 128
    assert (change.histogram[0], sum(change.histogram)) == (299, 300)


def test_no_change() -> None:
    original = photograph((16, 16), "PNG")
    change = metrics.compare(original, original)
    assert change == Change((768,), 0.0, 1.0)
    assert change.psnr_db is None
    summary = metrics.summarise([change])
    assert summary["psnr_db"] is None
    assert summary["unchanged_images"] == 1


def test_the_data_set() -> None:
    originals = [photograph((40, 30)), photograph((9, 12), "PNG"), photograph((64, 64))]
    pairs = [(image, moved(image, n * 4, n)) for n, image in enumerate(originals)]
    summary = metrics.summarise(metrics.compare(*pair) for pair in pairs)
    ssim = [library.structural_similarity(*pair, channel_axis=2, data_range=255) for pair in pairs]
    differences = [np.abs(a.astype(int) - b) for a, b in pairs]
    errors = [(difference**2).mean() for difference in differences]
    values = np.concatenate([difference.ravel() for difference in differences])
    assert summary["largest_change_levels"] == 8
    assert summary["unchanged_images"] == 1
    assert summary["ssim_mean"] == pytest.approx(np.mean(ssim), abs=1e-6)
    assert summary["ssim_p5"] == pytest.approx(np.percentile(ssim, 5), abs=1e-6)
    assert summary["psnr_db"] == pytest.approx(10 * np.log10(255**2 / np.mean(errors)), abs=1e-3)
    assert summary["histogram"] == np.bincount(values, minlength=65).tolist()
    assert len(summary["histogram"]) == 65


def test_where_the_change_shows() -> None:
    """Below 0.92, and below 0.95, which itself is above the limit."""
    ssims = (0.5, 0.91999, 0.92, 0.94999, 0.95, 1.0)
    summary = metrics.summarise(Change((0, 10), 1.0, ssim) for ssim in ssims)
    assert summary["shows"] == {"ssim_below": 0.92, "images": 2, "share": 0.333333}
    assert summary["may_show"] == {"ssim_below": 0.95, "images": 4, "share": 0.666667}
