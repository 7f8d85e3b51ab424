"""`/v1/protections`: ask, poll, cancel, retry, delete; `results` has what comes of it."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import progress, protections, retention, steps, storage
from api.db import now, reading, transaction
from api.models import (
    ACTIVE,
    QUEUES,
    Protection,
    ProtectionState,
    Queue,
    Step,
    StepKind,
    StepState,
)
from api.plans.estimate import Estimate, estimate
from api.progress import Progress
from api.routes.bodies import ProtectionIn
from api.routes.deps import (
    CallerDep,
    Page,
    SmallBody,
    after,
    next_cursor,
    poll_again,
)
from api.routes.problems import responses
from api.routes.schemas import (
    ArchiveOut,
    PlanOut,
    ProtectionDetail,
    ProtectionOut,
    ProtectionPage,
    StepOut,
)
from api.scheduling import outbox, waiting
from sep_core.config import as_dict

KEYS = {"seed", "target_map"}

router = APIRouter(
    prefix="/v1/protections",
    tags=["protections"],
    responses=responses(401, 422, 503),
    route_class=SmallBody,
)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="a repeated request with the same key gives the same protection, not another",
    ),
]


PLANNED = "`validate_only`: what would be frozen, and what it would take; nothing was made"


@router.post(
    "",
    status_code=202,
    response_model=ProtectionDetail,
    responses=responses(
        *(400, 404, 409, 413), also={200: {"model": PlanOut, "description": PLANNED}}
    ),
)
def create(
    body: ProtectionIn,
    caller: CallerDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ProtectionDetail | JSONResponse:
    """Ask for a protection; it is then carried out by workers. Poll its `Location`.

    With `validate_only` nothing is made: the answer says what would be frozen, and what it takes.
    """
    # A null is as good as nothing: clients send back what the schema gives as default.
    config = body.config.model_dump(exclude_unset=True, exclude_none=True)
    evaluation = body.evaluation.model_dump(exclude_unset=True, exclude_none=True)
    preset = config.pop("preset", "auto")
    request = protections.Request(body.dataset_id, preset, config, evaluation, body.priority)
    if body.validate_only:
        return JSONResponse(_planned(caller.owner_id, request).model_dump(mode="json"))
    try:
        shown = _create(caller.owner_id, request, idempotency_key)
    except IntegrityError:  # the same key came twice at once: the other one made it
        shown = _create(caller.owner_id, request, idempotency_key)
    outbox.try_to_send()
    response.headers["Location"] = f"/v1/protections/{shown.id}"
    poll_again(response, done=shown.done)
    return shown


def _create(owner_id: UUID, request: protections.Request, key: str | None) -> ProtectionDetail:
    with transaction() as session:
        return _detail(session, protections.create(session, owner_id, request, key))


def _planned(owner_id: UUID, request: protections.Request) -> PlanOut:
    with reading() as session:
        dataset = protections.check(session, owner_id, request)
        before = protections.released(session, owner_id, dataset.sha256)
        return _plan(estimate(session, dataset, request), before)


class ProtectionQuery(Page):
    """Which protections."""

    state: ProtectionState | None = Field(None, description="those in this state only")
    dataset_id: UUID | None = Field(None, description="those of this data set only")


@router.get("")
def listing(caller: CallerDep, wanted: Annotated[ProtectionQuery, Query()]) -> ProtectionPage:
    """The caller's protections, newest first."""
    statement = select(Protection).where(Protection.owner_id == caller.owner_id)
    if wanted.state is not None:
        statement = statement.where(Protection.state == wanted.state)
    if wanted.dataset_id is not None:
        statement = statement.where(Protection.dataset_id == wanted.dataset_id)
    limit = wanted.limit
    with reading() as session:
        rows = session.scalars(after(statement, Protection, wanted.cursor).limit(limit + 1)).all()
        shown, at = rows[:limit], now(session)
        found = progress.of(session, [row.id for row in shown])
        items = [_shown(session, row, found[row.id], at) for row in shown]
    return ProtectionPage(items=items, next_cursor=next_cursor(rows, limit))


@router.get("/{protection_id}", responses=responses(404))
def show(protection_id: UUID, caller: CallerDep, response: Response) -> ProtectionDetail:
    """State, progress, ETA and every step."""
    with reading() as session:
        shown = _detail(session, protections.get(session, caller.owner_id, protection_id))
    poll_again(response, done=shown.done, eta_seconds=shown.eta_seconds)
    return shown


