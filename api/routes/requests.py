"""Every request has an identifier, in its answer and in every log line, and its end is logged."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

log = logging.getLogger("sepgate.requests")

HEADER = "X-Request-ID"
_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ABOUT = re.compile(r"/v1/(dataset|protection)s/([0-9a-f-]{36})(?:/|$)")
_QUIET = ("/livez", "/readyz", "/metrics")


class Requests:
    """ASGI middleware. A proxy's identifier is kept if it is a plain word of up to 64 letters."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else a server sends, which passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        identifier = given if _GIVEN.fullmatch(given) else uuid4().hex
        about = _ABOUT.match(scope["path"])
        bound = {f"{about[1]}_id": about[2]} if about else {}
        status, began = 500, time.monotonic()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = identifier
            await send(message)

        with bound_contextvars(request_id=identifier, **bound):
            try:
                await self._app(scope, receive, answer)
            finally:
                log.log(
                    logging.DEBUG if scope["path"] in _QUIET else logging.INFO,
                    "%s %s: %d in %.0f ms",
                    *(scope["method"], scope["path"], status, 1000 * (time.monotonic() - began)),
                )
