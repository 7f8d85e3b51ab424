"""Every line says which request, protection and step it is about, as one JSON object."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any
from uuid import uuid4

import httpx2
import pytest


def lines(program: str, log_format: str = "json") -> list[Any]:
    """What a program logs: in a process of its own, since logging is configured once."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"SEPGATE_LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    written = ran.stderr.splitlines()
    return [json.loads(line) for line in written] if log_format == "json" else written


BROKEN = """
    import logging
    import warnings
    from structlog.contextvars import bound_contextvars
    from api import logs

    logs.configure()
    logs.configure()
    with bound_contextvars(protection_id="p", step="train 0"):
        logging.getLogger("worker.tasks").warning("got %d of %s", 3, "four")
        warnings.warn("odd")
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("worker.tasks").exception("broke")
    logging.getLogger("uvicorn.error").info("over")
"""


def test_a_line_is_one_object_with_all_it_is_bound_to() -> None:
    said, warned, broke, over = lines(BROKEN)
    assert said.pop("timestamp").endswith("Z")
    assert said == {
        "event": "got 3 of four",
        "level": "warning",
        "logger": "worker.tasks",
        "protection_id": "p",
        "step": "train 0",
    }
    assert (warned["logger"], warned["step"]) == ("py.warnings", "train 0")
    assert "odd" in warned["event"]
    assert "ZeroDivisionError: division by zero" in broke["exception"]
    assert broke["step"] == "train 0"
    assert (over["event"], "step" in over) == ("over", False)


def test_people_read_text() -> None:
    said = lines(BROKEN, "text")
    assert "got 3 of four" in said[0]
    assert "protection_id=p" in said[0]
    assert any("ZeroDivisionError" in line for line in said)


def test_every_answer_names_its_request(client: httpx2.Client) -> None:
    made = {client.get("/v1/datasets").headers["X-Request-ID"] for _ in range(2)}
    assert len(made) == 2
    given = client.get("/livez", headers={"X-Request-ID": "proxy-1.a"})
    assert given.headers["X-Request-ID"] == "proxy-1.a"
    refused = client.get(f"/v1/protections/{uuid4()}")
    assert refused.status_code == 404
    assert refused.headers["X-Request-ID"]


@pytest.mark.parametrize("given", ["a b", "x" * 65, "{}", ""])
def test_what_is_no_plain_word_is_not_repeated(client: httpx2.Client, given: str) -> None:
    answer = client.get("/livez", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] != given
