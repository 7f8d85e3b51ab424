"""What several routes need: the caller, pages of a list, and the headers of a poll."""

import base64
import binascii
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, or_
from starlette.exceptions import HTTPException
from starlette.types import Message

from api import keys
from api.db import reading
from api.errors import AppError
from api.keys import Caller
from api.models import Dataset, Protection

RETRY_AFTER_SECONDS, MOST_RETRY_AFTER_SECONDS = 1, 15
RETRY_SHARE = 1 / 50
"""Of the time that is left."""
MAX_JSON_BYTES = 2**20

_bearer = HTTPBearer(
    auto_error=False, description="An API key: `sepgate keys create --owner NAME` makes one."
)


def caller(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Who makes this request.

    Raises:
        AppError: 401.
    """
    if credentials is None:
        raise AppError(
            401, "UNAUTHENTICATED", "Expected `Authorization: Bearer <API key>`, got none."
        )
    with reading() as session:
        return keys.authenticate(session, credentials.credentials)


CallerDep = Annotated[Caller, Depends(caller)]


Row = TypeVar("Row", Dataset, Protection)

LIMIT: Any = Field(50, ge=1, le=200, description="rows of a page")


class Page(BaseModel):
    """Which rows of a list are asked for; what is misspelt would else be a list of all."""

    model_config = ConfigDict(extra="forbid")

    cursor: str | None = Field(
        None, description="`next_cursor` of the page before; opaque", max_length=200
    )
    limit: int = LIMIT


def after(statement: Select[Row], model: type[Row], cursor: str | None) -> Select[Row]:
    """Newest first, from the cursor on."""
    if cursor is not None:
        at, identifier = _decode(cursor)
        statement = statement.where(
            or_(
                model.created_at < at,
                (model.created_at == at) & (model.id < identifier),
            )
        )
    return statement.order_by(model.created_at.desc(), model.id.desc())


def next_cursor(rows: Sequence[Row], limit: int) -> str | None:
    """Where the next page begins; None at the end. `rows` has one more than a page if there is."""
    if len(rows) <= limit:
        return None
    last = rows[limit - 1]
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()}|{last.id}".encode()).decode()


def poll_again(response: Response, *, done: bool, eta_seconds: float | None = None) -> None:
    """Tell a client that polls when to come again: the nearer the end, the sooner."""
    if not done:
        seconds = max(RETRY_AFTER_SECONDS, int((eta_seconds or 0) * RETRY_SHARE))
        response.headers["Retry-After"] = str(min(seconds, MOST_RETRY_AFTER_SECONDS))


def _decode(cursor: str) -> tuple[datetime, UUID]:
    try:
        at, identifier = base64.urlsafe_b64decode(cursor.encode()).decode().split("|")
        return datetime.fromisoformat(at).astimezone(UTC), UUID(identifier)
    except (ValueError, OverflowError, binascii.Error) as error:
        raise AppError(
            422, "INVALID_CURSOR", "cursor: expected `next_cursor` of an earlier page."
        ) from error


class SmallBody(APIRoute):
    """A route whose body is a small document: it is read into memory before the key is looked at.

    FastAPI's own limit (`max_body_size`) answers an announced length with plain text.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with a limit on what it may read."""
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            return await handler(Request(request.scope, _counted(request)))

        return limited


def _counted(request: Request) -> Callable[[], Coroutine[Any, Any, Message]]:
    total = 0

    async def receive() -> Message:
        nonlocal total
        message = await request.receive()
        total += len(message.get("body", b""))
        if total > MAX_JSON_BYTES:
            # Not an AppError: FastAPI takes any other exception for a broken body, 400.
            raise HTTPException(413, f"Expected a body of at most {MAX_JSON_BYTES} bytes.")
        return message

    return receive
