"""A protection's steps, and how they move it on; `leases` moves a single step.

Every change ends in `settle`, which reads the steps and moves the protection on: joins are rows.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, defer

from api import digests, events
from api.db import now
from api.models import (
    ACTIVE,
    Protection,
    ProtectionState,
    Step,
    StepKind,
    StepState,
)
from api.scheduling import joins, leases
from api.scheduling.leases import Claim
from api.scheduling.moves import hold_back, make_ready, move
from sep_core.cells import Evaluation
from sep_core.config import Plan, SEPConfig, as_dict

PLANNED = StepKind.PERTURB, StepKind.ENCODE
"""Of which the plan says how many there are."""
NOT_THE_SAME = (
    "Expected what was lost to come out as before when it is made again, got something else, and "
    "others have used what was lost. Another kind of device or another version may be why: ask for "
    "a new protection."
)
CLEAN, PROTECTED = 0, 1
"""Indices of the first cell's two `evaluate` steps; see `sep_core.cells.cells`."""


def add(
    session: Session, protection: Protection, kind: StepKind, state: StepState, costs: list[float]
) -> None:
    """One step of a kind for every cost."""
    at = now(session)
    for index, cost in enumerate(costs):
        session.add(
            Step(
                protection_id=protection.id,
                kind=kind,
                index=index,
                state=state,
                cost=cost,
                created_at=protection.created_at,
                ready_at=at if state is StepState.READY else None,
            )
        )
    session.flush()


def of(session: Session, protection_id: UUID, *, outputs: bool = True) -> list[Step]:
    """All steps as the database has them now, in the order in which they run.

    Args:
        outputs: whether what they have found is read: of thousands it is megabytes.
    """
    query = select(Step).where(Step.protection_id == protection_id)
    if not outputs:
        query = query.options(defer(Step.output, raiseload=True))
    # What this transaction has looked at before it locked the protection may have changed since.
    steps = session.scalars(query.execution_options(populate_existing=True)).all()
    return sorted(steps, key=lambda step: (joins.ORDER.index(step.kind), step.index))


def start(session: Session, claim: Claim) -> None:
    """The first claimed step sets the protection running."""
    protection = session.get_one(Protection, claim.protection_id)
    if protection.state is ProtectionState.QUEUED:
        move(session, protection, ProtectionState.RUNNING, started_at=now(session))


def freeze(
    session: Session,
    claim: Claim,
    config: SEPConfig,
    plan: Plan,
    evaluation: Evaluation,
    costs: dict[StepKind, list[float]],
) -> None:
    """Keep what is decided on the row, once, and add the steps that follow from it."""
    lost = leases.held(session, claim) is None  # locks step, then protection: as all others do
    protection = session.get_one(Protection, claim.protection_id, with_for_update=True)
    if lost or protection.plan is not None:
        return
    protection.config, protection.plan = as_dict(config), as_dict(plan)
    protection.evaluation = asdict(evaluation)
    events.record(session, events.PLANNED, protection, plan=protection.plan)
    for kind in PLANNED:
        add(session, protection, kind, StepState.WAITING, costs[kind])
    for step in of(session, protection.id):
        step.cost = costs[step.kind][step.index]


def release(session: Session, claim: Claim) -> None:
    """What needs nothing but the plan becomes ready while this step runs: to be sent afterwards."""
    if leases.held(session, claim) is not None:
        assert claim.protection_id is not None
        # Before the steps that wait: so does whoever settles.
        session.get(Protection, claim.protection_id, with_for_update=True)
        _make_ready(session, claim.protection_id)


def replan(
    session: Session, claim: Claim, old: Plan, new: Plan, costs: dict[StepKind, list[float]]
) -> Protection:
    """What was planned begins again by a new plan; who still runs a step of it has lost it."""
    planned = Step.protection_id == claim.protection_id, Step.kind.in_(PLANNED)
    # Steps before their protection, and shards before what encodes them: as all others lock.
    locked = select(Step.id).where(*planned).order_by(Step.kind.desc(), Step.id)
    session.execute(locked.with_for_update())
    lost = leases.held(session, claim) is None
    protection = session.get_one(Protection, claim.protection_id, with_for_update=True)
    if lost or protection.plan != as_dict(old):
        return protection
    if protection.cancel_requested or _failed(session, protection.id):
        step = session.get_one(Step, claim.step_id)
        leases.give_back(session, step, counts=False)
        return settle(session, protection.id)
    protection.plan = as_dict(new)
    session.execute(delete(Step).where(*planned))
    for kind in PLANNED:
        add(session, protection, kind, StepState.WAITING, costs[kind])
    _make_ready(session, protection.id)
    why = "The device has too little memory for the batches that were planned."
    events.record(session, events.PLANNED, protection, plan=protection.plan, why=why)
    return protection


def finish(session: Session, claim: Claim, output: dict[str, Any]) -> Protection | None:
    """A step is done; None if its lease was lost, and then nothing is written.

    One that was made again fails where it found something else than before and that was used.
    """
    step = leases.held(session, claim)
    if step is None:
        return None
    protection = session.get_one(Protection, step.protection_id)
    given = digests.given(protection, step, _inputs(session, step))
    if _differs(step.output, output) and joins.is_used(session, step):
        leases.fail(session, step, "BLOB_CHANGED", NOT_THE_SAME)
    else:
        leases.finish(session, step, output, given)
    return settle(session, protection.id)


