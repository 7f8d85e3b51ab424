"""Trainings on originals, kept by data set and recipe, so that none is done twice."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import digests
from api.db import now
from api.models import ACTIVE, Baseline, JSONObject, Protection, Step, StepState
from api.scheduling.leases import Claim, held
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
FIGURES = 7
"""Which figures are kept, and how networks train: raised with every change of it. Those kept before
are not found again."""
LEFT_SECONDS = 600
"""That a training which was broken off is left to the step that has kept some of it."""
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
    return digests.of(whole)


def find(session: Session, dataset_id: UUID, key: str) -> JSONObject | None:
    """What the finished training found; None if there is none yet."""
    baseline = session.get(Baseline, (dataset_id, key))
    return None if baseline is None else baseline.output


def take(session: Session, dataset_id: UUID, key: str, claim: Claim) -> bool:
    """Whether the training is this step's to do: not kept yet, and no running step is at it.

    Whoever has lost the step is to do nothing more.
    """
    if held(session, claim) is None:
        return False
    row = session.get(Baseline, (dataset_id, key))
    if row is None:
        return _insert(session, dataset_id, key, claim)
    if row.output is not None or trainer(session, dataset_id, key) is not None:
        return False
    if row.step_id not in {None, claim.step_id} and _goes_on(session, row):
        return False
    return _write(session, row, row.lease_token, lease_token=claim.token, step_id=claim.step_id)


def _goes_on(session: Session, row: Baseline) -> bool:
    """Whether who began it has kept something and may soon be claimed again: it is left to it.

    Not for long: there may be no worker for it.
    """
    since = now(session) - timedelta(seconds=LEFT_SECONDS)
    former = select(Step.id).join(Protection, Protection.id == Step.protection_id)
    waits = Step.state == StepState.READY, Step.ready_at > since, Step.progress_kept > 0
    active = Protection.state.in_(ACTIVE), Protection.cancel_requested.is_(False)
    return session.scalar(former.where(Step.id == row.step_id, *waits, *active)) is not None


def trainer(session: Session, dataset_id: UUID, key: str) -> Step | None:
    """The running step that is at the training, if there is one."""
    row = session.get(Baseline, (dataset_id, key))
    if row is None:
        return None
    running = select(Step).where(Step.lease_token == row.lease_token)
    return session.scalar(running.where(Step.state == StepState.RUNNING))


def _insert(session: Session, dataset_id: UUID, key: str, claim: Claim) -> bool:
    row = Baseline(
        dataset_id=dataset_id,
        digest=key,
        lease_token=claim.token,
        step_id=claim.step_id,
        created_at=now(session),
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True


def keep(session: Session, dataset_id: UUID, key: str, claim: Claim, output: JSONObject) -> None:
    """Keep what a training that this step began, and still has, has found."""
    row = session.get(Baseline, (dataset_id, key))
    if row is not None and held(session, claim) is not None:
        _write(session, row, claim.token, output=output)


def _write(session: Session, row: Baseline, token: UUID | None, **values: object) -> bool:
    """Compare-and-set: False if another step took it over."""
    written = session.execute(
        update(Baseline)
        .where(
            Baseline.dataset_id == row.dataset_id,
            Baseline.digest == row.digest,
            Baseline.lease_token == token,
            Baseline.output.is_(None),
        )
        .values(**values)
    )
    return bool(written.rowcount)  # type: ignore[attr-defined]  # an UPDATE gives a CursorResult
