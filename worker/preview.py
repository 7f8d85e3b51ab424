"""The picture of the report: originals, what leaves, and the change made visible."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from api.archive import Pixels

CELL = 128
GAP = 8
CAPTION = 132
ROWS = ("original", "protected", "change")


def draw(pairs: Sequence[tuple[Pixels, Pixels]], epsilon_levels: int) -> bytes:
    """A PNG with a column for each pair of (original, released) images."""
    width = CAPTION + len(pairs) * (CELL + GAP)
    sheet = Image.new("RGB", (width, GAP + len(ROWS) * (CELL + GAP)), "white")
    captions = (*ROWS[:2], f"{ROWS[2]}\n(grey is none,\nwhite +{epsilon_levels} levels)")
    font = ImageFont.load_default(size=14)
    for row, caption in enumerate(captions):
        top = GAP + row * (CELL + GAP)
        ImageDraw.Draw(sheet).multiline_text((GAP, top + CELL // 2 - 24), caption, "black", font)
    for column, (original, released) in enumerate(pairs):
        left = CAPTION + column * (CELL + GAP)
        cells = (original, released, _amplified(original, released, epsilon_levels))
        for row, pixels in enumerate(cells):
            sheet.paste(_fitted(pixels), (left, GAP + row * (CELL + GAP)))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _amplified(original: Pixels, released: Pixels, epsilon_levels: int) -> Pixels:
    difference = released.astype(np.float64) - original.astype(np.float64)
    return np.clip(127.5 + difference * (127.5 / epsilon_levels), 0, 255).round().astype(np.uint8)


def _fitted(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = CELL / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    # Enlarged pixels stay squares, so that one sees what each of them is.
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
