"""`/livez`: the process answers. `/readyz`: it can do its work. `/metrics`: how it goes."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text

from api import metrics, queue, storage
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


@router.get("/metrics", response_class=Response, responses=responses(503))
def show_metrics() -> Response:
    """For Prometheus: numbers of all owners together. Keep it from the outside at your proxy."""
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _check_database() -> None:
    with reading() as session:
        session.execute(text("SELECT count(*) FROM owners WHERE 1 = 0"))
