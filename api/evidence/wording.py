"""What figures come to, in sentences for whom a protection is shown to. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from api.evidence import learned, scope
from sep_core.costs import trained_epochs

Record = dict[str, Any]

CLASSES_SHOWN = 5
"""Names of classes that the sentence tells."""
TOLD_BEYOND = 0.005
"""By so much more a network recognises with its answers renamed, where that is said."""
OUTCOMES: Mapping[str, str] = MappingProxyType(
    {
        "decides nothing": "The baseline hardly beats guessing, so this measurement decides "
        "nothing.",
        "narrow": "Most classes were not tested, so that nothing is said of the whole.",
        "too few images": "There are too few test images to say whether the protection holds.",
        "some diverged": "Of the trainings on protected data those that ended learned little.",
        "holds": "The protection holds against this network and recipe.",
        "early stopping": "The protection does not withstand early stopping: do not rely on it.",
        "renaming": "The network is wrong in a way that repeats, and whoever renames its answers "
        "undoes much of the protection: do not rely on it.",
        "failed": "The protection did not work on these data: do not rely on it.",
    }
)


def measured(row: Record, guessing: float, change: Record, config: Record, *, named: bool) -> str:
    """The figures of a row: of which network and recipe, on how many images."""
    images, of_named = row["test_images"], " of the classes to protect" if named else ""
    side = config["input_pixels"]
    epochs = trained_epochs(config["appropriator_epochs"], row["countermeasure"])
    return (
        f"On {images:,} clean test image{'' if images == 1 else 's'}{of_named}, the network "
        f"{row['network']}, trained by {row['countermeasure']} for {epochs} "
        f"epoch{'' if epochs == 1 else 's'} at {side} x {side} pixels on the protected data "
        f"(changed by at most {_levels(change['largest_change_levels'])}), reaches {reached(row)}, "
        f"and trained on the originals {_clean(row)} (guessing: {guessing:.1%}{_means(row)})."
    )


def reached(row: Record) -> str:
    """Means, and what decides beside them: the best training, and answers renamed."""
    last, peak = row["protected"]["last"], row["protected"]["peak"]
    mean, most = f"{peak['mean']:.1%}", f"{peak['max']:.1%}"
    told = f"peak {mean}" + (f", up to {most}" if most != mean else "")
    renamed = row["protected"]["renamed"]["peak"]["max"]
    if renamed - peak["max"] >= TOLD_BEYOND:
        told += f", {renamed:.1%} with its answers renamed"
    return f"{last['mean']:.1%} ({told})"


def unchanged(change: Record) -> str:
    """That some images could not be changed."""
    of = " of the images to protect" if scope.is_partial(change) else " images"
    count = change["unchanged_images"]
    return f"{count}{of} leave as they came: the method found no way to change them."


def part(*, low: bool, named: bool, whole: bool) -> str:
    """What leaves is partly clean, and was trained on as it is.

    Args:
        low: whether little was learned.
        named: whether the figures are of the classes that are named.
        whole: whether all images of these classes are protected.
    """
    if not low:
        of = "still teaches these classes" if named else "can still be learned from"
        return f"What leaves, taken whole, {of}: do not rely on it."
    if named and whole:
        return "What leaves, taken whole, teaches this network and recipe little of these classes."
    return (
        "What leaves, taken whole, serves this network and recipe badly; whoever leaves the "
        "protected images out trains on clean ones, and no training here did that."
    )


def class_by_class(row: Record) -> str:
    """What is learned where every class counts alike; `row` is of that."""
    return (
        f"But counted class by class, {_name(row)} recognises {reached(row)} of a class on average "
        f"where the originals give {_clean(row)}: do not rely on it."
    )


def strongest(rows: Sequence[Record], *, named: bool) -> str:
    """Which of several ways to train gets most."""
    row = max(rows, key=learned.got)
    return (
        f" Of {len(rows)} ways to train on the protected data, {_name(row)} recovers most"
        f"{' of these classes' if named else ''}: {reached(row)} where the "
        f"originals give {_clean(row)}."
    )


def withstood(rows: Sequence[Record], guessing: float, *, whole: bool) -> str:
    """Of the rows that decide something; of others nothing is known unless they are the `whole`."""
    deciding = [row for row in rows if learned.decides(row, guessing)]
    failing, unsure = learned.failing(rows, guessing), learned.unsure(rows, guessing)
    told = ""
    if failing:
        ranked = sorted(failing, key=lambda row: -learned.most(row, guessing))
        ways = (f"{_name(row)}: {reached(row)} of {_clean(row)}" for row in ranked)
        told += f" The protection does not withstand {'; '.join(ways)}."
    if unsure:
        ways = (_name(row) for row in unsure)
        told += f" There are too few test images to say whether it withstands {'; '.join(ways)}."
    if told or not deciding or not whole:
        return told
    if len(deciding) == len(rows):
        return " The protection withstands all of them."
    return (
        f" The protection withstands {len(deciding)} of them; on the originals, too, the rest "
        "hardly beat guessing."
    )


def untested(names: Sequence[str]) -> str:
    """Of which classes nothing is known."""
    if not names:
        return ""
    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    told = ", ".join(names[:CLASSES_SHOWN]) + more
    return f" Nothing here measures what is learned of {told}: no test image of theirs judges."


def copies(training: Record) -> str:
    """How many test images judge nothing."""
    count = training.get("held_out_copies", 0)
    return (
        f" {count} more test images have the pixels of a training image, and judge nothing."
        if count
        else ""
    )


def diverged(rows: Sequence[Record]) -> str:
    """Which trainings have no accuracies."""
    told = [
        f"{_name(row)} ({count} of {row['seeds']} on {images})"
        for row in rows
        for side, images in (("clean", "the originals"), ("protected", "the protected data"))
        if (count := row["diverged"][side])
    ]
    return f" Trainings that diverged tell nothing: {'; '.join(told)}." if told else ""


def _levels(count: int) -> str:
    return f"{count} level{'' if count == 1 else 's'}"


def _name(row: Record) -> str:
    return f"{row['countermeasure']} with {row['network']}"


def _clean(row: Record) -> str:
    return f"{row['clean']['last']['mean']:.1%}"


def _means(row: Record) -> str:
    """Of how many trainings the figures are; those that diverged have none."""
    clean, protected = (row["seeds"] - row["diverged"][side] for side in ("clean", "protected"))
    if clean != protected:
        return f", means of {clean} trainings on the originals and {protected} on what leaves"
    return f", means of {clean} trainings each" if clean > 1 else ", one training each"
