"""`/v1/datasets`: upload, look, retry, delete."""

import hashlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from sqlalchemy import select
from starlette.requests import ClientDisconnect

from api import adoption, datasets, progress, protections, storage
from api.db import now, reading, transaction
from api.errors import AppError, StorageFull
from api.models import Dataset, DatasetState, Step
from api.routes.deps import CallerDep, Page, after, next_cursor, poll_again
from api.routes.problems import responses
from api.routes.schemas import DatasetDetail, DatasetOut, DatasetPage
from api.scheduling import outbox
from api.settings import settings

router = APIRouter(prefix="/v1/datasets", tags=["data sets"], responses=responses(401, 422, 503))

CHECK_ROOM_EVERY_BYTES = 2**24

# A control character has no place in a name, and PostgreSQL refuses NUL.
NAME: dict[str, Any] = {
    "min_length": 1,
    "max_length": 200,
    "pattern": r"^[^\x00-\x1f\x7f]*$",
    "description": "for people",
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "A zip of class folders, with or without train/, val/, test/ above them.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("", status_code=202, openapi_extra=BODY, responses=responses(400, 413, 415, 507))
async def upload(
    request: Request,
    response: Response,
    caller: CallerDep,
    name: Annotated[str, Query(**NAME)] = "data set",
) -> DatasetOut:
    """Upload a data set as the raw request body; a worker then reads it. Poll its `Location`."""
    _check_no_form(request)
    dataset_id = uuid4()
    body = _Body(request)
    await run_in_threadpool(_check_room, request)
    await _store(dataset_id, body)
    # A commit whose answer is lost may have been made: the blob stays, and goes if no row keeps it.
    shown = await run_in_threadpool(_record, caller.owner_id, dataset_id, name, body)
    await run_in_threadpool(outbox.try_to_send)
    response.headers["Location"] = f"/v1/datasets/{dataset_id}"
    poll_again(response, done=False)
    return shown


class DatasetQuery(Page):
    """Which data sets."""

    state: DatasetState | None = Field(None, description="those in this state only")
    sha256: str | None = Field(None, description="those of an upload with this digest only")


@router.get("")
def listing(caller: CallerDep, wanted: Annotated[DatasetQuery, Query()]) -> DatasetPage:
    """The caller's data sets, newest first."""
    statement = select(Dataset).where(Dataset.owner_id == caller.owner_id)
    if wanted.state is not None:
        statement = statement.where(Dataset.state == wanted.state)
    if wanted.sha256 is not None:
        statement = statement.where(Dataset.sha256 == wanted.sha256)
    limit = wanted.limit
    with reading() as session:
        rows = session.scalars(after(statement, Dataset, wanted.cursor).limit(limit + 1)).all()
        steps, at = datasets.ingest_steps(session, [row.id for row in rows]), now(session)
        items = [_shown(row, steps[row.id], at) for row in rows[:limit]]
    return DatasetPage(items=items, next_cursor=next_cursor(rows, limit))


@router.get("/{dataset_id}", responses=responses(404))
def show(dataset_id: UUID, caller: CallerDep, response: Response) -> DatasetDetail:
    """State, counts, and every refused file with its reason."""
    with reading() as session:
        dataset = datasets.get(session, caller.owner_id, dataset_id)
        session.refresh(dataset, ["refused"])
        shown = _shown(dataset, datasets.ingest_step(session, dataset_id), now(session))
    poll_again(response, done=shown.done, eta_seconds=shown.eta_seconds)
    return DatasetDetail.model_validate(shown.model_dump() | {"refused": dataset.refused})


@router.post("/{dataset_id}/retry", status_code=202, responses=responses(404, 409))
def retry(dataset_id: UUID, caller: CallerDep, response: Response) -> DatasetOut:
    """Read an upload again that was rejected for no fault of its own: for a lost worker, a full
    disk, a defect. It is kept for a week, unless the operator has set another time."""
    with transaction() as session:
        dataset = datasets.retry(session, caller.owner_id, dataset_id)
        shown = _shown(dataset, datasets.ingest_step(session, dataset_id), now(session))
    outbox.try_to_send()
    poll_again(response, done=shown.done)
    return shown


@router.delete("/{dataset_id}", status_code=204, responses=responses(404, 409))
def delete(dataset_id: UUID, caller: CallerDep) -> None:
    """Delete the originals and all that was read from them, also while they are read, but not while
    they are protected. Archives made of them stay; their before/after pictures, which show
    originals, go."""
    with transaction() as session:
        made = protections.made_of(session, dataset_id)
        dataset = datasets.delete(session, caller.owner_id, dataset_id)
    datasets.clean(dataset)
    protections.clean_originals(made)


class _Body:
    """The request's body on its way to storage: counted and hashed as it arrives."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        checked = 0
        async for chunk in self._request.stream():
            self.size_bytes += len(chunk)
            if self.size_bytes > settings().max_upload_bytes:
                raise _too_large(f"more than {settings().max_upload_bytes}")
            if self.size_bytes - checked > CHECK_ROOM_EVERY_BYTES:
                # The length may not be announced, and others upload at the same time.
                checked = self.size_bytes
                await run_in_threadpool(_check_free, 0)
            self._hash.update(chunk)
            if chunk:
                yield chunk


async def _store(dataset_id: UUID, body: _Body) -> None:
    try:
        await storage.write_stream(storage.dataset_key(dataset_id, datasets.SOURCE), body.chunks())
    except BaseException as error:
        await run_in_threadpool(storage.remove, storage.dataset_key(dataset_id))
        if not isinstance(error, ClientDisconnect):
            raise
        raise AppError(400, "UPLOAD_BROKEN_OFF", "The upload ended before its end.") from error


def _check_no_form(request: Request) -> None:
    """A form's framing would be taken for a part of the archive, and of its digest."""
    sent = request.headers.get("content-type", "")
    if sent.lower().startswith("multipart/"):
        raise AppError(
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            f"Expected the archive itself as the body (curl -T my.zip), got a form: {sent[:80]}.",
        )


def _check_room(request: Request) -> None:
    """Refuse at once what the announced length shows not to fit."""
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() else 0
    if size > settings().max_upload_bytes:
        raise _too_large(str(size))
    _check_free(size)


def _check_free(size: int) -> None:
    absence = adoption.absence()
    if absence is not None:
        raise AppError(503, "UNAVAILABLE", absence)
    free = storage.free_bytes()
    if free is not None and size + settings().min_free_bytes > free:
        raise StorageFull(
            f"Expected room for {size} bytes beside a reserve of {settings().min_free_bytes}, "
            f"got {free} free bytes."
        )


def _too_large(size: str) -> AppError:
    limit = settings().max_upload_bytes
    return AppError(413, "UPLOAD_TOO_LARGE", f"Expected at most {limit} bytes, got {size}.")


def _record(owner_id: UUID, dataset_id: UUID, name: str, body: _Body) -> DatasetOut:
    with transaction() as session:
        dataset = datasets.create(session, owner_id, dataset_id, name, body.sha256, body.size_bytes)
        return _shown(dataset, datasets.ingest_step(session, dataset_id), now(session))


def _shown(dataset: Dataset, step: Step, at: datetime) -> DatasetOut:
    summary = dataset.summary or {}
    return DatasetOut(
        id=dataset.id,
        name=dataset.name,
        state=dataset.state,
        done=dataset.state is not DatasetState.INGESTING,
        sha256=dataset.sha256,
        size_bytes=dataset.size_bytes,
        images=summary.get("images"),
        refused_count=summary.get("refused"),
        classes=summary.get("classes"),
        counts=summary.get("counts"),
        sizes=summary.get("sizes"),
        median_side=summary.get("median_side"),
        progress=round(progress.share_done(step), 4),
        eta_seconds=progress.step_eta_seconds(step, at),
        error_code=dataset.error_code,
        error=dataset.error,
        created_at=dataset.created_at,
        finished_at=dataset.finished_at,
    )
