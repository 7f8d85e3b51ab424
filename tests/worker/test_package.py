"""What `package` measures and shows, from the archive that leaves and the upload as they are."""

import io
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import pytest
import skimage.metrics
from PIL import Image
from sqlalchemy import delete

from api import archive as archives
from api import protections, storage
from api.archive import ImageRecord, Pixels, directory
from api.db import transaction
from api.evidence import report
from api.models import Protection, ProtectionState, Step, StepKind
from api.scheduling import leases
from tests import pictures
from tests.worker import jobs
from worker import lease, metrics, preview, tasks
from worker.data import Reader
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


def pairs(record: report.Record, archive: bytes) -> dict[str, preview.Pair]:
    released = jobs.members(archive)
    return {
        entry["name"]: (pixels(FILES[entry["source_name"]]), pixels(released[entry["name"]]))
        for entry in record["files"]
    }


def test_every_figure_of_files_and_data_set_is_that_of_the_archive() -> None:
    protection, archive = jobs.protect(pictures.zipped(FILES))
    record = jobs.record_of(protection)
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
    record = jobs.record_of(protection)
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
    """Of what leaves: before a single file of it is read."""
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=kind)
    monkeypatch.setattr(directory, "_SLICE_BYTES", 0)
    signs, before = 0, list[int]()

    def tick(_done: int, _total: int) -> None:
        nonlocal signs
        signs += 1

    def read(reader: Reader, record: ImageRecord) -> bytes:
        if reader._released:
            before.append(signs)
        return read_file(reader, record)

    read_file = Reader.file
    at_every_tick(monkeypatch, tick)
    monkeypatch.setattr(Reader, "file", read)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    written = 1 if kind is StepKind.PACKAGE else 0
    assert before[0] >= written + len(FILES)


def at_every_tick(monkeypatch: pytest.MonkeyPatch, call: Callable[[int, int], None]) -> None:
    """Of whatever step runs."""

    class Told(lease.Lease):
        def tick(self, done: int, total: int) -> None:
            call(done, total)
            super().tick(done, total)

    monkeypatch.setattr(tasks, "Lease", Told)


def test_an_archive_of_other_files_fails_the_protection_and_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole, readable and within the budget, but not what was compared."""
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=StepKind.PACKAGE)
    key = storage.protection_key(protection_id, protections.ARCHIVE)

    def mix_up(claim: leases.Claim, stored: str, data: bytes | IO[bytes]) -> str:
        if stored == key:
            assert not isinstance(data, bytes)
            data.seek(0)
            found = jobs.members(data.read())
            first, second, *_ = (name for name in found if name.startswith("test/"))
            data = io.BytesIO()
            for _ in archives.write(data, (found | {first: found[second]}).items()):
                pass
        return lease.store(claim, stored, data)

    monkeypatch.setattr(package, "store", mix_up)  # as a defect of ours would
    jobs.work()
    failed = jobs.show(protection_id)
    assert (failed.state, failed.error_code) == (ProtectionState.FAILED, "ARCHIVE_MISMATCH")
    assert "expected the file that was encoded, of SHA-256" in str(failed.error)
    assert storage.read_if_there(key) is None


def test_what_was_planned_before_there_was_a_step_for_it_is_encoded_here() -> None:
    _, archive = jobs.protect(pictures.zipped(FILES))
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=StepKind.PERTURB)
    with transaction() as session:
        session.execute(
            delete(Step).where(Step.kind == StepKind.ENCODE, Step.protection_id == protection_id)
        )
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    assert storage.read(storage.protection_key(protection_id, protections.ARCHIVE)) == archive