def _differs(before: dict[str, Any] | None, output: dict[str, Any]) -> bool:
    """Whether a step that was made again found something else; by another version it may be."""
    if before is None:
        return False
    found = ({key: each[key] for key in each if key != "versions"} for each in (before, output))
    return len({digests.of(each) for each in found}) > 1


def revive(session: Session, protection: Protection) -> None:
    """A protection that failed goes on where it did."""
    values = {"finished_at": None, "error_code": None, "error": None}
    if move(session, protection, ProtectionState.RUNNING, **values):
        leases.revive(session, Step.protection_id == protection.id)
        if protection.plan is not None:
            _make_ready(session, protection.id)  # what was not, since it had failed


def settle(session: Session, protection_id: UUID) -> Protection:
    """Move a protection, of which a step has just changed, on to where its steps say it is."""
    protection = session.scalars(
        select(Protection)
        .where(Protection.id == protection_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()
    if protection.state not in ACTIVE:
        return protection
    there = select(Step.state).where(Step.protection_id == protection.id).distinct()
    states = set(session.scalars(there))
    if StepState.FAILED not in states and not protection.cancel_requested:
        _go_on(session, protection, states)
    elif StepState.RUNNING not in states:
        # Whoever is still running settles after us; the row's lock puts us in an order.
        _break_off(session, protection)
    return protection


def _go_on(session: Session, protection: Protection, states: set[StepState]) -> None:
    if states == {StepState.DONE}:
        _succeed(session, protection)
    elif protection.plan is not None:
        _make_ready(session, protection.id)


def _break_off(session: Session, protection: Protection) -> None:
    _hold(session, protection.id)
    at, failed = now(session), _failed(session, protection.id)
    if protection.cancel_requested or not failed:
        move(session, protection, ProtectionState.CANCELLED, finished_at=at)
        return
    first = min(failed, key=lambda step: (joins.ORDER.index(step.kind), step.index))
    why = {"error_code": first.error_code, "error": first.error}
    move(session, protection, ProtectionState.FAILED, finished_at=at, **why)


def _hold(session: Session, protection_id: UUID) -> None:
    """ready -> waiting: what may never be done is not to be in the way of whoever claims.

    Not what somebody is about to claim, and finds to be over: who waited for that would be waited
    for. `revive` makes ready again what may be.
    """
    ready = Step.protection_id == protection_id, Step.state == StepState.READY
    locked = select(Step.id).where(*ready).order_by(Step.id).with_for_update(skip_locked=True)
    hold_back(session, session.scalars(locked).all())


def _failed(session: Session, protection_id: UUID) -> Sequence[Step]:
    of_it = Step.protection_id == protection_id, Step.state == StepState.FAILED
    fresh = select(Step).where(*of_it).execution_options(populate_existing=True)
    return session.scalars(fresh).all()


# There may be thousands of steps, and this comes at the end of each: no whole rows are read.


def _inputs(session: Session, step: Step) -> list[digests.Found]:
    """What the steps that a step needs have found, in their order."""
    earlier = Step.kind.in_(joins.ORDER[: joins.ORDER.index(step.kind)])
    query = select(Step.kind, Step.index, Step.output).where(
        Step.protection_id == step.protection_id, earlier
    )
    if step.kind is StepKind.ENCODE:  # as `_needs` says, without the others' outputs
        query = query.where((Step.kind != StepKind.PERTURB) | (Step.index == step.index))
    found = [
        (kind, index, output)
        for kind, index, output in session.execute(query)
        if joins.needs(step.kind, step.index, kind, index)
    ]
    return sorted(found, key=lambda each: (joins.ORDER.index(each[0]), each[1]))


def _make_ready(session: Session, protection_id: UUID) -> None:
    """Of a protection that is locked and whose plan is frozen: steps that wait for nothing more."""
    query = select(Step.id, Step.state, Step.kind, Step.index).where(
        Step.protection_id == protection_id, Step.state != StepState.DONE
    )
    undone = session.execute(query).all()
    needs = joins.needs_any([(kind, index) for _, _, kind, index in undone])
    ready = [
        (joins.ORDER.index(kind), index, key)
        for key, state, kind, index in undone
        if state is StepState.WAITING and not needs(kind, index)
    ]
    make_ready(session, protection_id, [key for *_, key in sorted(ready)])


def _succeed(session: Session, protection: Protection) -> None:
    of_it = Step.protection_id == protection.id, Step.kind == StepKind.PACKAGE
    package = session.scalars(select(Step).where(*of_it)).one()
    assert package.output is not None
    session.execute(
        update(Protection)
        .where(Protection.id == protection.id)
        .values(
            archive_sha256=package.output["archive_sha256"],
            archive_bytes=package.output["archive_bytes"],
        )
    )
    move(session, protection, ProtectionState.SUCCEEDED, finished_at=now(session))
