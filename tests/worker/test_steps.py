"""What each kind of step promises, on real rows and blobs."""

import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from api import datasets, endings, leases, protections, report, steps, storage, workload
from api.db import reading, transaction
from api.errors import AppError
from api.models import DatasetState, Protection, ProtectionState, Step, StepKind
from tests import pictures
from tests.worker import jobs
from worker import resident, resume
from worker.data import checkpoint_key, load_index, training_key
from worker.lease import DrainFlag, WorkerDraining
from worker.steps import train

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(8, 3)


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(data)), np.int16)


def record_of(protection: Protection) -> dict[str, Any]:
    with reading() as session:
        parts = steps.of(session, protection.id)
    record: report.Record = json.loads(b"".join(report.write(protection, parts)))
    return record


def test_every_split_leaves_protected_and_within_the_budget() -> None:
    files = FILES | {
        name.replace("test/", "val/"): data for name, data in FILES.items() if "test/" in name
    }
    protection, archive = jobs.protect(pictures.zipped(files))
    released = jobs.members(archive)
    assert list(released) == [*sorted(files), "manifest.json"]
    for name, data in files.items():
        change = np.abs(pixels(released[name]) - pixels(data)).max()
        assert 0 < change <= 8, name
    assert record_of(protection)["change"]["largest_change_levels"] <= 8


def test_names_formats_sizes_and_channels_come_back_as_they_were() -> None:
    grey = pictures.image(0, 1, (40, 24))[:, :, 0]
    files = FILES | {
        "train/ant/photo.jpg": pictures.encoded(pictures.image(0, 99, (50, 70)), "JPEG"),
        "train/ant/photo.png": pictures.encoded(pictures.image(0, 98, (50, 70))),
        "train/bee/grey.bmp": pictures.encoded(grey, "BMP"),
    }
    _, archive = jobs.protect(pictures.zipped(files))
    released = jobs.members(archive)
    assert pixels(released["train/ant/photo.jpg.png"]).shape == (50, 70, 3)
    assert pixels(released["train/ant/photo.png"]).shape == (50, 70, 3)
    after = pixels(released["train/bee/grey.bmp"])
    assert after.shape == (40, 24)
    assert 0 < np.abs(after - grey).max() <= 8
    manifest = json.loads(released["manifest.json"])
    sources = {entry["name"]: entry["source_name"] for entry in manifest["files"]}
    assert sources["train/ant/photo.jpg.png"] == "train/ant/photo.jpg"


def test_metadata_does_not_leave() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a clean copy would hide here"
    image = Image.fromarray(pictures.image(0, 5))
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, comment=b"and here")
    _, archive = jobs.protect(pictures.zipped(FILES | {"train/ant/exif.jpg": file.getvalue()}))
    data = jobs.members(archive)["train/ant/exif.png"]
    assert b"clean copy" not in data
    assert b"and here" not in data
    assert Image.open(io.BytesIO(data)).info == {}


def test_the_archive_holds_no_key() -> None:
    """Seed, target map, checkpoints, digests of originals and accuracies stay with the owner."""
    protection, archive = jobs.protect(pictures.zipped(FILES), target_map=(2, 0, 1))
    record = record_of(protection)
    secrets = {
        "seed": jobs.SEED,
        "target map": "target_map",
        "accuracy": "accuracy",
        "upload": record["dataset"]["sha256"],
        "surrogate": "surrogate",
        "protection": str(protection.id),
    }
    secrets |= {f"checkpoint {c['epoch']}": c["sha256"] for c in record["training"]["checkpoints"]}
    secrets |= {f"original {f['name']}": f["original_pixels_sha256"] for f in record["files"]}
    assert len(secrets) == 6 + 2 + len(FILES)
    haystack = b"\n".join([archive, *jobs.members(archive).values()]).lower()
    for what, secret in secrets.items():
        assert secret.encode() not in haystack, what
        assert secret in json.dumps(record), what  # it is a secret of this very job
    manifest = json.loads(jobs.members(archive)["manifest.json"])
    assert set(manifest) == {"format_version", "variant", "epsilon_levels", "files"}
    assert {frozenset(entry) for entry in manifest["files"]} == {
        frozenset({"name", "source_name", "sha256", "largest_change_levels"})
    }


