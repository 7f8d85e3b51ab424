"""What the figures of a protection come to, in words and in flags. Pure."""

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

WORKED_BELOW_SHARE = 0.6
"""Share of the clean last accuracy above which the report says that it did not work."""
DECIDES_ABOVE_CHANCE = 1.5
"""A baseline below so many times the share of guessing decides nothing."""


def judge(clean: Record, protected: Record, change: Record, classes: int) -> Record:
    """What the first training says of what leaves, beside the same on the originals."""
    share = protected["accuracy_last"] / max(clean["accuracy_last"], 1e-9)
    decides = clean["accuracy_last"] * classes >= DECIDES_ABOVE_CHANCE
    unchanged = change["unchanged_images"]
    partial = is_partial(change)
    low = share <= WORKED_BELOW_SHARE
    # Of what is partly clean nobody can say so: no training here leaves the protected images out.
    worked = decides and low and not unchanged and not partial
    measured = (
        f"On clean images, a network trained on the protected data reaches "
        f"{protected['accuracy_last']:.1%} (peak {protected['accuracy_peak']:.1%}) where one "
        f"trained on the originals reaches {clean['accuracy_last']:.1%} "
        f"(guessing: {1 / classes:.1%})."
    )
    if not decides:
        word = "The baseline hardly beats guessing, so this measurement decides nothing."
    elif unchanged:
        of = " of the images to protect" if partial else " images"
        word = f"{unchanged}{of} leave as they came: the method found no way to change them."
    elif worked:
        word = "The protection holds against this network and recipe."
    elif partial and low:
        word = (
            "What leaves, taken whole, serves this network and recipe badly; whoever leaves the "
            "protected images out trains on clean ones, and no training here did that."
        )
    elif partial:
        word = "What leaves, taken whole, can still be learned from: do not rely on it."
    else:
        word = "The protection did not work on these data: do not rely on it."
    return {
        "worked": worked,
        "decides": decides,
        "share_of_clean_accuracy": round(share, 4),
        "sentence": f"{measured} {word}" + (f" {scope(change)}" if partial else ""),
    }


def with_strongest(verdict: Record, rows: Sequence[Record], classes: int, partial: bool) -> Record:
    """The verdict, and which countermeasure gets most out of what leaves; alone it is no news."""
    row = max(rows, key=lambda row: row["protected"]["last"]["mean"])
    strongest = {name: row[name] for name in ("network", "countermeasure", "ratio")}
    if len(rows) == 1:
        return verdict | {"strongest": strongest}
    clean, protected = row["clean"]["last"]["mean"], row["protected"]
    sentence = (
        f"{verdict['sentence']} Of {len(rows)} ways to train on the protected data, "
        f"{row['countermeasure']} with {row['network']} recovers most: "
        f"{protected['last']['mean']:.1%} (peak {protected['peak']['mean']:.1%}) where the "
        f"originals give {clean:.1%}."
    )
    if clean * classes >= DECIDES_ABOVE_CHANCE and not partial:
        holds = row["ratio"]["last"] <= WORKED_BELOW_SHARE
        sentence += f" The protection {'withstands' if holds else 'does not withstand'} it."
    return verdict | {"strongest": strongest, "sentence": sentence}


def is_partial(change: Record) -> bool:
    """Whether images leave that were not to be protected."""
    protected: int = change["protected_images"]
    return protected < change["images"]


def scope(change: Record) -> str:
    """How many images are protected, of how many, and what that means for the others."""
    images, protected = change["images"], change["protected_images"]
    if not is_partial(change):
        return f"All {images} images are protected."
    return (
        f"Only {protected} of {images} images are protected; the rest leave as clean copies, and "
        "can be learned from."
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
