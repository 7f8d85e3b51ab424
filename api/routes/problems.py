"""Every error as a problem document (RFC 9457): one handler a kind of exception."""

import logging
import re
import reprlib
from collections.abc import Mapping
from http import HTTPMethod, HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy import exc
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from structlog.contextvars import get_contextvars

from api.db import AWAY
from api.errors import AppError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
UNAVAILABLE_RETRY_SECONDS = 5
# `HTTPStatus` names this one differently from one Python to the next.
_NAMES = {413: "CONTENT_TOO_LARGE"}


class Problem(BaseModel):
    """RFC 9457, with an UPPER_SNAKE `code` to program against."""

    title: str = Field(description="the status in words", examples=["Conflict"])
    status: int = Field(description="as in the answer's first line", examples=[409])
    code: str = Field(description="stable, to program against", examples=["DATASET_NOT_READY"])
    detail: str = Field(description="what was expected, what came, and where")


Responses = dict[int | str, dict[str, Any]]


def responses(*statuses: int, also: Responses | None = None) -> Responses:
    """For a route's OpenAPI: which statuses it answers with a problem document, and what else."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return (also or {}) | {
        status: {"content": content, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every exception with a problem document, and describe it in the OpenAPI document."""
    openapi = app.openapi

    def described() -> dict[str, Any]:
        schema = openapi()
        schema["components"]["schemas"][Problem.__name__] = Problem.model_json_schema()
        return schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's way to extend it
    app.add_exception_handler(AppError, _app_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for unavailable in (*AWAY, exc.TimeoutError):
        app.add_exception_handler(unavailable, _unavailable)
    app.add_exception_handler(Exception, _defect)


def _problem(
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> JSONResponse:
    body = {"title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return JSONResponse(
        body | dict(more or {}), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def _app_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AppError)
    headers = dict(error.headers)
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _problem(error.status, error.code, error.message, headers, error.details)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": ".".join(map(str, item["loc"])), "message": _message(request, item)}
        for item in error.errors()
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return _problem(422, "INVALID_REQUEST", detail, more={"errors": errors})


def _message(request: Request, item: Mapping[str, Any]) -> str:
    """What was expected, and what came where that is short: of a missing field, all around it."""
    sent = request.headers.get("content-type", "none")
    is_json = re.fullmatch(r"application/(.+\+)?json\s*(;.*)?", sent, re.IGNORECASE)
    if item["loc"] == ("body",) and item["type"] != "missing" and not is_json:
        return f"Expected Content-Type: application/json, got {sent}"
    told = str(item["msg"]).removeprefix("Value error, ")
    short = item["input"] is None or isinstance(item["input"], str | int | float)
    show = short and item["type"] != "missing"
    return f"{told}, got {reprlib.repr(item['input'])}" if show else told


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    if error.status_code == HTTPStatus.NO_CONTENT:
        return Response(status_code=error.status_code, headers=headers)
    code = _NAMES.get(error.status_code, HTTPStatus(error.status_code).name)
    return _problem(error.status_code, code, str(error.detail), headers)


def _allowed(request: Request) -> list[str]:
    """Of all routes with this path; Starlette tells of the first one only."""
    routes: list[BaseRoute] = request.app.routes
    scopes = {method.value: {**request.scope, "method": method.value} for method in HTTPMethod}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    log.error("the database does not answer", exc_info=error)
    headers = {"Retry-After": str(UNAVAILABLE_RETRY_SECONDS)}
    return _problem(503, "UNAVAILABLE", "The database does not answer; try again.", headers)


def _defect(_request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error)
    request_id = get_contextvars().get("request_id")
    detail = f"A defect of sepgate; the server's log says more about request {request_id}."
    return _problem(500, "INTERNAL", detail)
