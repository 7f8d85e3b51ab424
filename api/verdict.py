"""What the figures of a protection come to, in words and in flags. Pure."""

from collections.abc import Sequence
from typing import Any

from api import learned, matrix, scope
from sep_core.cells import Evaluation, is_clean

Record = dict[str, Any]

UNTESTED = "there are no clean test images of them."
UNCOUNTED = "a training was done before recognised images were counted by class."
SEEN = "every test image has the pixels of a training image."
CLASSES_SHOWN = 5
"""Names of classes that the sentence tells."""


def build(
    evaluation: Evaluation,
    outputs: Sequence[Record],
    change: Record,
    config: Record,
    training: Record,
) -> Record:
    """What the trainings say of a protection; where some classes are named, of these alone.

    Args:
        outputs: of the `evaluate` steps, in the order of the cells; the first two have accuracies.
        config: the frozen configuration.
        training: what the surrogate's says of how the data were divided.

    Returns:
        `worked` is said where every countermeasure that was asked for is withstood, those apart
        whose baselines decide nothing, and no training on protected data diverged that did not on
        the originals; and of all that leaves, never of a part: no training here
        leaves the protected images out, as anybody can. Where some classes are named, `named` has
        a `worked` of theirs: all their images are protected, so that nothing is left to train on
        instead, unless the data have the same pixels under another class, and each of them has
        test images. `untested_classes` have none; where they are more than half of all, nothing
        is said to have worked, and where all test images are copies of training images either.
    """
    names = config.get("protected_classes") if scope.is_partial(change) else None
    if training.get("held_out_seen"):
        return _unmeasured(names or [], change, SEEN)
    judged = [_of_classes(output, names) for output in outputs] if names else outputs
    measured = [output for output in judged if output is not None]
    if names and len(measured) < len(outputs):
        counted = all("by_class" in output for output in outputs if "diverged" not in output)
        return _unmeasured(names, change, UNTESTED if counted else UNCOUNTED)
    two = len(config["target_map"]) == 2 and not names
    # What was measured before the classes were counted epoch by epoch has no peak of theirs.
    protected = [found for index, found in enumerate(outputs) if not is_clean(index)]
    ended = [found for found in protected if "diverged" not in found]
    of_all = bool(names) and not all("named_by_epoch" in found for found in ended)
    flags = {"two_classes": two, "peak_of_all": of_all}
    every = [row | flags for row in matrix.build(evaluation, measured)]
    rows = [row for row in every if row["ratio"] is not None]
    guessing = _guessing(measured, names, len(config["target_map"]))
    withstood = not learned.failing(rows, guessing) and not any(
        learned.is_open(row) for row in every
    )
    untested = _untested(measured, names)
    narrow = not names and 2 * len(untested) > len(config["target_map"])
    first = _first(rows[0], guessing, change, config, names, withstood=withstood, narrow=narrow)
    found = first | _strongest(rows, first, change, withstood=withstood, narrow=narrow)
    if names and untested:
        found["named"]["worked"] = False
    sentence = found["sentence"] + _of_untested(untested) + _of_copies(training) + _diverged(every)
    return found | {"untested_classes": untested, "sentence": sentence}


def _by_class(outputs: Sequence[Record]) -> Record:
    """Test images by class, where a training counted them."""
    return next((found["by_class"] for found in outputs if "by_class" in found), {})


def _untested(outputs: Sequence[Record], names: Sequence[str] | None) -> list[str]:
    """Of the classes that the figures are of, those without a test image."""
    counted = _by_class(outputs)
    absent = {"images": 0}
    wanted = names or list(counted)
    return [name for name in wanted if counted and not counted.get(name, absent)["images"]]


