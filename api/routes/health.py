"""`/livez`: the process answers. `/readyz`: it can do its work. `/metrics`: how it goes."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api import adoption, metrics, queue, revision, storage
from api.db import reading, write_objection
from api.errors import AppError
from api.routes.problems import responses
from api.routes.schemas import Health

router = APIRouter(tags=["health"])


def _check_database() -> str | None:
    with reading() as session:
        objection = revision.objection(session.connection())
    return objection or write_objection()


def _check_storage() -> str | None:
    storage.check()
    return adoption.absence()


PARTS: dict[str, Callable[[], str | None]] = {
    "database": _check_database,
    "queue": queue.check,
    "storage": _check_storage,
}
"""What raises does not answer; what answers may object."""


@router.get("/livez")
def live() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", responses=responses(503))
def ready() -> Health:
    """Database, queue and storage answer and take writes, and the tables are of this version."""
    for part, check in PARTS.items():
        try:
            objection = check()
        except Exception as error:
            raise AppError(
                503, "NOT_READY", f"The {part} does not answer: {type(error).__name__}."
            ) from error
        if objection is not None:
            raise AppError(503, "NOT_READY", objection)
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses=responses(503))
def show_metrics() -> Response:
    """For Prometheus: numbers of all owners together. Keep it from the outside at your proxy."""
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
