"""Log lines with request, protection and step in every one: for people, or as JSON for machines.

Code logs by the standard library's `logging`; what a line is about is bound to its context.
"""

import logging
from functools import cache

import structlog
from structlog.types import Processor

from api.models import Step
from api.scheduling.leases import Claim
from api.settings import settings

# Uvicorn's own handlers would write each line again; requests are logged by `routes.requests`.
UVICORN = ("uvicorn", "uvicorn.error")


def about(step: Claim | Step) -> dict[str, str]:
    """What lines about a step are bound to."""
    owner = {"protection_id": step.protection_id, "dataset_id": step.dataset_id}
    told = owner | {"request_id": step.request_id}
    named = {"step_id": str(step.step_id if isinstance(step, Claim) else step.id)}
    named |= {"step": f"{step.kind} {step.index}", "attempt": str(step.attempt)}
    return named | {name: str(value) for name, value in told.items() if value is not None}


@cache
def configure() -> None:
    """Let every logger of this process write one form of lines to standard error; once."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    written: list[Processor] = [structlog.dev.ConsoleRenderer(colors=False)]
    if settings().log_format == "json":
        written = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    logging.root.addHandler(handler)
    logging.captureWarnings(True)
    logging.root.setLevel(settings().log_level)
    for name in UVICORN:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
