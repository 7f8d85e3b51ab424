"""What leaves: every image, as it came but for the change, and nothing else."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from api import protections, storage
from api.db import transaction
from api.models import ProtectionState, Step, StepKind
from tests import pictures
from tests.worker import jobs

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(8, 3)


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(data)), np.int16)


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
    assert jobs.record_of(protection)["change"]["largest_change_levels"] <= 8


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
    record = jobs.record_of(protection)
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


def test_without_a_test_split_a_share_is_set_aside_and_protected_all_the_same() -> None:
    files = {name: data for name, data in FILES.items() if name.startswith("train/")}
    protection, archive = jobs.protect(pictures.zipped(files), held_out_percent=25)
    record = jobs.record_of(protection)
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
    record = jobs.record_of(protection)
    target_map = record["config"]["target_map"]
    assert sorted(target_map) == list(range(classes))
    assert all(target != label for label, target in enumerate(target_map))
    assert record["training"]["train_images"] == sum(counts.values())
    assert {row["class"]: row["test_images"] for row in record["by_class"]} == dict.fromkeys(
        counts, 1
    )


def test_a_change_above_the_budget_fails_the_protection_before_there_is_an_archive() -> None:
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)

    def tamper(step: Step) -> None:
        if step.kind is StepKind.ENCODE:
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