def _of_untested(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    told = ", ".join(names[:CLASSES_SHOWN]) + more
    return f" Nothing here measures what is learned of {told}: no test image of theirs judges."


def _of_copies(training: Record) -> str:
    copies = training.get("held_out_copies", 0)
    if not copies:
        return ""
    return (
        f" {copies} test images with the pixels of a training image judge nothing; all figures are "
        f"of {training['held_out_images']} others."
    )


def _guessing(outputs: Sequence[Record], names: Sequence[str] | None, classes: int) -> float:
    """What naming one class for every test image reaches: the largest.

    An equal share each for some classes alone, and where no training counted images by class.
    """
    images: list[int] = [count["images"] for count in _by_class(outputs).values()]
    return max(images) / sum(images) if sum(images) and not names else 1 / classes


def _first(
    row: Record,
    guessing: float,
    change: Record,
    config: Record,
    names: Sequence[str] | None,
    *,
    withstood: bool,
    narrow: bool,
) -> Record:
    """What the first row's trainings on the protected data say, beside those on the originals."""
    unchanged = change["unchanged_images"]
    decides = learned.decides(row, guessing)
    low = decides and learned.is_low(row, guessing) and not unchanged and not narrow
    every = low and withstood
    whole = config.get("protected_fraction", 1) == 1
    where = "images of the classes to protect" if names else "images"
    of = _means(row)
    measured = (
        f"On clean {where}, the network {row['network']}, trained by {row['countermeasure']} at "
        f"{config['input_pixels']} x {config['input_pixels']} pixels on the protected data "
        f"({config['epsilon_levels']} levels), reaches {_reached(row)}, and trained on the "
        f"originals {row['clean']['last']['mean']:.1%} (guessing: {guessing:.1%}{of})."
    )
    if not decides:
        word = "The baseline hardly beats guessing, so this measurement decides nothing."
    elif unchanged:
        of = " of the images to protect" if scope.is_partial(change) else " images"
        word = f"{unchanged}{of} leave as they came: the method found no way to change them."
    elif narrow:
        word = "Most classes were not tested, so that nothing is said of the whole."
    elif scope.is_partial(change):
        word = _of_a_part(low=low, named=bool(names), whole=whole)
    elif low and learned.is_open(row):
        word = "Of the trainings on protected data those that ended learned little."
    elif low:
        word = "The protection holds against this network and recipe."
    elif learned.share(row, guessing, "last") <= learned.WORKED_BELOW_SHARE:
        word = "The protection does not withstand early stopping: do not rely on it."
    else:
        word = "The protection did not work on these data: do not rely on it."
    part = f" {scope.sentence(change)}" if scope.is_partial(change) else ""
    return {
        "worked": every and not part,
        "decides": decides,
        "guessing": round(guessing, 6),
        "share_learned": {which: learned.share(row, guessing, which) for which in ("last", "peak")},
        "named": _named(names, row, worked=every and whole),
        "sentence": f"{measured} {word}{part}",
    }


def _means(row: Record) -> str:
    """Of how many trainings the figures are; those that diverged have none."""
    clean, protected = (row["seeds"] - row["diverged"][side] for side in ("clean", "protected"))
    if clean != protected:
        return f", means of {clean} trainings on the originals and {protected} on what leaves"
    return f", means of {clean} trainings each" if clean > 1 else ""


def _of_a_part(*, low: bool, named: bool, whole: bool) -> str:
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


def _strongest(
    rows: Sequence[Record], first: Record, change: Record, *, withstood: bool, narrow: bool
) -> Record:
    """Which countermeasure gets most out of what leaves, and whether all are withstood.

    Alone it is no news. A weak network may get less and yet all that there is for it to learn.
    """
    row = max(rows, key=learned.got)
    strongest = {name: row[name] for name in ("network", "countermeasure", "ratio")}
    if len(rows) == 1:
        return {"strongest": strongest}
    names = first["named"]
    sentence = (
        f"{first['sentence']} Of {len(rows)} ways to train on the protected data, "
        f"{row['countermeasure']} with {row['network']} recovers most"
        f"{' of these classes' if names else ''}: {_reached(row)} where the "
        f"originals give {row['clean']['last']['mean']:.1%}."
    )
    if not (scope.is_partial(change) or change["unchanged_images"] or narrow):
        sentence += _withstood(rows, first["guessing"], whole=withstood)
    return {"strongest": strongest, "sentence": sentence}


def _withstood(rows: Sequence[Record], guessing: float, *, whole: bool) -> str:
    """Of the rows that decide something; of others nothing is known unless they are the `whole`."""
    deciding = [row for row in rows if learned.decides(row, guessing)]
    failing = learned.failing(rows, guessing)
    if not deciding:
        return ""
    if not failing and not whole:
        return ""
    if not failing:
        if len(deciding) == len(rows):
            return " The protection withstands all of them."
        return (
            f" The protection withstands {len(deciding)} of them; on the originals, too, the rest "
            "hardly beat guessing."
        )
    told = "; ".join(
        f"{row['countermeasure']} with {row['network']}: {_reached(row)} of "
        f"{row['clean']['last']['mean']:.1%}"
        for row in sorted(failing, key=lambda row: -learned.most(row, guessing))
    )
    return f" The protection does not withstand {told}."


def _diverged(rows: Sequence[Record]) -> str:
    told = [
        f"{row['countermeasure']} with {row['network']} ({count} of {row['seeds']} on {images})"
        for row in rows
        for side, images in (("clean", "the originals"), ("protected", "the protected data"))
        if (count := row["diverged"][side])
    ]
    return f" Trainings that diverged tell nothing: {'; '.join(told)}." if told else ""


def _of_classes(output: Record, names: Sequence[str]) -> Record | None:
    """The output with its accuracies on the test images of some classes alone.

    None where they were not counted by class, or none were of these. A training that diverged has
    no accuracies.
    """
    if "diverged" in output:
        return output
    by_class = output.get("by_class", {})
    counts = [by_class[name] for name in names if name in by_class]
    images = sum(count["images"] for count in counts)
    if not images:
        return None
    found = {
        f"accuracy_{which}": round(sum(c[f"recognised_{which}"] for c in counts) / images, 6)
        for which in ("last", "peak")
    }
    if "named_by_epoch" in output:
        found["accuracy_peak"] = max(output["named_by_epoch"])
    return output | found


def _unmeasured(names: Sequence[str], change: Record, why: str) -> Record:
    what = "the classes to protect" if names else "the protection"
    named = {"classes": list(names), "worked": False, "clean": None, "protected": None}
    of_scope = f" {scope.sentence(change)}" if scope.is_partial(change) else ""
    return {
        "worked": False,
        "decides": False,
        "guessing": None,
        "share_learned": None,
        "named": named if names else None,
        "strongest": None,
        "untested_classes": list(names) if why == UNTESTED else [],
        "sentence": f"Nothing here measures {what}: {why}{of_scope}",
    }


def _named(names: Sequence[str] | None, row: Record, *, worked: bool) -> Record | None:
    if not names:
        return None
    measured = {
        of: {which: row[of][which]["mean"] for which in ("last", "peak")}
        for of in ("clean", "protected")
    }
    return {"classes": list(names), "worked": worked} | measured


def _reached(row: Record) -> str:
    """Means, and what decides beside them: the training that learned most, or was most wrong."""
    last, peak, lowest = (row["protected"][which] for which in ("last", "peak", "lowest"))
    best, most = (f"{peak[which]:.1%}" for which in ("mean", "max"))
    told = f"{best} where it is best on all classes" if row["peak_of_all"] else f"peak {best}"
    told += f", up to {most}" if most != best else ""
    wrong = 1 - lowest["min"]
    told += f", once wrong about {wrong:.1%}" if row["two_classes"] and wrong > peak["max"] else ""
    return f"{last['mean']:.1%} ({told})"
