"""The owner's record: everything measured, and the keys. As data, and as a page in one file."""

import base64
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from api import matrix, planning, protections, storage
from api.models import Protection, Step, StepKind
from api.steps import CLEAN, PROTECTED

Record = dict[str, Any]

WORKED_BELOW_SHARE = 0.6
"""Share of the clean last accuracy above which the report says that it did not work."""
DECIDES_ABOVE_CHANCE = 1.5
"""A baseline below so many times the share of guessing decides nothing."""


def build(protection: Protection, steps: Sequence[Step]) -> Record:
    """The record of a protection that succeeded.

    Raises:
        FileNotFoundError: its blobs are gone.
    """
    outputs = {(step.kind, step.index): step.output or {} for step in steps}
    assert protection.config is not None
    evaluation = planning.frozen_evaluation(protection)
    found = [outputs[StepKind.EVALUATE, index] for index in range(evaluation.trainings)]
    clean, protected = found[CLEAN], found[PROTECTED]
    rows, classes = matrix.build(evaluation, found), len(protection.config["target_map"])
    packaged = outputs[StepKind.PACKAGE, 0]
    # What was packaged when there was no choice was protected whole.
    change = {"protected_images": packaged["images"]} | packaged
    key = storage.protection_key(protection.id, protections.RECORD)
    stored: Record = json.loads(storage.read(key))
    return {
        "protection_id": str(protection.id),
        "dataset": {"name": protection.dataset_name, "sha256": protection.dataset_sha256},
        "verdict": _with_strongest(
            _verdict(clean, protected, change, classes), rows, classes, _is_partial(change)
        ),
        "accuracy": {"clean": clean, "protected": protected},
        "matrix": rows,
        "change": change | {"sentence": _where_it_shows(change), "scope": _scope(change)},
        "training": outputs[StepKind.TRAIN, 0],
        "requested": protection.requested,
        "config": protection.config,
        "plan": protection.plan,
        "evaluation": protection.evaluation,
        "timing": [_timing(step) for step in steps],
    } | stored


def render(record: Record, preview: bytes | None, worst: bytes | None = None) -> str:
    """The record as an HTML page without links to anything outside; the pictures may be gone."""
    return (
        _environment()
        .get_template("report.html")
        .render(
            record=record,
            picture=_address(preview),
            worst=_address(worst),
            curves=_curves(record["accuracy"]),
        )
    )


def _address(picture: bytes | None) -> str | None:
    return "data:image/png;base64," + base64.b64encode(picture).decode() if picture else None


def _verdict(clean: Record, protected: Record, change: Record, classes: int) -> Record:
    share = protected["accuracy_last"] / max(clean["accuracy_last"], 1e-9)
    decides = clean["accuracy_last"] * classes >= DECIDES_ABOVE_CHANCE
    unchanged = change["unchanged_images"]
    partial = _is_partial(change)
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
        "sentence": f"{measured} {word}" + (f" {_scope(change)}" if partial else ""),
    }


def _with_strongest(verdict: Record, rows: Sequence[Record], classes: int, partial: bool) -> Record:
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


def _is_partial(change: Record) -> bool:
    """Whether images leave that were not to be protected."""
    protected: int = change["protected_images"]
    return protected < change["images"]


def _scope(change: Record) -> str:
    """How many images are protected, of how many, and what that means for the others."""
    images, protected = change["images"], change["protected_images"]
    if not _is_partial(change):
        return f"All {images} images are protected."
    return (
        f"Only {protected} of {images} images are protected; the rest leave as clean copies, and "
        "can be learned from."
    )


def _where_it_shows(change: Record) -> str:
    """In how many images one may see the change, by SSIM, which stands for no pair of eyes."""
    shows, may_show = change["shows"], change["may_show"]
    partial = _is_partial(change)
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


def _timing(step: Step) -> Record:
    return {
        "kind": step.kind,
        "index": step.index,
        "attempts": step.attempt,
        "worker": step.lease_owner,
        "started_at": step.started_at.isoformat() if step.started_at else None,
        "finished_at": step.finished_at.isoformat() if step.finished_at else None,
    }


def _curves(accuracy: Record) -> dict[str, str]:
    """Points of two SVG polylines in a box of 600 x 200."""
    return {name: _points(output["accuracy_by_epoch"]) for name, output in accuracy.items()}


def _points(values: Sequence[float]) -> str:
    step = 600 / max(1, len(values) - 1)
    return " ".join(f"{i * step:.1f},{200 * (1 - value):.1f}" for i, value in enumerate(values))


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("api", "web"), autoescape=True, undefined=StrictUndefined
    )
