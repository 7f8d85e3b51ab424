"""`/livez`: the process answers. `/readyz`: it can do its work."""

from fastapi import APIRouter
from sqlalchemy import text

from api import queue, storage
from api.db import reading
from api.errors import AppError
from api.routes.problems import responses
from api.routes.schemas import Health

router = APIRouter(tags=["health"])


@router.get("/livez")
def live() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=responses(503))
def ready() -> Health:
    """Database, queue and storage answer."""
    for part, check in (
        ("database", _check_database),
        ("queue", queue.check),
        ("storage", storage.check),
    ):
        try:
            check()
        except Exception as error:
            raise AppError(
                503, "NOT_READY", f"The {part} does not answer: {type(error).__name__}."
            ) from error
    return Health(status="ok")


def _check_database() -> None:
    with reading() as session:
        session.execute(text("SELECT count(*) FROM owners WHERE 1 = 0"))
