"""A protection of some images: these are changed, and the others leave as they came."""

import io
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from api import protections, steps, storage
from api.archive import Pixels
from api.db import reading
from api.evidence import report
from api.models import StepKind
from api.plans import workload
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import preview

pytestmark = [
    pytest.mark.usefixtures("environment"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

FILES = pictures.class_folders(6, 3) | {
    "train/ant/grey.png": pictures.encoded(pictures.image(0, 98, (24, 40))[:, :, 0]),
    "train/cat/photo.jpg": pictures.encoded(pictures.image(2, 99, (50, 70)), "JPEG"),
}
PARTLY: dict[str, Any] = {"protected_classes": ("ant", "bee"), "protected_fraction": 0.5}
# Half of seven, of six, and of three twice: to the even number, as Python rounds.
EXPECTED = {("train", "ant"): 4, ("train", "bee"): 3, ("test", "ant"): 2, ("test", "bee"): 2}


def pixels(data: bytes) -> Pixels:
    decoded: Pixels = np.asarray(Image.open(io.BytesIO(data)))
    return decoded


def test_unchosen_images_leave_as_they_came_and_chosen_ones_changed() -> None:
    protection, archive = jobs.protect(pictures.zipped(FILES), **PARTLY)
    released, record = jobs.members(archive), jobs.record_of(protection)
    check_archive(released, record["files"])
    check_figures(record)
    picture = storage.read(storage.protection_key(protection.id, protections.PREVIEW))
    assert picture == drawn(released, record["files"])


def drawn(released: dict[str, bytes], files: list[Any]) -> bytes:
    """The first protected image of each class that has one."""
    first: dict[str, preview.Cells] = {}
    for entry in files:
        if entry["protected"] and entry["class"] not in first:
            pair = pixels(FILES[entry["source_name"]]), pixels(released[entry["name"]])
            first[entry["class"]] = preview.column(pair, 8)
    return preview.draw(list(first.values()), 8)


def check_archive(released: dict[str, bytes], files: list[Any]) -> None:
    manifest = json.loads(released["manifest.json"])["files"]
    assert [entry["source_name"] for entry in manifest] == sorted(FILES)
    assert [*released] == [*sorted(entry["name"] for entry in manifest), "manifest.json"]
    counted: Counter[tuple[str, str]] = Counter()
    for entry, public in zip(files, manifest, strict=True):
        original = pixels(FILES[entry["source_name"]])
        change = int(np.abs(original.astype(int) - pixels(released[entry["name"]])).max())
        assert (0 < change <= 8) if entry["protected"] else change == 0, entry["name"]
        assert change == public["largest_change_levels"] == entry["largest_change_levels"]
        assert "protected" not in public
        counted[entry["split"], entry["class"]] += entry["protected"]
    assert +counted == EXPECTED


def check_figures(record: report.Record) -> None:
    """They are those of the protected images alone."""
    chosen = [entry for entry in record["files"] if entry["protected"]]
    change = record["change"]
    assert (change["images"], change["protected_images"]) == (29, 11)
    assert change["scope"].startswith("Only 11 of 29 images are protected;")
    assert change["unchanged_images"] == 0
    ssim = [entry["ssim"] for entry in chosen]
    assert change["ssim_mean"] == pytest.approx(np.mean(ssim), abs=1e-6)
    assert sum(change["histogram"]) == sum(sum(entry["histogram"]) for entry in chosen)
    by_ssim = sorted(chosen, key=lambda entry: entry["ssim"])
    assert [image["name"] for image in change["worst"]] == [e["name"] for e in by_ssim[:5]]
    # The verdict says it, and what changed.
    assert report.render(record, None).count("Only 11 of 29 images are protected;") == 2


def test_some_classes_are_judged_by_their_own_test_images() -> None:
    named = ("bee",)
    protection, _ = jobs.protect(pictures.zipped(FILES), protected_classes=named)
    record = jobs.record_of(protection)
    assert [row["class"] for row in record["by_class"]] == ["bee", "ant", "cat"]
    bee = record["by_class"][0]
    assert (bee["to_protect"], bee["test_images"]) == (True, 3)
    for training in ("clean", "protected"):
        assert record["verdict"]["named"][training] == bee[training]
    assert record["verdict"]["named"]["classes"] == ["bee"]
    assert not record["verdict"]["worked"]
    training = record["training"]
    assert (training["train_images"], training["protected_train_images"]) == (20, 6)


def test_every_class_and_all_of_it_is_what_comes_without_a_choice() -> None:
    archive = pictures.zipped(FILES)
    protection, whole = jobs.protect(archive)
    record = jobs.record_of(protection)
    assert record["change"]["scope"] == f"All {len(FILES)} images are protected."
    assert all(entry["protected"] for entry in record["files"])
    named = {"protected_classes": pictures.CLASSES[::-1], "protected_fraction": 1}
    assert jobs.protect(archive, **named)[1] == whole


def test_many_shards_of_a_part_give_the_archive_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 4})
    archive = pictures.zipped(FILES)
    whole = jobs.protect(archive, **PARTLY)[1]
    monkeypatch.setattr(settings(), "shard_seconds", 1e-6)
    monkeypatch.setattr(workload, "SHARD_BYTES", 9000)
    protection, in_parts = jobs.protect(archive, **PARTLY)
    with reading() as session:
        kinds = [step.kind for step in steps.of(session, protection.id)]
    assert kinds.count(StepKind.PERTURB) > 2
    assert kinds.count(StepKind.ENCODE) > kinds.count(StepKind.PERTURB) + 2
    assert in_parts == whole
