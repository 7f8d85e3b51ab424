"""Whoever has lost its step, and wakes up late, stores nothing more."""

from pathlib import Path
from uuid import uuid4

import pytest

from api import datasets, steps, storage
from api.db import transaction
from api.models import Step, StepKind
from api.scheduling import leases
from api.scheduling.leases import Claim
from tests import pictures
from tests.worker import jobs
from worker import resume
from worker.lease import LeaseLost
from worker.steps import run

pytestmark = pytest.mark.usefixtures("environment")

ARCHIVE = pictures.zipped(pictures.class_folders(8, 2))


def stored() -> dict[Path, int]:
    """When what lies whole in the store was written."""
    folder = storage.local_path("")
    assert folder is not None
    files = [path for path in folder.rglob("*") if path.is_file() and "#" not in path.name]
    return {path: path.stat().st_mtime_ns for path in files}


def claimed(kind: StepKind) -> Claim:
    """The step of that kind, of a job whose earlier ones are done."""
    if kind is StepKind.INGEST:
        dataset_id, owner = uuid4(), jobs.owner()
        digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), ARCHIVE)
        with transaction() as session:
            datasets.create(session, owner, dataset_id, "test", digest, len(ARCHIVE))
    else:
        jobs.ask(jobs.upload(ARCHIVE).id)
        jobs.work(until=kind)
    with transaction() as session:
        claim = leases.claim(session, jobs.ready()[0].id, "who sleeps")
        assert claim is not None
        assert claim.kind is kind
        if claim.protection_id is not None:
            steps.start(session, claim)
    return claim


@pytest.mark.parametrize(
    ("kind", "after", "save_seconds"),
    [
        (StepKind.INGEST, 0, 60),
        (StepKind.TRAIN, 0, 60),  # decoded pixels
        (StepKind.TRAIN, 2, 60),  # a checkpoint
        (StepKind.TRAIN, 2, 0),  # the state of the training
        (StepKind.TRAIN, 4, 60),  # patterns
        (StepKind.PERTURB, 0, 60),
        (StepKind.ENCODE, 0, 60),  # the files
        (StepKind.ENCODE, 1, 60),  # the table
        (StepKind.PACKAGE, 0, 60),  # the archive
        (StepKind.PACKAGE, 1, 60),  # a picture
        (StepKind.EVALUATE, 0, 0),  # the state of the training
    ],
)
def test_it_stores_nothing_more(
    kind: StepKind, after: int, save_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`after` so many blobs of the step have been stored while it was its own."""
    monkeypatch.setattr(resume, "SAVE_SECONDS", save_seconds)
    claim = claimed(kind)
    before, kept = stored(), None

    def tick(_done: int, _total: int) -> None:
        nonlocal kept
        if kept is None and len(stored()) - len(before) >= after:
            with transaction() as session:
                leases.give_back(session, session.get_one(Step, claim.step_id), counts=True)
            kept = stored()

    with pytest.raises(LeaseLost):
        run(claim, tick)
    assert stored() == kept
