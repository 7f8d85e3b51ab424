"""The report's pictures, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image

from api.archive import Pixels
from tests import pictures
from worker import preview

GREY = 128  # 127.5, rounded to even


def photograph(label: int, number: int, size: tuple[int, int] = (32, 32)) -> Pixels:
    """Not so bright that nothing could be added."""
    return pictures.image(label, number, size) // 2


def opened(data: bytes) -> Pixels:
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels


def changed(original: Pixels, top: int, left: int, side: int = 20) -> Pixels:
    """Eight levels brighter in one square."""
    released = original.copy()
    released[top : top + side, left : left + side] += 8
    return released


def cells(sheet: Pixels, top: int, height: int, width: int) -> list[Pixels]:
    lefts = [preview.CAPTION + number * (width + preview.GAP) for number in range(3)]
    return [sheet[top : top + height, left : left + width] for left in lefts]


def test_small_images_are_shown_whole_and_enlarged() -> None:
    original = photograph(0, 1, (112, 40))
    released = changed(original, 80, 10)
    sheet = opened(preview.draw_worst([(original, released)], 8))
    width = 40 * 4
    top = preview.GAP
    before, after, change = (cell[:, :40] for cell in cells(sheet, top, 112, width))
    np.testing.assert_array_equal(before, original)
    np.testing.assert_array_equal(after, released)
    np.testing.assert_array_equal(np.unique(change), [GREY, 255])
    assert (change == 255).sum() == 20 * 20 * 3
    top += 112 + preview.GAP
    near = np.s_[48:112]  # the lowest square holds the whole change
    for cell, whole in zip(cells(sheet, top, 256, width), (original, released), strict=False):
        np.testing.assert_array_equal(cell, whole[near].repeat(4, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (1180, 1480), (700, 10), (333, 777)])
def test_of_a_large_image_the_part_is_shown_that_changed_most(top: int, left: int) -> None:
    original = photograph(2, 3, (1200, 1500))
    released = changed(original, top, left)
    before, after = preview.crop((original, released))
    assert before.shape == after.shape == (256, 256, 3)
    assert (after != before).sum() == 20 * 20 * 3
    near = preview.crop((before, after), 64)
    assert (near[0] != near[1]).sum() == 20 * 20 * 3
    assert before.base is None  # the image itself can go


def test_darker_counts_like_brighter() -> None:
    original = photograph(1, 3, (600, 600)) + 20
    released = changed(original, 10, 10, 10)
    released[580:, 580:] -= 8
    before, after = preview.crop((original, released))
    assert (after < before).sum() == 20 * 20 * 3


def test_the_sheet_is_no_larger_than_it_may_be_and_grey_images_fit_in() -> None:
    wide = photograph(0, 1, (9, 3000))
    grey = photograph(1, 1, (700, 500))[:, :, :1]
    pairs = [
        preview.crop((image, changed(image, 1, 1))) for image in (wide, grey, grey, wide, grey)
    ]
    data = preview.draw_worst(pairs, 8)
    height, width, _ = opened(data).shape
    assert width == preview.CAPTION + 3 * (256 + preview.GAP) == 924
    assert height <= preview.GAP + 10 * (256 + preview.GAP)
    assert len(data) < 6_000_000


def test_the_change_of_a_very_large_image_is_made_visible_row_by_row() -> None:
    original = np.full((5, 4, 1), 100, np.uint8)
    released = original.copy()
    released[1, 2], released[4, 3] = 104, 92
    change = preview._amplified(original, released, 8)
    expected = np.full((5, 4, 1), GREY)
    expected[1, 2], expected[4, 3] = 191, 0
    np.testing.assert_array_equal(change, expected)


def test_a_column_for_each_class() -> None:
    image = photograph(0, 1)
    columns = [preview.column((image, changed(image, 2, 2)), 8) for _ in range(3)]
    sheet = opened(preview.draw(columns, 8))
    assert sheet.shape == (8 + 3 * 136, 132 + 3 * 136, 3)
    enlarged = image.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(sheet[8:136, 132 + 136 : 132 + 136 + 128], enlarged)