@router.post("/{protection_id}/cancel", status_code=202, responses=responses(404, 409))
def cancel(protection_id: UUID, caller: CallerDep, response: Response) -> ProtectionDetail:
    """Cancel: at once if no worker is at it, else within seconds. Nothing stays behind."""
    with transaction() as session:
        protection = protections.cancel(session, caller.owner_id, protection_id)
        shown = _detail(session, protection)
    protections.clean(protection)
    poll_again(response, done=shown.done)
    return shown


@router.post("/{protection_id}/retry", status_code=202, responses=responses(404, 409))
def retry(protection_id: UUID, caller: CallerDep, response: Response) -> ProtectionDetail:
    """Let a protection that failed go on where it did, with what it has done so far.

    That is kept for a week, unless the operator has set another time, or the data set is deleted.
    """
    with transaction() as session:
        protection = protections.retry(session, caller.owner_id, protection_id)
        shown = _detail(session, protection)
    outbox.try_to_send()
    poll_again(response, done=shown.done)
    return shown


@router.delete("/{protection_id}", status_code=204, responses=responses(404, 409))
def delete(protection_id: UUID, caller: CallerDep) -> None:
    """Delete a finished protection: archive, record and keys."""
    with transaction() as session:
        protection = protections.delete(session, caller.owner_id, protection_id)
    storage.remove(storage.protection_key(protection.id))


def _detail(session: Session, protection: Protection) -> ProtectionDetail:
    parts = steps.of(session, protection.id, outputs=False)
    at, found = now(session), progress.of(session, [protection.id])
    shown = _shown(session, protection, found[protection.id], at)
    released = protections.released(session, protection.owner_id, protection.dataset_sha256)
    return ProtectionDetail(
        **shown.model_dump(),
        steps=[_step(step, at) for step in parts],
        released_before=[other for other in released if other != protection.id],
    )


def _step(step: Step, at: datetime) -> StepOut:
    return StepOut(
        kind=step.kind,
        index=step.index,
        state=step.state,
        progress=round(progress.share_done(step), 4),
        eta_seconds=progress.step_eta_seconds(step, at),
        attempt=step.attempt,
        worker=step.lease_owner,
        error_code=step.error_code,
        error=step.error,
        next_attempt_at=step.not_before if step.state is StepState.READY else None,
        started_at=step.started_at,
        finished_at=step.finished_at,
        input_sha256=step.input_sha256,
        output_sha256=step.output_sha256,
    )


def _shown(
    session: Session, protection: Protection, found: Progress, at: datetime
) -> ProtectionOut:
    return ProtectionOut(
        id=protection.id,
        dataset_id=protection.dataset_id,
        dataset_name=protection.dataset_name,
        state=protection.state,
        done=protection.state not in ACTIVE,
        cancel_requested=protection.cancel_requested,
        priority=protection.priority,
        progress=round(found.share, 4),
        eta_seconds=progress.eta_seconds(session, protection, found, at),
        waits_for=waiting.waits_for(session, protection, found),
        requested=protection.requested | {"config": _shareable(protection.requested["config"])},
        config=protection.config and _shareable(protection.config),
        plan=protection.plan,
        evaluation=protection.evaluation,
        archive=_archive(protection),
        error_code=protection.error_code,
        error=protection.error,
        created_at=protection.created_at,
        started_at=protection.started_at,
        finished_at=protection.finished_at,
        kept_until=retention.kept_until(protection),
    )


def _plan(found: Estimate, released_before: list[UUID]) -> PlanOut:
    gflop = {
        kind.value: round(sum(load.gflop for load in loads), 3)
        for kind, loads in found.loads.items()
        if QUEUES[kind] is Queue.GPU  # the others compute nothing to speak of
    }
    seconds = None
    if found.seconds is not None:
        seconds = {kind.value: spent for kind, spent in found.seconds.items()}
        beside = min(seconds[StepKind.PERTURB], seconds[StepKind.ENCODE])
        seconds["total"] = sum(seconds.values()) - beside
    return PlanOut(
        config=_shareable(as_dict(found.config)),
        plan=as_dict(found.plan),
        evaluation=asdict(found.evaluation),
        steps={kind: len(loads) for kind, loads in found.loads.items()},
        released_before=released_before,
        gflop=gflop | {"total": round(sum(gflop.values()), 3)},
        storage_bytes=found.storage_bytes,
        warnings=found.warnings,
        workers=found.workers,
        seconds=seconds,
    )


def _shareable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the keys: what is polled ends in logs. The report has them."""
    return {name: value for name, value in config.items() if name not in KEYS}


def _archive(protection: Protection) -> ArchiveOut | None:
    if protection.archive_sha256 is None or protection.archive_bytes is None:
        return None
    return ArchiveOut(
        url=f"/v1/protections/{protection.id}/archive",
        sha256=protection.archive_sha256,
        size_bytes=protection.archive_bytes,
    )
