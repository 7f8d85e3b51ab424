"""What the figures of a protection come to, in flags; `wording` says it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from api.evidence import learned, matrix, scope, wording
from sep_core.cells import Evaluation

Record = dict[str, Any]
Outcome = Literal[
    "decides nothing",
    "unchanged",
    "narrow",
    "part",
    "too few images",
    "some diverged",
    "holds",
    "early stopping",
    "renaming",
    "class by class",
    "failed",
]
"""What the first row's trainings come to."""

UNTESTED = "there are no clean test images of them."
UNCOUNTED = "the trainings were done before recognised images were counted by class."
SEEN = "every test image has the pixels of a training image."


@dataclass(frozen=True)
class Judged:
    """What all rows are judged by.

    Attributes:
        rows: of the matrix that have accuracies on both sides, of the images that are meant.
        guessing: accuracy of naming one class for every test image, in [0, 1].
        test_images: that the accuracies are of.
        names: of the classes that are meant; None is all.
        withstood: no row's trainings learned much, and none is open.
        alike: a row of which much was learned only where every class counts alike, however many
            test images it has; None where there is none.
        narrow: most classes have no test image.
    """

    rows: Sequence[Record]
    guessing: float
    test_images: int
    names: Sequence[str] | None
    withstood: bool
    alike: Record | None
    narrow: bool


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
        the originals; where so few images are tested that chance may have done it, it is not; and
        of all that leaves, never of a part: no training here leaves the protected images out, as
        anybody can. Where some classes are named, `named` has a `worked` of theirs: all their
        images are protected, so that nothing is left to train on instead, unless the data have the
        same pixels under another class, and each of them has test images. `untested_classes` have
        none; where they are more than half of all, nothing is said to have worked, and where all
        test images are copies of training images either.
    """
    names = config.get("protected_classes") if scope.is_partial(change) else None
    if training.get("held_out_seen"):
        return _unmeasured(names or [], change, SEEN)
    if not any("by_class" in output for output in outputs):
        return _unmeasured(names or [], change, UNCOUNTED)
    tested = _tested(outputs, names)
    if not sum(tested.values()):
        return _unmeasured(names or [], change, UNTESTED)
    judging = [_of_classes(output, names) for output in outputs] if names else outputs
    every = [
        row | {"test_images": sum(tested.values())} for row in matrix.build(evaluation, judging)
    ]
    untested = [name for name, images in tested.items() if not images]
    guessing = _guessing(tested, names, len(config["target_map"]))
    narrow = not names and 2 * len(untested) > len(tested)
    rows = [row for row in every if row["ratio"] is not None]
    alike = None
    if len({images for images in tested.values() if images}) > 1:
        classes = len(config["target_map"]) if names else len(tested) - len(untested)
        plainly = {_way(row) for row in learned.failing(rows, guessing)}
        found_alike = _learned_alike(evaluation, outputs, tested, 1 / classes)
        alike = next((row for row in found_alike if _way(row) not in plainly), None)
    judged = Judged(
        rows=rows,
        guessing=guessing,
        test_images=sum(tested.values()),
        names=names,
        withstood=learned.withstood(every, guessing) and alike is None,
        alike=alike,
        narrow=narrow,
    )
    found = _first(judged, change, config)
    if names and untested:
        found["named"]["worked"] = False
    sentence = found["sentence"] + _of_all_ways(judged, change)
    sentence += wording.untested(untested) + wording.copies(training) + wording.diverged(every)
    return found | {"untested_classes": untested, "sentence": sentence}


def _of_all_ways(judged: Judged, change: Record) -> str:
    """Of one alone it is no news."""
    if len(judged.rows) == 1:
        return ""
    told = wording.strongest(judged.rows, named=bool(judged.names))
    if scope.is_partial(change) or change["unchanged_images"] or judged.narrow:
        return told
    return told + wording.withstood(judged.rows, judged.guessing, whole=judged.withstood)


def _tested(outputs: Sequence[Record], names: Sequence[str] | None) -> dict[str, int]:
    """Test images of each class that is meant, as the first training counted them."""
    by_class = next(found["by_class"] for found in outputs if "by_class" in found)
    return {
        name: by_class[name]["images"] if name in by_class else 0
        for name in (by_class if names is None else names)
    }


def _learned_alike(
    evaluation: Evaluation, outputs: Sequence[Record], tested: Mapping[str, int], guessing: float
) -> Sequence[Record]:
    """Rows of which much was learned where each class counts as much as any other.

    Who has nine healthy test images for a sick one may recognise both, and name no more images
    rightly than who calls all of them healthy.
    """
    there = [output for output in outputs if "diverged" not in output]
    if not all("by_class" in output for output in there):
        return []
    mean = [
        output if "diverged" in output else output | _recalled(output["by_class"], tested)
        for output in outputs
    ]
    rows = [row | {"test_images": sum(tested.values())} for row in matrix.build(evaluation, mean)]
    return learned.failing([row for row in rows if row["ratio"] is not None], guessing)


def _way(row: Record) -> tuple[str, str]:
    return row["network"], row["countermeasure"]


def _recalled(by_class: Record, tested: Mapping[str, int]) -> Record:
    names = [name for name, images in tested.items() if images]
    recalled = {
        which: fmean(by_class[name][f"recognised_{which}"] / tested[name] for name in names)
        for which in ("last", "peak")
    }
    return {
        f"{of}_{which}": round(value, matrix.DIGITS)
        for which, value in recalled.items()
        for of in ("accuracy", "renamed")
    }


def _guessing(tested: Mapping[str, int], names: Sequence[str] | None, classes: int) -> float:
    """What naming one class for every test image reaches: the largest.

    Of some classes alone an equal share each: which are meant is not known to who trains.
    """
    return 1 / classes if names else max(tested.values()) / sum(tested.values())


def _first(judged: Judged, change: Record, config: Record) -> Record:
    """What the first row's trainings on the protected data say, beside those on the originals."""
    row, guessing, partial = judged.rows[0], judged.guessing, scope.is_partial(change)
    outcome = _outcome(row, judged, change)
    low = learned.is_surely_low(row, guessing) and outcome in {"holds", "some diverged", "part"}
    worked = low and judged.withstood
    whole = config.get("protected_fraction", 1) == 1
    match outcome:
        case "unchanged":
            words = wording.unchanged(change)
        case "part":
            words = wording.part(low=low, named=bool(judged.names), whole=whole)
        case "class by class":
            assert judged.alike is not None
            words = wording.class_by_class(judged.alike)
        case _:
            words = wording.OUTCOMES[outcome]
    return {
        "worked": worked and not partial,
        "decides": outcome != "decides nothing",
        "guessing": round(guessing, 6),
        "test_images": judged.test_images,
        "share_learned": {which: learned.share(row, guessing, which) for which in ("last", "peak")},
        "named": _named(judged.names, row, worked=worked and whole),
        "strongest": _strongest(judged.rows),
        "sentence": f"{wording.measured(row, guessing, change, config, named=bool(judged.names))} "
        f"{words}{f' {scope.sentence(change)}' if partial else ''}",
    }