def test_same_seed_same_bytes_and_other_seed_other_bytes() -> None:
    archive = pictures.zipped(FILES)
    first = jobs.protect(archive)[1]
    assert jobs.protect(archive)[1] == first
    assert jobs.protect(archive, seed=jobs.SEED[::-1])[1] != first


def protected_in_shards(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What leaves when a shard takes everything; from now on each takes a batch of four."""
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 4})
    whole = jobs.protect(archive)[1]
    monkeypatch.setattr(workload, "SHARD_SECONDS", 0)
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
    if between is None:
        assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
        assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole
    else:
        assert jobs.show(protection_id).error_code == "BLOB_CHANGED"
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


def test_without_a_test_split_a_share_is_set_aside_and_protected_all_the_same() -> None:
    files = {name: data for name, data in FILES.items() if name.startswith("train/")}
    protection, archive = jobs.protect(pictures.zipped(files), held_out_percent=25)
    record = record_of(protection)
    assert record["training"]["held_out_from"] == "train"
    assert record["training"]["held_out_images"] == 6
    assert record["training"]["train_images"] == len(files) - 6
    released = jobs.members(archive)
    assert all(not np.array_equal(pixels(released[name]), pixels(files[name])) for name in files)


@pytest.mark.parametrize("classes", [2, 40])
def test_few_many_and_unbalanced_classes_go_through(classes: int) -> None:
    counts = {f"class-{c:02d}": 1 + 20 // (c + 1) for c in range(classes)}
    files = {
        f"{split}/{name}/{n}.png": pictures.encoded(pictures.image(c % 3, 100 * c + n))
        for c, (name, count) in enumerate(counts.items())
        for split, first, last in (("train", 0, count), ("test", 50, 51))
        for n in range(first, last)
    }
    protection, archive = jobs.protect(pictures.zipped(files))
    released = jobs.members(archive)
    changes = [np.abs(pixels(released[name]) - pixels(files[name])).max() for name in files]
    assert 0 < min(changes) <= max(changes) <= 8
    record = record_of(protection)
    target_map = record["config"]["target_map"]
    assert sorted(target_map) == list(range(classes))
    assert all(target != label for label, target in enumerate(target_map))
    assert record["training"]["train_images"] == sum(counts.values())
    assert {row["class"]: row["test_images"] for row in record["by_class"]} == dict.fromkeys(
        counts, 1
    )


def test_a_change_above_the_budget_fails_the_protection_and_leaves_no_archive() -> None:
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)

    def tamper(step: Step) -> None:
        if step.kind is StepKind.PACKAGE:
            key = jobs.shard(protection_id)
            shard = bytearray(storage.read(key))
            shard[1000] = (shard[1000] + 128) % 256
            found = {"sha256": storage.write(key, bytes(shard))}  # as a defect of ours would
            with transaction() as session:
                perturbed = Step.protection_id == protection_id, Step.kind == StepKind.PERTURB
                session.execute(update(Step).where(*perturbed).values(output=found))

    jobs.work(tamper)
    protection = jobs.show(protection_id)
    assert protection.state is ProtectionState.FAILED
    assert protection.error_code == "BUDGET_EXCEEDED"
    assert "at most 8 levels" in str(protection.error)
    with pytest.raises(FileNotFoundError):
        storage.read(storage.protection_key(protection_id, protections.ARCHIVE))


@pytest.mark.parametrize("kind", [StepKind.PERTURB, StepKind.PACKAGE])
def test_what_another_step_left_is_what_it_left(kind: StepKind) -> None:
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)

    def damage(step: Step) -> None:
        if step.kind is kind:
            checkpoint = checkpoint_key(protection_id, 1)
            key = checkpoint if kind is StepKind.PERTURB else jobs.shard(protection_id)
            content = storage.read(key)
            storage.write(key, content[:-1] + bytes([content[-1] ^ 1]))

    jobs.work(damage)
    protection = jobs.show(protection_id)
    assert (protection.state, protection.error_code) == (ProtectionState.FAILED, "BLOB_CHANGED")


def test_what_failed_goes_on_where_it_did_to_the_same_bytes() -> None:
    """The shard whose file was damaged is not made again: that of `package` fails, and is told."""
    archive = pictures.zipped(FILES)
    _, whole = jobs.protect(archive)
    protection_id = jobs.ask(jobs.upload(archive).id)
    good: list[bytes] = []

    def damage(step: Step) -> None:
        if step.kind is StepKind.PACKAGE:
            good.append(storage.read(jobs.shard(protection_id)))
            storage.write(jobs.shard(protection_id), bytes(len(good[0])))

    jobs.work(damage)
    assert jobs.show(protection_id).state is ProtectionState.FAILED
    made = made_at(checkpoint_key(protection_id, 0))
    storage.write(jobs.shard(protection_id), good[0])
    with transaction() as session:
        protections.retry(session, jobs.owner(), protection_id)
    package, *_ = jobs.ready()
    assert (package.kind, package.attempt, package.error) == (StepKind.PACKAGE, 0, None)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole
    assert made_at(checkpoint_key(protection_id, 0)) == made


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
    """The transformer trains by AdamW, at a rate of its own."""
    wild: dict[str, Any] = {
        "surrogate": "vit",
        "learning_rate": 100,
        "weight_decay": 1,
        "appropriator_epochs": 20,
    }
    asked = {"networks": ["vit", "linear"]}
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id, asked, **wild)
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
    wild: dict[str, Any] = {
        "surrogate": "vit",
        "learning_rate": 100,
        "weight_decay": 1,
        "appropriator_epochs": 20,
    }
    dataset = jobs.upload(pictures.zipped(FILES))
    jobs.ask(dataset.id, {"networks": ["vit", "linear"]}, **wild)
    jobs.work()
    alone = jobs.ask(dataset.id, {"networks": ["linear"]}, **wild)
    jobs.work()
    failed = jobs.show(alone)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "TRAINING_DIVERGED")
    assert "It was on originals" in str(failed.error)


def made_at(key: str) -> int:
    path = storage.local_path(key)
    assert path is not None
    return path.stat().st_mtime_ns


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
        with transaction() as session:
            claim = leases.claim(session, jobs.ready()[0].id, "a test")
            assert claim is not None
            steps.start(session, claim)
        work = train.run(claim)
        while not storage.read_if_there(checkpoint_key(protection_id, stored)):
            next(work)
        made.append(made_at(checkpoint_key(protection_id, 0)))
        with transaction() as session:
            step = session.get_one(Step, claim.step_id)
            begun.append(step.progress_begun)
            kept.append(step.progress_kept)
        endings.end(claim, endings.stop)
    assert begun == [0, kept[0]]
    assert 0 < kept[0] < kept[1]
    jobs.work()
    assert {*made, made_at(checkpoint_key(protection_id, 0))} == {made[0]}
    protection = jobs.show(protection_id)
    assert jobs.output(protection_id, StepKind.TRAIN) == jobs.output(undisturbed.id, StepKind.TRAIN)
    key = storage.protection_key(protection_id, protections.ARCHIVE)
    assert storage.read(key) == whole
    assert protection.state is ProtectionState.SUCCEEDED
    assert storage.read_if_there(training_key(protection_id)) is None


def test_a_worker_that_is_to_end_keeps_the_epoch_that_it_is_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draining = DrainFlag()
    monkeypatch.setattr(resume, "draining", draining)
    archive = pictures.zipped(FILES)
    _, whole = jobs.protect(archive)
    protection_id = jobs.ask(jobs.upload(archive).id)
    with transaction() as session:
        claim = leases.claim(session, jobs.ready()[0].id, "a test")
        assert claim is not None
        steps.start(session, claim)
    work = train.run(claim)
    while next(work)[0] == 0:
        assert storage.read_if_there(training_key(protection_id)) is None
    draining.set()
    with pytest.raises(WorkerDraining):
        list(work)
    stored = resume.load(training_key(protection_id))
    assert stored is not None
    assert stored["training"]["epoch"] == 1
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
    with transaction() as session:
        claim = leases.claim(session, jobs.ready()[0].id, "a test")
        assert claim is not None
        steps.start(session, claim)
    work = train.run(claim)
    while not storage.read_if_there(checkpoint_key(protection_id, 1)):
        next(work)
    endings.end(claim, endings.stop)
    keys = {"state": training_key(protection_id), "checkpoint": checkpoint_key(protection_id, 0)}
    storage.write(keys[damaged], storage.read(keys[damaged])[:-100])
    jobs.work()
    assert jobs.show(protection_id).error is None
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == whole


def test_shards_go_and_checkpoints_stay_when_it_has_succeeded() -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    with pytest.raises(FileNotFoundError):
        storage.read(jobs.shard(protection.id))
    checkpoint = storage.protection_key(protection.id, f"{protections.CHECKPOINTS}/000.pt")
    assert storage.read(checkpoint)


def test_the_clean_baseline_learns() -> None:
    files = pictures.class_folders(30, 10)
    protection, _ = jobs.protect(
        pictures.zipped(files), epochs=6, appropriator_epochs=12, batch_size=16, learning_rate=0.02
    )
    accuracy = record_of(protection)["accuracy"]
    assert accuracy["clean"]["accuracy_peak"] > 0.8
    assert len(accuracy["protected"]["accuracy_by_epoch"]) == 12


@pytest.mark.parametrize("variant", ["sep", "sep-fa", "sep-fa-vr"])
def test_every_variant_goes_through(variant: str) -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES), variant=variant, inner_steps=2)
    assert protection.state is ProtectionState.SUCCEEDED


def test_an_archive_that_is_none_is_rejected_and_goes() -> None:
    dataset = jobs.upload(b"PK but not really a zip")
    assert dataset.state is DatasetState.REJECTED
    assert dataset.error_code == "NOT_A_ZIP"
    assert storage.idle_owners("datasets", 0) == set()


def test_one_tenth_of_bad_files_gives_a_ready_data_set_and_a_list() -> None:
    good = pictures.class_folders(15)
    bad = {
        "train/ant/half.jpg": pictures.encoded(pictures.image(0, 7, (64, 64)), "JPEG")[:900],
        "train/ant/sixteen.png": _sixteen_bit(),
        "train/bee/notes.txt": b"not an image",
        "train/bee/tiny.png": pictures.encoded(pictures.image(1, 8, (4, 4))),
        "train/cat/see-through.png": _transparent(),
    }
    dataset = jobs.upload(pictures.zipped(good | bad))
    assert dataset.state is DatasetState.READY
    assert dataset.summary is not None
    assert dataset.summary["images"] == len(good)
    with reading() as session:
        session.add(dataset)
        refused = {item["name"]: item["code"] for item in dataset.refused}
    assert refused == {
        "train/ant/half.jpg": "BROKEN_IMAGE",
        "train/ant/sixteen.png": "UNSUPPORTED_MODE",
        "train/bee/notes.txt": "NOT_AN_IMAGE",
        "train/bee/tiny.png": "IMAGE_TOO_SMALL",
        "train/cat/see-through.png": "TRANSPARENT",
    }


def _sixteen_bit() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(file, "PNG")
    return file.getvalue()


def _transparent() -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (32, 32), (1, 2, 3, 128)).save(file, "PNG")
    return file.getvalue()


def test_an_image_that_does_not_change_is_said_so() -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    record = record_of(protection)
    assert record["change"]["unchanged_images"] == 0
    with reading() as session:
        parts = steps.of(session, protection.id)
    package = next(step for step in parts if step.kind is StepKind.PACKAGE)
    package.output = {**(package.output or {}), "unchanged_images": 3}
    verdict = report.build(protection, parts)["verdict"]
    assert not verdict["worked"]


def test_deleting_the_data_set_takes_the_pictures_that_show_originals() -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    key = storage.protection_key(protection.id, protections.PREVIEW)
    assert storage.read_if_there(key)
    assert protection.dataset_id is not None
    protections.clean_originals([protection.id])
    assert storage.read_if_there(key) is None
    assert "went with the data set" in report.render(record_of(protection), None)


def test_nothing_to_test_on_is_refused_before_any_training() -> None:
    files = {
        f"train/{c}/0.png": pictures.encoded(pictures.image(i, 0)) for i, c in enumerate("abc")
    }
    dataset = jobs.upload(pictures.zipped(files))
    with pytest.raises(AppError, match="two training images"):
        jobs.ask(dataset.id)


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
    shown = {(s["kind"], s["index"]): s["output_sha256"] for s in record_of(first)["timing"]}
    assert shown == {(kind, index): found for kind, index, _, found in digests(first)}
