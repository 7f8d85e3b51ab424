"""`/v1/protections`: ask, poll, cancel, download, delete."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import outbox, protections, report, steps, storage
from api.db import reading, transaction
from api.errors import AppError, not_found
from api.models import ACTIVE, Protection, ProtectionState, Step
from api.routes.deps import (
    CallerDep,
    Cursor,
    Limit,
    SmallBody,
    after,
    next_cursor,
    poll_again,
)
from api.routes.downloads import download
from api.routes.problems import responses
from api.routes.schemas import (
    ArchiveOut,
    ProtectionDetail,
    ProtectionIn,
    ProtectionOut,
    ProtectionPage,
    StepOut,
)

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


@router.post("", status_code=202, responses=responses(400, 404, 409, 413))
def create(
    body: ProtectionIn,
    caller: CallerDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ProtectionDetail:
    """Ask for a protection; it is then carried out by workers. Poll its `Location`."""
    # A null is as good as nothing: clients send back what the schema gives as default.
    config = body.config.model_dump(exclude_unset=True, exclude_none=True)
    request = protections.Request(body.dataset_id, config.pop("preset", "auto"), config)
    try:
        shown = _create(caller.owner_id, request, idempotency_key)
    except IntegrityError:  # the same key came twice at once: the other one made it
        shown = _create(caller.owner_id, request, idempotency_key)
    outbox.send_ready()
    response.headers["Location"] = f"/v1/protections/{shown.id}"
    poll_again(response, done=shown.done)
    return shown


def _create(owner_id: UUID, request: protections.Request, key: str | None) -> ProtectionDetail:
    with transaction() as session:
        return _detail(session, protections.create(session, owner_id, request, key))


@router.get("")
def listing(caller: CallerDep, cursor: Cursor = None, limit: Limit = 50) -> ProtectionPage:
    """The caller's protections, newest first."""
    statement = select(Protection).where(Protection.owner_id == caller.owner_id)
    with reading() as session:
        rows = session.scalars(after(statement, Protection, cursor).limit(limit + 1)).all()
        items = [_shown(session, row, steps.of(session, row.id)) for row in rows[:limit]]
    return ProtectionPage(items=items, next_cursor=next_cursor(rows, limit))


@router.get("/{protection_id}", responses=responses(404))
def show(protection_id: UUID, caller: CallerDep, response: Response) -> ProtectionDetail:
    """State, progress, ETA and every step."""
    with reading() as session:
        shown = _detail(session, protections.get(session, caller.owner_id, protection_id))
    poll_again(response, done=shown.done)
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


@router.delete("/{protection_id}", status_code=204, responses=responses(404, 409))
def delete(protection_id: UUID, caller: CallerDep) -> None:
    """Delete a finished protection: archive, record and keys."""
    with transaction() as session:
        protection = protections.delete(session, caller.owner_id, protection_id)
    storage.remove(storage.protection_key(protection.id))


# Keys and originals: no copy of them is to stay on the way.
CONFIDENTIAL = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
# The page loads nothing and runs nothing, whatever the names in it are.
ONE_FILE = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
}
ZIP: dict[str, Any] = {"application/zip": {}}
ARCHIVE_RESPONSES = responses(
    *(404, 409, 412),
    also={
        200: {"content": ZIP, "description": "the protected archive"},
        304: {"description": "the ETag of If-None-Match is current"},
    },
)
RANGE_RESPONSES = responses(416, also={206: {"content": ZIP, "description": "the range asked for"}})


@router.head("/{protection_id}/archive", response_class=Response, responses=ARCHIVE_RESPONSES)
@router.get(
    "/{protection_id}/archive",
    response_class=Response,
    responses=ARCHIVE_RESPONSES | RANGE_RESPONSES,
)
def archive(protection_id: UUID, caller: CallerDep, request: Request) -> Response:
    """Download the protected archive: resumable, with a strong ETag."""
    with reading() as session:
        protection = _succeeded(session, caller.owner_id, protection_id)
    assert protection.archive_sha256 is not None
    assert protection.archive_bytes is not None
    with _while_it_lasts(protection_id):
        return download(
            request,
            storage.protection_key(protection_id, protections.ARCHIVE),
            sha256=protection.archive_sha256,
            size=protection.archive_bytes,
            media_type="application/zip",
            filename="protected.zip",
        )


