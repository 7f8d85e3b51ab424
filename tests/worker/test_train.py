"""Trainings that diverge, are broken off, or go on."""

from typing import Any

import pytest

from api import protections, steps, storage
from api.db import reading, transaction
from api.evidence import report
from api.models import ProtectionState, Step, StepKind
from api.scheduling import endings
from tests import pictures
from tests.worker import jobs
from worker import resume
from worker.data import checkpoint_key, training_key
from worker.lease import DrainFlag, WorkerDraining
from worker.steps import train

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(8, 3)
WILD: dict[str, Any] = {
    "surrogate": "vit",
    "learning_rate": 100,
    "weight_decay": 1,
    "epochs": 1,
    "checkpoints": 1,
    "appropriator_epochs": 3,
    "batch_size": 2,
}
"""The transformer trains by AdamW, at a rate of its own; what SGD trains diverges."""


def test_a_training_that_diverges_fails_the_protection_and_names_it() -> None:
    wild: dict[str, Any] = {
        "surrogate": "linear",
        "learning_rate": 100,
        "weight_decay": 1,
        "epochs": 20,
    }
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id, **wild)
    jobs.work()
    protection = jobs.show(protection_id)
    assert protection.state is ProtectionState.FAILED
    assert protection.error_code == "TRAINING_DIVERGED"
    assert "training linear (surrogate, crop-flip): try a lower" in str(protection.error)


def test_a_later_training_that_diverges_is_recorded_and_the_protection_goes_on() -> None:
    asked = {"networks": ["vit", "linear"]}
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id, asked, **WILD)
    jobs.work()
    protection = jobs.show(protection_id)
    assert protection.state is ProtectionState.SUCCEEDED, protection.error
    with reading() as session:
        record = report.build(protection, steps.of(session, protection_id))
    ended, diverged = record["matrix"]
    assert ended["diverged"] == {"clean": 0, "protected": 0}
    assert diverged["diverged"] == {"clean": 1, "protected": 1}
    assert "linear (1 of 1 on the originals)" in record["verdict"]["sentence"]


def test_a_kept_baseline_that_diverged_is_no_first_measurement() -> None:
    """Another protection found that it diverges, where it was not the first."""
    dataset = jobs.upload(pictures.zipped(FILES))
    jobs.ask(dataset.id, {"networks": ["vit", "linear"]}, **WILD)
    jobs.work()
    alone = jobs.ask(dataset.id, {"networks": ["linear"]}, **WILD)
    jobs.work()
    failed = jobs.show(alone)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "TRAINING_DIVERGED")
    assert "It was on originals" in str(failed.error)


def test_a_training_that_was_broken_off_goes_on_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    archive = pictures.zipped(FILES)
    changes: dict[str, Any] = {"epochs": 6, "checkpoints": 3}
    undisturbed, whole = jobs.protect(archive, **changes)
    protection_id = jobs.ask(jobs.upload(archive).id, **changes)
    made: list[int] = []
    begun: list[int] = []
    kept: list[int] = []
    for stored in (1, 2):  # twice: with so many checkpoints kept
        claim = jobs.begin()
        work = train.run(claim)
        while not storage.read_if_there(checkpoint_key(protection_id, stored)):
            next(work)
        next(work)  # the first batch of the epoch after
        made.append(jobs.made_at(checkpoint_key(protection_id, 0)))
        with transaction() as session:
            step = session.get_one(Step, claim.step_id)
            begun.append(step.progress_begun)
            kept.append(step.progress_kept)
        endings.end(claim, endings.stop)
    assert begun == [0, kept[0]]
    assert 0 < kept[0] < kept[1]
    jobs.work()
    assert {*made, jobs.made_at(checkpoint_key(protection_id, 0))} == {made[0]}
    protection = jobs.show(protection_id)
    assert jobs.output(protection_id, StepKind.TRAIN) == jobs.output(undisturbed.id, StepKind.TRAIN)
    key = storage.protection_key(protection_id, protections.ARCHIVE)
    assert storage.read(key) == whole
    assert protection.state is ProtectionState.SUCCEEDED
    assert storage.read_if_there(training_key(protection_id)) is None


def test_a_worker_that_is_to_end_keeps_the_batch_that_it_has_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draining = DrainFlag()
    monkeypatch.setattr(resume, "draining", draining)
    archive = pictures.zipped(FILES)
    _, whole = jobs.protect(archive, batch_size=8)
    protection_id = jobs.ask(jobs.upload(archive).id, batch_size=8)
    claim = jobs.begin()
    work = train.run(claim)
    while next(work)[0] == 0:
        assert storage.read_if_there(training_key(protection_id)) is None
    draining.set()
    with pytest.raises(WorkerDraining):
        next(work)
    stored = resume.load(training_key(protection_id))
    assert stored is not None
    assert (stored["training"]["epoch"], stored["training"]["batches"]) == (1, 2)
    with transaction() as session:
        assert session.get_one(Step, claim.step_id).progress_kept == stored["done"] > 0
    endings.end(claim, endings.stop)
    monkeypatch.setattr(resume, "draining", DrainFlag())
    jobs.work()
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole


@pytest.mark.parametrize("damaged", ["state", "checkpoint"])
def test_a_training_whose_state_is_damaged_begins_anew(
    monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0)
    archive = pictures.zipped(FILES)
    _, whole = jobs.protect(archive)
    protection_id = jobs.ask(jobs.upload(archive).id)
    claim = jobs.begin()
    work = train.run(claim)
    while not storage.read_if_there(checkpoint_key(protection_id, 1)):
        next(work)
    endings.end(claim, endings.stop)
    keys = {"state": training_key(protection_id), "checkpoint": checkpoint_key(protection_id, 0)}
    storage.write(keys[damaged], storage.read(keys[damaged])[:-100])
    jobs.work()
    assert jobs.show(protection_id).error is None
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole


def test_the_clean_baseline_learns() -> None:
    files = pictures.class_folders(30, 10)
    protection, _ = jobs.protect(
        pictures.zipped(files), epochs=6, appropriator_epochs=12, batch_size=16, learning_rate=0.02
    )
    accuracy = jobs.record_of(protection)["accuracy"]
    assert accuracy["clean"]["accuracy_peak"] > 0.8
    assert len(accuracy["protected"]["accuracy_by_epoch"]) == 12


@pytest.mark.parametrize("variant", ["sep", "sep-fa", "sep-fa-vr"])
def test_every_variant_goes_through(variant: str) -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES), variant=variant, inner_steps=2)
    assert protection.state is ProtectionState.SUCCEEDED
