"""What the events of a protection say of who ran its steps, and what must be true of that."""

import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.acceptance.stack import pid_of

BY_OTHERS = {"WORKER_LOST", "PROCESS_DIED"}
"""Why a claim may be ended by another process than the one that made it."""

Name = tuple[str, int]


@dataclass
class History:
    """Of a protection's steps.

    Attributes:
        claims: those that have not ended, as `step.running` told of them, by the step's name.
        leases: the names of all there were.
        lost: the names of those that ran out.
        done: how often a result of a step was accepted that counts.
        setbacks: why steps were begun again, or made again.
    """

    claims: dict[Name, dict[str, Any]] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    done: Counter[Name] = field(default_factory=Counter)
    setbacks: Counter[str] = field(default_factory=Counter)


def told(events: Iterable[dict[str, Any]]) -> History:
    """Follow every claim from its beginning to its end.

    Raises:
        AssertionError: two had a step at once, or one was ended by a process that did not have it.
    """
    history = History()
    for event in events:
        if event["what"] == "step.running":
            _begin(history, event["data"])
        elif event["what"] == "step.waiting":
            _take_back(history, event["data"])
        elif "lease" in event["data"]:
            _end(history, event["what"], event["data"])
    return history


def _begin(history: History, data: dict[str, Any]) -> None:
    step = (data["kind"], data["index"])
    assert step not in history.claims, f"{step} was given to two: {history.claims[step]}, {data}"
    assert data["lease"] not in history.leases, f"{step}: not a lease of its own: {data}"
    history.leases.add(data["lease"])
    history.claims[step] = data


def _take_back(history: History, data: dict[str, Any]) -> None:
    """What it had stored is lost: its result counts no more, and another is accepted."""
    step = (data["kind"], data["index"])
    assert history.done[step] == 1, f"{step} was taken back and had not been accepted: {data}"
    history.done[step] = 0
    history.setbacks.update(["made again"])


def _end(history: History, what: str, data: dict[str, Any]) -> None:
    step, why = (data["kind"], data["index"]), data.get("error_code")
    claim = history.claims.pop(step, None)
    assert claim is not None, f"{step} was nobody's: {what} {data}"
    assert data["lease"] == claim["lease"], f"{step} was ended by {data}, claimed by {claim}"
    if why not in BY_OTHERS:
        claimant = f"{socket.gethostname()}:{pid_of(claim['worker'])}"
        assert data["process"] == claimant, f"{step}: {what} by {data}, claimed by {claim}"
    history.done[step] += what == "step.done"
    history.setbacks.update([why] if why else [])
    history.lost.update([data["lease"]] if why == "WORKER_LOST" else [])
