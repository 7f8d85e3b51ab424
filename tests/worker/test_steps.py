"""What each kind of step promises, on real rows and blobs."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import select

from api import datasets, digests, protections, steps, storage
from api.db import reading, transaction
from api.evidence import report
from api.models import Event, Protection, ProtectionState, Step, StepKind
from api.plans import workload
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import resident
from worker.data import checkpoint_key, load_index

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(8, 3)


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    archive = pictures.zipped(FILES)
    first = jobs.protect(archive)[1]
    assert jobs.protect(archive)[1] == first
    assert jobs.protect(archive, seed=jobs.SEED[::-1])[1] != first


def protected_in_shards(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What leaves when a shard takes everything; from now on each takes a batch of four."""
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 4})
    whole = jobs.protect(archive)[1]
    monkeypatch.setattr(settings(), "shard_seconds", 1e-6)
    return whole


def test_many_shards_give_the_archive_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pictures.zipped(FILES)
    whole = protected_in_shards(archive, monkeypatch)
    protection, in_parts = jobs.protect(archive)
    with reading() as session:
        kinds = [step.kind for step in steps.of(session, protection.id)]
    assert kinds.count(StepKind.PERTURB) == -(-len(FILES) // 4)
    assert in_parts == whole


@pytest.mark.parametrize("between", [None, StepKind.TRAIN, StepKind.EVALUATE])
def test_checkpoints_are_restored_once_for_shards_in_a_row(
    monkeypatch: pytest.MonkeyPatch, between: StepKind | None
) -> None:
    """One that is damaged behind the first shard is looked at again only where they were let go."""
    archive = pictures.zipped(FILES)
    whole = protected_in_shards(archive, monkeypatch)
    dataset_id = jobs.upload(archive).id
    protection_id = jobs.ask(dataset_id)
    jobs.work(until=StepKind.PERTURB)
    first, *_ = jobs.ready()
    jobs.run(first.id)
    if between is StepKind.TRAIN:
        jobs.ask(dataset_id)
    if between is not None:
        jobs.run(next(step.id for step in jobs.ready() if step.kind is between))
    assert bool(resident._kept) == (between is None)
    storage.write(checkpoint_key(protection_id, 0), b"damaged")
    jobs.work()
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole
    with reading() as session:
        trained = select(Event).where(Event.protection_id == protection_id)
        told = session.scalars(trained.where(Event.what == "step.done")).all()
    again = sum(event.data["kind"] == StepKind.TRAIN for event in told)
    assert again == (1 if between is None else 2)
    assert not resident._kept


def test_of_two_protections_one_has_its_checkpoints_resident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = pictures.zipped(FILES)
    whole = protected_in_shards(archive, monkeypatch)
    dataset_id = jobs.upload(archive).id
    both = [jobs.ask(dataset_id), jobs.ask(dataset_id, seed=jobs.SEED[::-1])]
    jobs.work(until=StepKind.PERTURB)
    shards = [step for step in jobs.ready() if step.kind is StepKind.PERTURB]
    for step in sorted(shards, key=lambda step: step.index)[:4]:  # in turns
        jobs.run(step.id)
        assert [key[0] for key in resident._kept] == [step.protection_id]
    jobs.work()
    assert storage.read(storage.protection_key(both[0], protections.ARCHIVE)) == whole


def test_a_data_set_from_before_there_was_a_table_is_read_by_names() -> None:
    archive = pictures.zipped(FILES)
    whole = jobs.protect(archive)[1]
    dataset = jobs.upload(archive)
    index = datasets.load_index(dataset.id)
    older: dict[str, Any] = {"records": [], "refusals": [], "classes": index.classes}
    for record in index.records:
        told = asdict(record)
        del told["place"]
        older["records"].append(told)
    storage.write(storage.dataset_key(dataset.id, datasets.OLDER_INDEX), json.dumps(older).encode())
    storage.remove_one(storage.dataset_key(dataset.id, datasets.INDEX))
    load_index.cache_clear()
    protection_id = jobs.ask(dataset.id)
    jobs.work()
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole


def test_what_failed_goes_on_where_it_did_to_the_same_bytes() -> None:
    """What was made before the upload was damaged is not made again: `encode` fails."""
    archive = pictures.zipped(FILES)
    _, whole = jobs.protect(archive)
    uploaded = jobs.upload(archive).id
    protection_id = jobs.ask(uploaded)
    upload = storage.dataset_key(uploaded, datasets.SOURCE)

    def damage(step: Step) -> None:
        if step.kind is StepKind.ENCODE:
            storage.write(upload, bytes(len(archive)))

    jobs.work(damage)
    failed = jobs.show(protection_id)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "BLOB_CHANGED")
    made = jobs.made_at(checkpoint_key(protection_id, 0)), jobs.made_at(jobs.shard(protection_id))
    storage.write(upload, archive)
    with transaction() as session:
        protections.retry(session, jobs.owner(), protection_id)
    encode, *_ = jobs.ready()
    assert (encode.kind, encode.attempt, encode.error) == (StepKind.ENCODE, 0, None)
    assert jobs.made_at(jobs.shard(protection_id)) == made[1]
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole
    assert jobs.made_at(checkpoint_key(protection_id, 0)) == made[0]