@router.get(
    "/{protection_id}/report",
    response_class=JSONResponse,
    responses=responses(404, 409, also={200: {"description": "the owner's record"}}),
)
def report_json(protection_id: UUID, caller: CallerDep) -> JSONResponse:
    """The owner's record: all that was measured, and the keys. Not to be handed on."""
    with _while_it_lasts(protection_id):
        return JSONResponse(_report(caller.owner_id, protection_id), headers=CONFIDENTIAL)


@router.get(
    "/{protection_id}/report.html",
    response_class=HTMLResponse,
    responses=responses(404, 409),
)
def report_html(protection_id: UUID, caller: CallerDep) -> HTMLResponse:
    """The same as a page, whole in one file."""
    with _while_it_lasts(protection_id):
        record = _report(caller.owner_id, protection_id)
        worst = storage.protection_key(protection_id, protections.WORST)
        page = report.render(
            record,
            storage.read_if_there(_preview_key(protection_id)),
            storage.read_if_there(worst),
        )
    return HTMLResponse(page, headers=CONFIDENTIAL | ONE_FILE)


@router.get(
    "/{protection_id}/before-after.png",
    response_class=Response,
    responses=responses(404, 409, also={200: {"content": {"image/png": {}}}}),
)
def preview(protection_id: UUID, caller: CallerDep) -> Response:
    """Originals, what leaves, and the change made visible. Shows originals: not to be handed on."""
    with reading() as session:
        _succeeded(session, caller.owner_id, protection_id)
    with _while_it_lasts(protection_id):
        picture = storage.read(_preview_key(protection_id))
    return Response(picture, media_type="image/png", headers=CONFIDENTIAL)


@contextmanager
def _while_it_lasts(protection_id: UUID) -> Iterator[None]:
    """It may be deleted between a look at its row and a look at its blobs."""
    try:
        yield
    except FileNotFoundError as error:
        raise not_found("result of protection", protection_id) from error


def _preview_key(protection_id: UUID) -> str:
    return storage.protection_key(protection_id, protections.PREVIEW)


def _report(owner_id: UUID, protection_id: UUID) -> report.Record:
    with reading() as session:
        protection = _succeeded(session, owner_id, protection_id)
        parts = steps.of(session, protection_id)
    return report.build(protection, parts)


def _succeeded(session: Session, owner_id: UUID, protection_id: UUID) -> Protection:
    """The caller's protection, if its result is there.

    Raises:
        AppError: 404; 409 if it is not there, with `Retry-After` if it will be.
    """
    protection = protections.get(session, owner_id, protection_id)
    if protection.state is ProtectionState.SUCCEEDED:
        return protection
    active = protection.state in ACTIVE
    raise AppError(
        409,
        "PROTECTION_NOT_FINISHED" if active else "PROTECTION_WITHOUT_RESULT",
        f"Expected a protection that succeeded, {protection_id} is {protection.state}.",
        retry_after_seconds=5 if active else None,
    )


def _detail(session: Session, protection: Protection) -> ProtectionDetail:
    parts = steps.of(session, protection.id)
    shown = _shown(session, protection, parts)
    return ProtectionDetail(**shown.model_dump(), steps=[_step(session, step) for step in parts])


def _step(session: Session, step: Step) -> StepOut:
    return StepOut(
        kind=step.kind,
        index=step.index,
        state=step.state,
        progress=round(steps.share_done(step), 4),
        eta_seconds=steps.step_eta_seconds(session, step),
        attempt=step.attempt,
        worker=step.lease_owner,
        error_code=step.error_code,
        error=step.error,
        started_at=step.started_at,
        finished_at=step.finished_at,
    )


def _shown(session: Session, protection: Protection, parts: list[Step]) -> ProtectionOut:
    return ProtectionOut(
        id=protection.id,
        dataset_id=protection.dataset_id,
        dataset_name=protection.dataset_name,
        state=protection.state,
        done=protection.state not in ACTIVE,
        cancel_requested=protection.cancel_requested,
        progress=round(steps.progress(parts), 4),
        eta_seconds=steps.eta_seconds(session, protection, parts),
        requested=protection.requested | {"config": _shareable(protection.requested["config"])},
        config=protection.config and _shareable(protection.config),
        plan=protection.plan,
        archive=_archive(protection),
        error_code=protection.error_code,
        error=protection.error,
        created_at=protection.created_at,
        started_at=protection.started_at,
        finished_at=protection.finished_at,
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
