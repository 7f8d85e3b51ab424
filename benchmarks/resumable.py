"""Trainings that may be killed at any time and go on from their state of half a minute ago.

Not from that of other code, which might have begun otherwise than this goes on.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

import sep_core
from benchmarks.files import save
from sep_core.training import Progress, State

Event = TypeVar("Event")
Kept = TypeVar("Kept")
Result = TypeVar("Result")

SAVE_SECONDS = 30


def trained(
    file: Path,
    begin: Callable[[State | None], Iterator[Progress | Event]],
    keep: Callable[[Event], Kept],
) -> Generator[float, None, tuple[list[Kept], float]]:
    """Yields the share that is done, in [0, 1]; gives what was kept, and the seconds it took.

    Whoever has saved that deletes `file`.

    Args:
        file: of the state to go on from, which need not be there.
        begin: the training's events, from a state on.
        keep: what is kept of an event that is not progress, for `torch.load`.
    """
    known = torch.load(file, weights_only=True) if file.exists() else None
    known = known if known and known.get("code_sha256") == code_sha256() else None
    kept, before = (known["kept"], known["seconds"]) if known else ([], 0.0)
    began = saved = time.monotonic()
    for event in begin(known and known["training"]):
        match event:
            case Progress(done, total, point):
                yield done / total
                if point is not None and time.monotonic() >= saved + SAVE_SECONDS:
                    saved = time.monotonic()
                    seconds = before + time.monotonic() - began
                    state = {"training": point.state(), "kept": kept, "seconds": seconds}
                    save(file, state | {"code_sha256": code_sha256()})
            case _:
                kept.append(keep(event))
    return kept, before + time.monotonic() - began


def result_of(work: Generator[object, None, Result]) -> Result:
    """What the work gives in the end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            given: Result = end.value
            return given


@cache
def code_sha256() -> str:
    """Of what trains."""
    folder = Path(sep_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
