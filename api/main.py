"""Builds the FastAPI application: `uvicorn api.main:app`."""

from importlib.metadata import version

from fastapi import FastAPI

from api import logs
from api.routes import datasets, events, health, problems, protections, results
from api.routes.requests import Requests

DESCRIPTION = """The gate through which image data leaves the house: upload a labelled data set, ask
for protection, poll, and download a copy that looks the same and is useless for training.

Poll until `done` is true, waiting `Retry-After` seconds in between. Errors are problem documents
(RFC 9457) with an UPPER_SNAKE `code`."""


def build() -> FastAPI:
    """The application with its routes and error handlers."""
    application = FastAPI(
        title="sepgate",
        version=version("sepgate"),
        description=DESCRIPTION,
        # A redirect would name the scheme and host of this side of a proxy.
        redirect_slashes=False,
    )
    problems.install(application)
    for module in (datasets, protections, results, events, health):
        application.include_router(module.router)
    return application


logs.configure()
# Outside of FastAPI's own handler of defects, so that those have an identifier too.
app = Requests(build())
