"""How much of what leaves is protected, and where the change shows: in words. Pure."""

from typing import Any

Record = dict[str, Any]

OTHERWISE_PROTECTED = 0.05
"""Between the shares that are protected of what leaves and of what was trained on: is told."""


def is_partial(change: Record) -> bool:
    """Whether images leave that were not to be protected."""
    return bool(change["protected_images"] < change["images"])


def sentence(change: Record) -> str:
    """How many images are protected, of how many, and what that means for the others."""
    images, protected = change["images"], change["protected_images"]
    if not is_partial(change):
        unchanged = change["unchanged_images"]
        told = f", but {unchanged} of them leave as they came" if unchanged else ""
        return f"All {images} images are protected{told}."
    return (
        f"Only {protected} of {images} images are protected; the rest leave as clean copies, and "
        "can be learned from."
    )


def trained_on(change: Record, training: Record) -> str | None:
    """How many of the images that networks were trained on are protected, where it tells more.

    None where it is the same share as of all that leaves, or was not counted.
    """
    images, protected = training["train_images"], training.get("protected_train_images")
    if protected is None or not is_partial(change):
        return None
    share, of_all = protected / images, change["protected_images"] / change["images"]
    if abs(share - of_all) < OTHERWISE_PROTECTED:
        return None
    return (
        f"{protected} of the {images} images that were trained on are protected ({share:.1%}; of "
        f"all that leave {of_all:.1%}): accuracies are of this mixture."
    )


def where_it_shows(change: Record) -> str:
    """In how many images one may see the change, by SSIM, which stands for no pair of eyes."""
    shows, may_show = change["shows"], change["may_show"]
    partial = is_partial(change)
    images = f"{change['protected_images']} {'protected ' if partial else ''}images"
    if not may_show["images"]:
        limit = may_show["ssim_below"]
        return f"By SSIM the change shows in none of {images}: none is below {limit}."
    more, share = may_show["images"] - shows["images"], may_show["share"] - shows["share"]
    return (
        f"By SSIM the change shows in {shows['images']} of {images} "
        f"({shows['share']:.1%}: below {shows['ssim_below']}), "
        f"and may show in {more} more ({share:.1%}: below {may_show['ssim_below']})."
    )
