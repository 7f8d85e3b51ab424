"""Colours as a viewer shows them: a profile would leave with the metadata, so it is applied before.

What leaves without a profile is shown as sRGB. The photographs of most telephones are in Display P3
and would lose their colour.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_STEPS = 17
"""Levels of each channel, evenly spaced, that tell whether a profile is sRGB by another name."""
_SAME_LEVELS = 2
"""There are dozens of such profiles, each rounded in its own way."""


def in_srgb(image: Image.Image) -> Image.Image:
    """An RGB image's colours in sRGB, those beyond clipped; as it is where it says nothing else.

    Grey images are left as they are, and so are those with a profile that is broken or of another
    kind of image, as viewers do with these.
    """
    profile = image.info.get("icc_profile")
    if image.mode != "RGB" or not profile:
        return image
    transform = _transform(profile)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """To sRGB; None where there is nothing to do, or nothing to be done."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    levels = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_STEPS, -1, 3)
    found = np.asarray(transform.apply(Image.fromarray(colours)))
    differences = np.abs(found.astype(np.int16) - colours)
    return None if differences.max() <= _SAME_LEVELS else transform
