"""Builds the FastAPI application: `uvicorn api.main:app`."""

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from api import logs
from api.routes import datasets, events, health, problems, protections, results
from api.routes.requests import Requests

DESCRIPTION = """The gate through which image data leaves the house: upload a labelled data set, ask
for protection, poll, and download a copy that looks nearly the same and from which ordinary
networks learn much less. It is not proof against everybody: the report says what was measured.

Poll until `done` is true, waiting `Retry-After` seconds in between. Errors are problem documents
(RFC 9457) with an UPPER_SNAKE `code`."""


def build() -> FastAPI:
    """The application with its routes and error handlers."""
    # FastAPI's own pages load their scripts from the internet, and ReDoc a logo even so.
    application = FastAPIOffline(
        redoc_url=None,
        title="sepgate",
        version=version("sepgate"),
        description=DESCRIPTION,
        # A redirect would name the scheme and host of this side of a proxy.
        redirect_slashes=False,
    )
    problems.install(application)
    for module in (datasets, protections, results, events, health):
        application.include_router(module.router)
    application.get("/", include_in_schema=False)(show_the_way)
    return application


def show_the_way() -> RedirectResponse:
    """To the API's description; by a relative address, which names no scheme and no host."""
    return RedirectResponse("docs")


logs.configure()
# Outside of FastAPI's own handler of defects, so that those have an identifier too.
app = Requests(build())
