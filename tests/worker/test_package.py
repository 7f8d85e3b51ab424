"""What `package` measures and shows, from the archive that leaves and the upload as they are."""

import io
import json
from typing import Any

import numpy as np
import pytest
import skimage.metrics
from PIL import Image

from api import archive as archives
from api import protections, report, steps, storage
from api.archive import Pixels, decode_released, directory
from api.db import reading
from api.models import Protection, ProtectionState, StepKind
from api.settings import settings
from tests import pictures
from tests.worker import jobs
from worker import alive, lease, metrics, preview, tasks
from worker.steps import package

pytestmark = pytest.mark.usefixtures("environment")

library: Any = skimage.metrics  # has no types


def smooth(number: int) -> Pixels:
    """A flat image: a change has nothing to hide behind."""
    return np.full((300, 280, 3), 60 + 20 * number, np.uint8)


FILES = pictures.class_folders(4, 2, (64, 48)) | {
    "train/ant/photo.jpg": pictures.encoded(pictures.image(0, 99, (120, 90)), "JPEG"),
    "train/ant/sky.jpg": pictures.encoded(smooth(1), "JPEG"),
    "train/bee/fog.png": pictures.encoded(smooth(2)),
    "train/bee/grey.png": pictures.encoded(smooth(3)[:90, :80, 0]),
}


def pixels(data: bytes) -> Pixels:
    decoded: Pixels = np.asarray(Image.open(io.BytesIO(data)))
    return decoded if decoded.ndim == 3 else decoded[:, :, None]


def blob(protection: Protection, name: str) -> bytes | None:
    return storage.read_if_there(storage.protection_key(protection.id, name))


def record_of(protection: Protection) -> report.Record:
    with reading() as session:
        parts = steps.of(session, protection.id)
    record: report.Record = json.loads(b"".join(report.write(protection, parts)))
    return record


def pairs(record: report.Record, archive: bytes) -> dict[str, preview.Pair]:
    released = jobs.members(archive)
    return {
        entry["name"]: (pixels(FILES[entry["source_name"]]), pixels(released[entry["name"]]))
        for entry in record["files"]
    }


def test_every_figure_of_files_and_data_set_is_that_of_the_archive() -> None:
    protection, archive = jobs.protect(pictures.zipped(FILES))
    record = record_of(protection)
    found = pairs(record, archive)
    counted = np.zeros(65, np.int64)
    for entry in record["files"]:
        original, released = found[entry["name"]]
        difference = np.abs(original.astype(int) - released)
        ssim = library.structural_similarity(original, released, channel_axis=2, data_range=255)
        psnr = library.peak_signal_noise_ratio(original, released)
        assert entry["ssim"] == pytest.approx(ssim, abs=1e-6)
        assert entry["psnr_db"] == pytest.approx(psnr, abs=1e-3)
        assert entry["largest_change_levels"] == difference.max() == len(entry["histogram"]) - 1
        changed = difference.any(axis=2).mean()
        assert entry["changed_share"] == pytest.approx(changed, abs=1e-6)
        assert entry["histogram"] == np.bincount(difference.ravel()).tolist()
        counted += np.bincount(difference.ravel(), minlength=65)
    change = record["change"]
    assert change["histogram"] == counted.tolist()
    by_ssim = sorted(record["files"], key=lambda entry: entry["ssim"])
    below = [entry for entry in by_ssim if entry["ssim"] < metrics.SHOWS_BELOW_SSIM]
    assert change["shows"]["images"] == len(below) > 0
    assert [image["name"] for image in change["worst"]] == [e["name"] for e in by_ssim[:5]]
    assert change["worst"][0]["ssim"] == by_ssim[0]["ssim"]


def test_the_worst_are_pictured_and_go_with_the_data_set() -> None:
    protection, archive = jobs.protect(pictures.zipped(FILES))
    record = record_of(protection)
    found = pairs(record, archive)
    crops = [preview.crop(found[image["name"]]) for image in record["change"]["worst"]]
    picture = blob(protection, protections.WORST)
    assert picture == preview.draw_worst(crops, record["config"]["epsilon_levels"])
    assert pixels(picture).shape[1] == 924
    protections.clean_originals([protection.id])
    assert blob(protection, protections.WORST) is None
    assert blob(protection, protections.PREVIEW) is None


@pytest.mark.parametrize("kind", [StepKind.PACKAGE, StepKind.EVALUATE])
def test_a_long_directory_is_read_with_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, kind: StepKind
) -> None:
    """Of what leaves: before a single image of it is decoded."""
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=kind)
    monkeypatch.setattr(directory, "_SLICE_BYTES", 0)
    signs, before = 0, list[int]()

    class Counted(lease.Lease):
        def tick(self, done: int, total: int) -> None:
            nonlocal signs
            signs += 1
            super().tick(done, total)

    def decode(data: bytes) -> Pixels:
        before.append(signs)
        return decode_released(data)

    monkeypatch.setattr(tasks, "Lease", Counted)
    monkeypatch.setattr(archives, "decode_released", decode)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    packed = len(FILES) if kind is StepKind.PACKAGE else 0
    assert before[0] >= packed + len(FILES)


def test_signs_of_life_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same archive, record and pictures with many images encoded at once and in strips."""
    monkeypatch.setattr(package, "SMALL_BYTES", 2**40)
    first, archive = jobs.protect(pictures.zipped(FILES))
    again_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=StepKind.PACKAGE)
    monkeypatch.setattr(settings(), "threads", 5)  # only now: PyTorch's are part of the plan
    monkeypatch.setattr(alive, "SECONDS", 0.0)
    monkeypatch.setattr(metrics, "STRIP_PIXELS", 1)
    monkeypatch.setattr(package, "SMALL_BYTES", 0)
    jobs.work()
    second = jobs.show(again_id)
    assert blob(second, protections.ARCHIVE) == archive
    for name in (protections.RECORD, protections.WORST, protections.PREVIEW):
        assert blob(first, name) == blob(second, name) is not None


@pytest.mark.parametrize(
    ("sides", "small"),
    [
        ({32: 100}, True),
        ({224: 3}, False),
        ({32: 20_000, 1400: 64}, False),
        ({32: 99, 112: 1}, True),
    ],
)
def test_it_is_where_most_pixels_are_that_says_whether_threads_pay(
    sides: dict[int, int], small: bool
) -> None:
    sizes = np.concatenate([np.full(images, 3 * side**2) for side, images in sides.items()])
    assert package.are_small(sizes) is small
