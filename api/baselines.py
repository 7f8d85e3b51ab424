"""Trainings on originals, kept by data set and recipe, so that none is done twice."""

import hashlib
import json
from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.db import now
from api.models import Baseline, JSONObject
from sep_core.cells import Cell
from sep_core.config import Plan, SEPConfig, as_dict

# A field that is not named here counts: better a training too many than a wrong baseline.
PERTURBATION = {
    *("variant", "epsilon_levels", "steps", "step_levels", "checkpoints", "inner_steps"),
    *("checkpoints_per_step", "perturb_momentum", "normalise_gradients", "views", "target_map"),
    *("class_steps", "protected_classes", "protected_fraction"),
    *("surrogate", "epochs", "seed"),
}
"""Fields of a configuration that no appropriator's training reads."""
OF_THE_CELL = {"appropriator", "precision"}
"""Fields that the cell or the plan decides."""
FIGURES = 3
"""Which figures are kept, and how networks train: raised with every change of it. Those kept before
are not found again."""


VERSIONS = ("sepgate", "torch", "torchvision")
"""Packages, among those of a worker's row, that train."""


def digest(
    dataset_sha256: str,
    config: SEPConfig,
    plan: Plan,
    cell: Cell,
    versions: Mapping[str, str],
    weights_sha256: str | None = None,
) -> str:
    """Of all that a training on the originals depends on.

    Args:
        versions: of VERSIONS, and perhaps of others, which do not count.
        weights_sha256: of the file that the training begins with, if it begins with one.
    """
    recipe = {
        name: value
        for name, value in as_dict(config).items()
        if name not in PERTURBATION | OF_THE_CELL
    }
    trained: list[object] = [cell.network, cell.countermeasure, cell.seed]
    # Without one it is what it was when there were none: what is kept stays found.
    trained += [weights_sha256] if weights_sha256 is not None else []
    trained_with = {name: versions.get(name) for name in VERSIONS}
    machine = [plan.device, plan.precision, plan.threads, trained_with]
    whole = [dataset_sha256, recipe, trained, machine, FIGURES]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def find(session: Session, dataset_id: UUID, key: str) -> JSONObject | None:
    """What the finished training found; None if there is none yet."""
    baseline = session.get(Baseline, (dataset_id, key))
    return None if baseline is None else baseline.output


def keep(session: Session, dataset_id: UUID, key: str, output: JSONObject) -> None:
    """Keep what a training found. Who comes second has trained the same, and keeps nothing."""
    try:
        with session.begin_nested():
            session.add(
                Baseline(dataset_id=dataset_id, digest=key, output=output, created_at=now(session))
            )
    except IntegrityError:
        return
