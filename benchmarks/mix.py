"""Photographs of many sizes and aspect ratios, cut from an archive of photographs.

    python -m benchmarks.mix FROM.zip TO.zip [--least 96] [--seed 1]

Of every image a window is kept whose sides are drawn, each by itself, from `least` up to the
image's own; as PNG, so that nothing else is changed.
"""

import argparse
import io
import random
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image


def main() -> None:
    """Write the archive."""
    options = _options()
    draws = random.Random(options.seed)  # noqa: S311  no secret
    with zipfile.ZipFile(options.source) as source, zipfile.ZipFile(options.to, "w") as to:
        for name in sorted(source.namelist()):
            if PurePosixPath(name).suffix.lower() in {".jpg", ".jpeg", ".png"}:
                with Image.open(io.BytesIO(source.read(name))) as image:
                    window = cut(image, options.least, draws)
                file = io.BytesIO()
                window.save(file, "PNG")
                to.writestr(str(PurePosixPath(name).with_suffix(".png")), file.getvalue())


def cut(image: Image.Image, least: int, draws: random.Random) -> Image.Image:
    """A window somewhere in the image; sides below `least` are kept whole."""
    width, height = (draws.randint(min(least, side), side) for side in image.size)
    left, top = draws.randint(0, image.width - width), draws.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("source", type=Path, metavar="FROM.zip")
    parser.add_argument("to", type=Path, metavar="TO.zip")
    parser.add_argument("--least", type=int, default=96, help="of the sides, in pixels")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