def _outcome(row: Record, judged: Judged, change: Record) -> Outcome:
    if not learned.decides(row, judged.guessing):
        return "decides nothing"
    if change["unchanged_images"]:
        return "unchanged"
    if judged.narrow:
        return "narrow"
    if learned.is_low(row, judged.guessing) and not learned.is_surely_low(row, judged.guessing):
        return "too few images"
    if learned.is_low(row, judged.guessing) and judged.alike is not None:
        return "class by class"
    return "part" if scope.is_partial(change) else _of_whole(row, judged.guessing)


def _of_whole(row: Record, guessing: float) -> Outcome:
    if learned.is_surely_low(row, guessing):
        return "some diverged" if learned.is_open(row) else "holds"
    last, peak = (
        learned.of_accuracy(row, guessing, row["protected"][which]["max"])
        for which in ("last", "peak")
    )
    if max(last, peak) <= learned.WORKED_BELOW_SHARE:
        return "renaming"
    return "failed" if last > learned.WORKED_BELOW_SHARE else "early stopping"


def _strongest(rows: Sequence[Record]) -> Record:
    """The way to train that gets most out of what leaves.

    A weak network may get less and yet all that there is for it to learn.
    """
    row = max(rows, key=learned.got)
    return {name: row[name] for name in ("network", "countermeasure", "ratio")}


def _of_classes(output: Record, names: Sequence[str]) -> Record:
    """The output with its accuracies on the test images of some classes alone.

    A training that diverged has none. One on the originals is kept whatever is named, and has only
    counts by class.
    """
    if "diverged" in output:
        return output
    if "named" in output:
        return {**output, **output["named"]}
    counts = [output["by_class"][name] for name in names if name in output["by_class"]]
    images = sum(count["images"] for count in counts)
    found = {
        which: round(sum(c[f"recognised_{which}"] for c in counts) / images, 6)
        for which in ("last", "peak")
    }
    return output | {
        f"{of}_{which}": value for which, value in found.items() for of in ("accuracy", "renamed")
    }


def _unmeasured(names: Sequence[str], change: Record, why: str) -> Record:
    what = "the classes to protect" if names else "the protection"
    named = {"classes": list(names), "worked": False, "clean": None, "protected": None}
    of_scope = f" {scope.sentence(change)}" if scope.is_partial(change) else ""
    return {
        "worked": False,
        "decides": False,
        "guessing": None,
        "test_images": 0,
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
