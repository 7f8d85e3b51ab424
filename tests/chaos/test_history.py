"""The storm's judge: it lets what happens pass, and nothing that must not happen."""

import socket
from typing import Any

import pytest

from tests.chaos import history

HOST = socket.gethostname()
Event = dict[str, Any]


def event(what: str, **data: object) -> Event:
    return {"what": what, "data": {"kind": "train", "index": 0} | data}


def running(pid: int, lease: str) -> Event:
    return event("step.running", worker=f"{HOST}/an-instance:{pid}", lease=lease)


def ended(what: str, pid: int, lease: str, **more: object) -> Event:
    return event(what, process=f"{HOST}:{pid}", lease=lease, **more)


FIRST, SECOND = running(1, "a"), running(2, "b")
LOST = ended("step.ready", 9, "a", error_code="WORKER_LOST")
DONE = ended("step.done", 2, "b")
BACK = event("step.waiting", error_code="BLOB_MISSING")


def test_a_lost_lease_and_a_result_of_who_was_given_the_step() -> None:
    waiting = event("step.ready")
    drained = ended("step.ready", 3, "c", error_code="WORKER_DRAINED")
    told = history.told([waiting, running(3, "c"), drained, FIRST, LOST, SECOND, DONE])
    assert told.done == {("train", 0): 1}
    assert (told.setbacks, told.lost) == ({"WORKER_DRAINED": 1, "WORKER_LOST": 1}, {"a"})


def test_what_was_lost_is_made_again_and_accepted_once() -> None:
    told = history.told([FIRST, ended("step.done", 1, "a"), BACK, SECOND, DONE])
    assert (told.done, told.setbacks) == ({("train", 0): 1}, {"made again": 1})


@pytest.mark.parametrize(
    "then",
    [
        [ended("step.done", 1, "a")],  # by its own name, after it was lost
        [ended("step.done", 1, "b")],  # as the row looks to who does not look at its token
        [ended("step.ready", 1, "b")],
        [DONE, DONE],
        [BACK],
        [DONE, BACK, BACK],
        [running(1, "c")],
        [DONE, running(1, "b")],
    ],
)
def test_what_must_not_happen(then: list[Event]) -> None:
    with pytest.raises(AssertionError):
        history.told([FIRST, LOST, SECOND, *then])
