"""The matrix of the evidence: networks and countermeasures, on originals and on what leaves.

And of the first of them every class.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from sep_core.cells import Evaluation, cells, weights_sha256

Record = dict[str, Any]

DIGITS = 6


def build(evaluation: Evaluation, outputs: Sequence[Mapping[str, Any]]) -> list[Record]:
    """A row for every network and countermeasure, in the order of the evaluation's cells.

    Args:
        outputs: of the `evaluate` steps, in the order of the cells.

    Returns:
        Of each row `clean`, `protected` (mean, min, max and, from two seeds on, std of the last and
        of the peak accuracy, in [0, 1], and `renamed`: of the same once the network's answers are
        renamed, see `sep_core.renaming`) and their `ratio`; `diverged` counts trainings without any
        accuracy: the others' are what is shown, None where there is none; `reused` counts kept
        baselines;
        `weights_sha256` is of the file that its trainings begin with, None where that is none.
    """
    trained = zip(cells(evaluation), outputs, strict=True)
    rows = groupby(trained, key=lambda pair: (pair[0].network, pair[0].countermeasure))
    return [
        _row(*names, list(members)) | {"weights_sha256": weights_sha256(evaluation, *names)}
        for names, members in rows
    ]


def by_class(
    clean: Mapping[str, Any], protected: Mapping[str, Any], named: Sequence[str] | None
) -> list[Record] | None:
    """Of each class the share of its test images that each training recognises; named ones first.

    Args:
        clean, protected: outputs of `evaluate` steps.
        named: classes that are to be protected; None is all.

    Returns:
        `last` and `peak` (after the epoch that is best on all classes) of both, None where there
        are no test images; None instead of the list where they were not counted by class.
    """
    if "by_class" not in clean or "by_class" not in protected:
        return None
    found = [
        {
            "class": name,
            "to_protect": named is None or name in named,
            "test_images": counted["images"],
            "clean": _shares(counted),
            "protected": _shares(protected["by_class"][name]),
        }
        for name, counted in clean["by_class"].items()
    ]
    return sorted(found, key=lambda row: not row["to_protect"])


def _shares(counted: Mapping[str, int]) -> Record:
    images = counted["images"]
    return {
        which: round(counted[f"recognised_{which}"] / images, DIGITS) if images else None
        for which in ("last", "peak")
    }


def _row(
    network: str, countermeasure: str, members: Sequence[tuple[Any, Mapping[str, Any]]]
) -> Record:
    trained = {
        name: [output for cell, output in members if cell.clean is clean]
        for name, clean in (("clean", True), ("protected", False))
    }
    measured = {name: _measured(outputs) for name, outputs in trained.items()}
    return {
        "network": network,
        "countermeasure": countermeasure,
        "seeds": len(trained["clean"]),
        **measured,
        "ratio": _ratios(**measured),
        "diverged": {
            name: sum("diverged" in output for output in outputs)
            for name, outputs in trained.items()
        },
        "reused": sum(bool(output.get("reused")) for output in trained["clean"]),
    }


def _measured(outputs: Sequence[Mapping[str, Any]]) -> Record | None:
    ended = [output for output in outputs if "diverged" not in output]
    if not ended:
        return None
    return _last_and_peak(ended, "accuracy") | {"renamed": _last_and_peak(ended, "renamed")}


def _last_and_peak(outputs: Sequence[Mapping[str, Any]], what: str) -> Record:
    return {
        # Records from before answers were renamed have plain accuracies only.
        which: _spread(
            [output.get(f"{what}_{which}", output[f"accuracy_{which}"]) for output in outputs]
        )
        for which in ("last", "peak")
    }


def _spread(values: Sequence[float]) -> Record:
    return {
        "mean": round(fmean(values), DIGITS),
        "min": min(values),
        "max": max(values),
        "std": round(stdev(values), DIGITS) if len(values) > 1 else None,
    }


def _ratios(clean: Record | None, protected: Record | None) -> Record | None:
    if clean is None or protected is None:
        return None
    return {
        which: _ratio(protected[which]["mean"], clean[which]["mean"]) for which in ("last", "peak")
    }


def _ratio(protected: float, clean: float) -> float:
    return round(protected / max(clean, 1e-9), 4)
