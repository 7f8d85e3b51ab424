"""What lies in the store, against what the rows refer to."""

import time
from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import datasets, protections
from api.adoption import MARKER
from api.models import ACTIVE, Dataset, Protection, ProtectionState
from api.storage import dataset_key, protection_key
from tests.chaos.world import GRACE_SECONDS, World

COLLECT_SECONDS = 120
CHECKPOINTS = ("000.pt", "001.pt", "class-patterns.pt")  # of `SMALL_JOB`
KEPT = (
    *(protections.ARCHIVE, protections.RECORD, protections.REFUSED),
    *(protections.PREVIEW, protections.WORST),
    *(f"{protections.CHECKPOINTS}/{name}" for name in CHECKPOINTS),
)


def check(made: World) -> None:
    """Nothing lies there but what rows refer to, and all of that, as soon as it is collected.

    Of a protection that goes on all is its own: that is looked at when it has ended.
    """
    deadline = time.monotonic() + COLLECT_SECONDS
    while True:
        made.stack.kill("sweep")  # it collects when it starts, and then every few minutes
        made.supervise()
        if not (wrong := _waited(made)):
            return
        assert time.monotonic() < deadline, f"left over, or missing: {wrong}"


def _waited(made: World) -> set[str]:
    """What is wrong when what was young is old enough to be collected, if anything is."""
    deadline = time.monotonic() + 2 * GRACE_SECONDS
    while (wrong := _wrong(made)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return wrong


def _wrong(made: World) -> set[str]:
    with Session(made.engine) as session:
        expected = set(_expected(session))
        going = session.scalars(select(Protection.id).where(Protection.state.in_(ACTIVE))).all()
    own = tuple(f"{protection_key(protection_id)}/" for protection_id in going)
    paths = [path for path in made.blobs.rglob("*") if path.is_file()]
    found = {str(path.relative_to(made.blobs)) for path in paths} - {MARKER}
    return {key for key in found ^ expected if not key.startswith(own)}


def _expected(session: Session) -> Iterator[str]:
    succeeded = Protection.state == ProtectionState.SUCCEEDED
    for dataset_id in session.scalars(select(Dataset.id)):
        for name in (datasets.SOURCE, datasets.INDEX):
            yield dataset_key(dataset_id, name)
    for protection_id in session.scalars(select(Protection.id).where(succeeded)):
        for name in KEPT:
            yield protection_key(protection_id, name)
