"""Windows of photographs, of all sizes."""

import random

from PIL import Image

from benchmarks.mix import cut


def test_windows_are_of_many_shapes_and_lie_in_the_image() -> None:
    draws = random.Random(1)
    inside = Image.new("RGB", (60, 40), (200, 0, 0))  # what lies outside would be black
    windows = [cut(inside, 24, draws) for _ in range(200)]
    assert {window.getextrema() for window in windows} == {((200, 200), (0, 0), (0, 0))}
    widths, heights = zip(*(window.size for window in windows), strict=True)
    assert (min(widths), max(widths), min(heights), max(heights)) == (24, 60, 24, 40)
    assert len({window.size for window in windows}) > 150


def test_sides_below_the_least_are_kept_whole() -> None:
    assert cut(Image.new("RGB", (20, 10)), 24, random.Random(1)).size == (20, 10)
