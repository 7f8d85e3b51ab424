"""The owner's record: everything measured, and the keys. As data, and as a page in one file."""

import base64
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from api import protections, storage
from api.evidence import matrix, scope, verdict
from api.models import Protection, Step, StepKind
from api.plans import planning
from api.steps import CLEAN, PROTECTED

Record = dict[str, Any]

TOLD_APART = (StepKind.PERTURB, StepKind.ENCODE, StepKind.EVALUATE)
"""Kinds of which there are many: with their outputs the chain of digests can be followed."""


def build(protection: Protection, steps: Sequence[Step]) -> Record:
    """The record of a protection that succeeded, but for what it says of every file.

    Raises:
        FileNotFoundError: its blobs are gone.
    """
    return _measured(protection, steps) | {"refused": _refused(protection)}


def write(protection: Protection, steps: Sequence[Step]) -> Iterator[bytes]:
    """The whole record as JSON, piece by piece: of a million files it is a gigabyte.

    Raises:
        FileNotFoundError: its blobs are gone.
    """
    key = storage.protection_key(protection.id, protections.RECORD)
    size = storage.size_if_there(key)
    if size is None:
        raise FileNotFoundError(key)
    measured = json.dumps(_measured(protection, steps), ensure_ascii=False, allow_nan=False)
    # Two objects become one.
    return chain(
        [measured.removesuffix("}").encode(), b", "], storage.stream_begun(key, len(b"{"), size)
    )


def _refused(protection: Protection) -> list[Record]:
    kept = storage.read_if_there(storage.protection_key(protection.id, protections.REFUSED))
    if kept is None:  # what was packaged before they were kept apart
        kept = storage.read(storage.protection_key(protection.id, protections.RECORD))
    refused: list[Record] = json.loads(kept)["refused"]
    return refused


def _measured(protection: Protection, steps: Sequence[Step]) -> Record:
    outputs = {(step.kind, step.index): step.output or {} for step in steps}
    assert protection.config is not None
    evaluation = planning.frozen_evaluation(protection)
    found = [outputs[StepKind.EVALUATE, index] for index in range(evaluation.trainings)]
    clean, protected = found[CLEAN], found[PROTECTED]
    packaged = outputs[StepKind.PACKAGE, 0]
    training = outputs[StepKind.TRAIN, 0]
    # What was packaged when there was no choice was protected whole.
    change = {"protected_images": packaged["images"]} | packaged
    return {
        "protection_id": str(protection.id),
        "dataset": {"name": protection.dataset_name, "sha256": protection.dataset_sha256},
        "verdict": verdict.build(evaluation, found, change, protection.config, training),
        "accuracy": {"clean": clean, "protected": protected},
        "by_class": matrix.by_class(clean, protected, protection.config.get("protected_classes")),
        "matrix": matrix.build(evaluation, found),
        "change": change
        | {"sentence": scope.where_it_shows(change), "scope": scope.sentence(change)},
        "training": training | {"sentence": scope.trained_on(change, training)},
        "requested": protection.requested,
        "config": protection.config,
        "plan": protection.plan,
        "evaluation": protection.evaluation,
        "timing": [_timing(step) for step in steps],
    }


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


def _timing(step: Step) -> Record:
    return {
        "kind": step.kind,
        "index": step.index,
        "attempts": step.attempt,
        "worker": step.lease_owner,
        "started_at": step.started_at.isoformat() if step.started_at else None,
        "finished_at": step.finished_at.isoformat() if step.finished_at else None,
        "input_sha256": step.input_sha256,
        "output_sha256": step.output_sha256,
        # Of the others it is `training` and `change`, without sentences.
        **({"output": step.output} if step.kind in TOLD_APART else {}),
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
