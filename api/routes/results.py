"""`/v1/protections/{id}/...`: what a protection that succeeded has come to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from sqlalchemy.orm import Session

from api import protections, steps, storage
from api.db import reading
from api.errors import AppError, not_found
from api.evidence import report
from api.models import ACTIVE, Protection, ProtectionState, Step
from api.routes.deps import CallerDep
from api.routes.downloads import download
from api.routes.problems import responses

router = APIRouter(
    prefix="/v1/protections", tags=["protections"], responses=responses(401, 422, 503)
)

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
def report_json(protection_id: UUID, caller: CallerDep) -> StreamingResponse:
    """The owner's record: all that was measured, and the keys. Not to be handed on."""
    with _while_it_lasts(protection_id):
        record = report.write(*_of(caller.owner_id, protection_id))
    return StreamingResponse(record, media_type="application/json", headers=CONFIDENTIAL)


@router.get(
    "/{protection_id}/report.html",
    response_class=HTMLResponse,
    responses=responses(404, 409),
)
def report_html(protection_id: UUID, caller: CallerDep) -> HTMLResponse:
    """The same as a page, whole in one file, but for what is said of every image."""
    with _while_it_lasts(protection_id):
        record = report.build(*_of(caller.owner_id, protection_id))
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
        protection = _succeeded(session, caller.owner_id, protection_id)
    if protection.dataset_id is None:
        gone = f"The picture of protection {protection_id} went with its data set's originals."
        raise AppError(404, "NOT_FOUND", gone)
    with _while_it_lasts(protection_id):
        picture = storage.read(_preview_key(protection_id))
    return Response(picture, media_type="image/png", headers=CONFIDENTIAL)


@contextmanager
def _while_it_lasts(protection_id: UUID) -> Iterator[None]:
    """It may be deleted between a look at its row and a look at its blobs."""
    try:
        yield
    except FileNotFoundError as error:
        with reading() as session:
            is_kept = session.get(Protection, protection_id) is not None
        if is_kept:
            lost = f"The storage does not have the result of protection {protection_id} now."
            raise AppError(503, "UNAVAILABLE", f"{lost} Its operator can tell why.") from error
        raise not_found("result of protection", protection_id) from error


def _preview_key(protection_id: UUID) -> str:
    return storage.protection_key(protection_id, protections.PREVIEW)


def _of(owner_id: UUID, protection_id: UUID) -> tuple[Protection, list[Step]]:
    with reading() as session:
        return _succeeded(session, owner_id, protection_id), steps.of(session, protection_id)


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
