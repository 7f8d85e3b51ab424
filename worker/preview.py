"""The pictures of the report: originals, what leaves, and the change made visible."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from api.archive import Pixels

CELL = 128
GAP = 8
CAPTION = 132
ROWS = ("original", "protected", "change")
CROP = 256
"""Side of what is shown of an image pixel by pixel, and of what is enlarged once it is."""
ENLARGED = 4

Pair = tuple[Pixels, Pixels]
"""An original (h, w, c) and what leaves of it."""
Cells = Sequence[Image.Image]
"""Original, protected and change, in this order."""


def column(pair: Pair, epsilon_levels: int) -> Cells:
    """Cells of `CELL` pixels: what `draw` needs of an image, which may be much larger."""
    return [_fitted(pixels) for pixels in _with_change(pair, epsilon_levels)]


def draw(columns: Sequence[Cells], epsilon_levels: int) -> bytes:
    """A PNG of columns, with captions."""
    captions = (*ROWS[:2], f"{ROWS[2]}\n{_legend(epsilon_levels)}")
    return _sheet(captions, list(zip(*columns, strict=True)))


def draw_worst(crops: Sequence[Pair], epsilon_levels: int) -> bytes:
    """A PNG of crops side by side, a row each at 1:1 and one for the part that changed most at 4:1.

    Its pixels count, so it is as large as they are: 924 pixels wide at most.
    """
    captions: list[str] = []
    rows: list[Cells] = []
    for number, pair in enumerate(crops, 1):
        near = crop(pair, CROP // ENLARGED)
        captions += [f"{number}, 1:1", f"{number}, {ENLARGED}:1"]
        rows.append([_image(pixels) for pixels in _with_change(pair, epsilon_levels)])
        rows.append([_enlarged(pixels) for pixels in _with_change(near, epsilon_levels)])
    captions[0] += f"\n\n{ROWS[2]}\n{_legend(epsilon_levels)}"
    return _sheet(captions, rows)


def crop(pair: Pair, side: int = CROP) -> Pair:
    """The square of that side, copied, in which the images differ most; less if they are smaller.

    Squares every half side are looked at. The first of equals wins.
    """
    squares = [
        np.s_[top : top + side, left : left + side]
        for top in _starts(len(pair[0]), side)
        for left in _starts(pair[0].shape[1], side)
    ]
    most = max(squares, key=lambda square: _sum_of_changes(pair, square))
    return pair[0][most].copy(), pair[1][most].copy()


def _starts(length: int, side: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, side // 2), last]


def _sum_of_changes(pair: Pair, square: tuple[slice, slice]) -> int:
    return int(np.abs(_difference(pair[0][square], pair[1][square])).sum())


def _difference(
    original: Pixels, released: Pixels
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return released.astype(np.int16) - original


def _with_change(pair: Pair, epsilon_levels: int) -> tuple[Pixels, Pixels, Pixels]:
    return *pair, _amplified(*pair, epsilon_levels)


def _amplified(original: Pixels, released: Pixels, epsilon_levels: int) -> Pixels:
    """Grey where nothing changed, black and white where all of the budget was taken."""
    change = np.arange(-255, 256)
    shade = np.clip(127.5 + change * (127.5 / epsilon_levels), 0, 255).round().astype(np.uint8)
    result = np.empty_like(original)
    for row in range(len(result)):  # an image may have 64 million pixels, of one byte each here
        result[row] = shade[_difference(original[row], released[row]) + 255]
    return result


def _legend(epsilon_levels: int) -> str:
    return f"(grey is none,\nwhite +{epsilon_levels} levels)"


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


def _enlarged(pixels: Pixels) -> Image.Image:
    return _image(pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


def _fitted(pixels: Pixels) -> Image.Image:
    image = _image(pixels)
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # Enlarged pixels stay squares, so that one sees what each of them is.
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def _sheet(captions: Sequence[str], rows: Sequence[Cells]) -> bytes:
    """A PNG of cells in a grid, as they are, each row behind its caption."""
    font = ImageFont.load_default(size=14)
    width = GAP + max(cell.width for row in rows for cell in row)
    lines = [18 * (caption.count("\n") + 1) for caption in captions]
    heights = [
        GAP + max(line, *(cell.height for cell in row))
        for line, row in zip(lines, rows, strict=True)
    ]
    sheet = Image.new("RGB", (CAPTION + width * len(rows[0]), GAP + sum(heights)), "white")
    top = GAP
    for caption, row, height in zip(captions, rows, heights, strict=True):
        ImageDraw.Draw(sheet).multiline_text((GAP, top), caption, "black", font)
        for number, cell in enumerate(row):
            sheet.paste(cell, (CAPTION + number * width, top))
        top += height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