def test_shards_go_and_checkpoints_stay_when_it_has_succeeded() -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    with pytest.raises(FileNotFoundError):
        storage.read(jobs.shard(protection.id))
    checkpoint = storage.protection_key(protection.id, f"{protections.CHECKPOINTS}/000.pt")
    assert storage.read(checkpoint)


def test_deleting_the_data_set_takes_the_pictures_that_show_originals() -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    key = storage.protection_key(protection.id, protections.PREVIEW)
    assert storage.read_if_there(key)
    assert protection.dataset_id is not None
    protections.clean_originals([protection.id])
    assert storage.read_if_there(key) is None
    assert "went with the data set" in report.render(jobs.record_of(protection), None)


def test_a_shard_is_no_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 4})
    archive = pictures.zipped(FILES)
    whole = jobs.protect(archive)[1]
    monkeypatch.setattr(workload, "SHARD_BYTES", 4 * 32 * 32 * 3)
    protection, in_parts = jobs.protect(archive)
    with reading() as session:
        kinds = [step.kind for step in steps.of(session, protection.id)]
    assert kinds.count(StepKind.PERTURB) == -(-len(FILES) // 4)
    assert in_parts == whole


def test_digests_chain_every_step_to_the_upload() -> None:
    def digests(protection: Protection) -> list[tuple[str, int, str | None, str | None]]:
        with reading() as session:
            parts = steps.of(session, protection.id)
        return [(s.kind, s.index, s.input_sha256, s.output_sha256) for s in parts]

    data = pictures.zipped(FILES)
    first, _ = jobs.protect(data)
    again, _ = jobs.protect(data)
    other, _ = jobs.protect(data, epsilon_levels=4)
    assert all(given and found for _, _, given, found in digests(first))
    assert digests(first) == digests(again)
    for mine, theirs in zip(digests(first), digests(other), strict=True):
        assert mine[2] != theirs[2]
    shown = {(s["kind"], s["index"]): s["output_sha256"] for s in jobs.record_of(first)["timing"]}
    assert shown == {(kind, index): found for kind, index, _, found in digests(first)}


def test_whoever_has_the_record_can_follow_the_digests() -> None:
    """From the upload to what was measured, by what the record says and nothing else."""
    protection, _ = jobs.protect(pictures.zipped(FILES), protected_classes=("ant", "cat"))
    record = jobs.record_of(protection)
    timing = {(each["kind"], each["index"]): each for each in record["timing"]}
    said = {"sentence", "scope"}
    training, change = (
        {name: value for name, value in record[part].items() if name not in said}
        for part in ("training", "change")
    )
    outputs = {("train", 0): training, ("package", 0): change} | {
        of: each["output"] for of, each in timing.items() if "output" in each
    }
    for of, output in outputs.items():
        assert digests.of(output) == timing[of]["output_sha256"]
    frozen = [record["config"], record["plan"], record["evaluation"]]
    order = ["train", "perturb", "encode", "package"]
    whole = [(*of, outputs[of]) for kind in order for of in sorted(outputs) if of[0] == kind]
    for (kind, index), told in timing.items():
        judging_originals = kind == "evaluate" and index % 2 == steps.CLEAN
        earlier = order[: order.index(kind)] if kind in order else order
        before = [
            each
            for each in ([] if judging_originals else whole)
            if (each[0] in earlier and (kind, each[0]) != ("encode", "perturb"))
            or (kind, *each[:2]) == ("encode", "perturb", index)
        ]
        given = [record["dataset"]["sha256"], *frozen, kind, index, before]
        assert digests.of(given) == told["input_sha256"]
