"""What has happened to a protection: page by page, or as it happens."""

import math
import time
from collections.abc import AsyncIterable, Sequence
from functools import partial
from typing import Annotated
from uuid import UUID

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api import events, keys, progress
from api.db import now, reading
from api.errors import not_found
from api.keys import Caller
from api.models import ACTIVE, Event, Protection
from api.routes.deps import LIMIT, CallerDep, SmallBody
from api.routes.problems import responses
from api.routes.schemas import EventOut, EventPage, ProgressOut

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 5.0
"""It reads every step."""
STREAM_PAGE = 200
LAST_ID = 2**63 - 1

router = APIRouter(
    prefix="/v1/protections",
    tags=["protections"],
    responses=responses(401, 422, 503),
    route_class=SmallBody,
)


class EventQuery(BaseModel):
    """Which events."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(
        0, ge=0, le=LAST_ID, description="`id` of the last event that is known; 0 is none"
    )
    limit: int = LIMIT


def _check_known(protection_id: UUID, caller: CallerDep) -> None:
    """It is there, or it was: one from before there were events has none."""
    with reading() as session:
        protection = session.get(Protection, protection_id)
        if protection is not None and protection.owner_id == caller.owner_id:
            return
        if not events.after(session, caller.owner_id, protection_id, 0, 1):
            raise not_found("protection", protection_id)


Known = Annotated[None, Depends(_check_known)]


@router.get("/{protection_id}/events", responses=responses(404))
def listing(
    protection_id: UUID, caller: CallerDep, _known: Known, wanted: Annotated[EventQuery, Query()]
) -> EventPage:
    """What has happened to it and to its steps, oldest first; kept when it is deleted."""
    after, limit = wanted.after, wanted.limit
    with reading() as session:
        found = events.after(session, caller.owner_id, protection_id, after, limit + 1)
    items = [EventOut.model_validate(event) for event in found[:limit]]
    return EventPage(items=items, next_after=items[-1].id if len(found) > limit else None)


LastEvent = Annotated[
    int,
    Header(ge=0, le=LAST_ID, description="goes on after this event, as browsers do by themselves"),
]


def _check_goes_on(
    protection_id: UUID, caller: CallerDep, _known: Known, last_event_id: LastEvent = 0
) -> None:
    """A browser connects again when a stream has ended, unless the answer is 204."""
    over, news, _ = _news(caller.owner_id, protection_id, last_event_id, look=False)
    if over and not news:
        raise HTTPException(204)


@router.get(
    "/{protection_id}/events/stream",
    response_class=EventSourceResponse,
    responses=responses(404, also={204: {"description": "It is over, and all of it is known"}}),
    dependencies=[Depends(_check_goes_on)],
)
async def stream(
    protection_id: UUID,
    caller: CallerDep,
    _known: Known,
    last_event_id: LastEvent = 0,
) -> AsyncIterable[ServerSentEvent]:
    """The same as server-sent events, from the first on; ends when the protection is over.

    Between them come `progress` events, which have no `id` and are not kept.
    """
    told: ProgressOut | None = None
    asked = -math.inf
    while True:
        look = time.monotonic() - asked >= PROGRESS_SECONDS
        asked = time.monotonic() if look else asked
        if look and not await run_sync(partial(_is_valid, caller)):
            return
        over, news, how_far = await run_sync(
            partial(_news, caller.owner_id, protection_id, last_event_id, look=look)
        )
        for event in news:
            last_event_id = event.id
            shown = EventOut.model_validate(event)
            yield ServerSentEvent(id=str(event.id), event=event.what, data=shown)
        if over and not news:
            return
        if how_far is not None and how_far != told:
            told = how_far
            yield ServerSentEvent(event="progress", data=how_far)
        if len(news) < STREAM_PAGE:
            await anyio.sleep(POLL_SECONDS)


def _is_valid(caller: Caller) -> bool:
    """A stream may last for days: whose key was revoked meanwhile is told no more."""
    with reading() as session:
        return keys.is_valid(session, caller)


def _news(
    owner_id: UUID, protection_id: UUID, last: int, *, look: bool
) -> tuple[bool, Sequence[Event], ProgressOut | None]:
    """Whether it is over, what came after the last event and, if one looks, how far it is."""
    with reading() as session:
        protection = session.get(Protection, protection_id)
        over = protection is None or protection.state not in ACTIVE
        how_far = None if over or not look else _progress(session, protection)
        return over, events.after(session, owner_id, protection_id, last, STREAM_PAGE), how_far


def _progress(session: Session, protection: Protection | None) -> ProgressOut:
    assert protection is not None
    found = progress.of(session, [protection.id])[protection.id]
    return ProgressOut(
        progress=round(found.share, 4),
        eta_seconds=progress.eta_seconds(session, protection, found, now(session)),
    )
