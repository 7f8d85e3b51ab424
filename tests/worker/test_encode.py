"""`encode`: one part of the images as files, and what is known of them."""

import hashlib
import tempfile
from collections import Counter
from contextlib import closing
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import protections, storage
from api.archive import ImageRecord, IngestResult, Pixels
from api.errors import AppError
from api.models import Protection, StepKind
from api.settings import settings
from sep_core.cells import Evaluation
from sep_core.config import Plan, SEPConfig
from tests import pictures
from tests.worker import jobs
from worker import alive, encoded, metrics
from worker.data import Job, Reader
from worker.metrics import Change
from worker.steps import encode

FILES = pictures.class_folders(4, 2, (64, 48)) | {
    "train/ant/photo.jpg": pictures.encoded(pictures.image(0, 99, (120, 90)), "JPEG"),
    "train/bee/grey.png": pictures.encoded(pictures.image(1, 98, (90, 80))[:, :, 0]),
}
PARTLY: dict[str, Any] = {"protected_classes": ("ant", "bee"), "protected_fraction": 0.5}
changes = st.builds(
    Change,
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=256).map(tuple),
    st.floats(0, 1),
    st.floats(-1, 1),
)
files = st.lists(st.tuples(st.binary(), changes), min_size=1, max_size=20)


def job(number: int) -> Job:
    """Of so many images, of which those of the class `bee` are protected."""
    records = tuple(
        ImageRecord(f"{at}.png", "train", name, 8, 8, 1, "PNG", "0" * 64, f"{at}.png")
        for at, name in enumerate((pictures.CLASSES * number)[:number])
    )
    return Job(
        *(uuid4(), uuid4(), SEPConfig(seed=jobs.SEED, protected_classes=("bee",))),
        Plan(device="cpu", precision="float32"),
        Evaluation(),
        IngestResult(records, (), pictures.CLASSES),
        "0" * 64,
    )


@given(files, st.randoms(use_true_random=False))
def test_what_tables_say_of_images_comes_back_whichever_part_has_them(
    expected: list[encode.File], draws: Any
) -> None:
    order = draws.sample(range(len(expected)), len(expected))
    cut = draws.randint(0, len(expected))
    parts = [np.array(sorted(part), np.int64) for part in (order[:cut], order[cut:]) if part]
    with closing(encoded.Encoded(job(len(expected)))) as whole:
        for number, part in enumerate(parts):
            with closing(encoded.Table()) as table, tempfile.TemporaryFile() as file:
                for index in part:
                    table.append(*expected[index])
                table.write(file)
                file.seek(0)
                whole._add(number, part, file)
        for index, (data, change) in enumerate(expected):
            assert whole.change(index) == change
            assert whole.sha256(index) == hashlib.sha256(data).hexdigest()
            assert whole.sizes_bytes[index] == len(data)
            assert whole.ssim[index] == change.ssim


def blob(protection: Protection, name: str) -> bytes | None:
    return storage.read_if_there(storage.protection_key(protection.id, name))


@pytest.mark.usefixtures("environment")
def test_signs_of_life_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same archive, record and pictures with many images encoded at once and in strips."""
    monkeypatch.setattr(encode, "SMALL_BYTES", 2**40)
    first, archive = jobs.protect(pictures.zipped(FILES))
    again_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=StepKind.ENCODE)
    monkeypatch.setattr(settings(), "threads", 5)  # only now: PyTorch's are part of the plan
    monkeypatch.setattr(alive, "SECONDS", 0.0)
    monkeypatch.setattr(metrics, "STRIP_PIXELS", 1)
    monkeypatch.setattr(encode, "SMALL_BYTES", 0)
    jobs.work()
    second = jobs.show(again_id)
    assert blob(second, protections.ARCHIVE) == archive
    for name in (protections.RECORD, protections.WORST, protections.PREVIEW):
        assert blob(first, name) == blob(second, name) is not None


@pytest.mark.usefixtures("environment")
def test_every_original_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protected or not."""
    decoded: Counter[str] = Counter()
    pixels_of = Reader.pixels

    def counted(reader: Reader, record: ImageRecord) -> Pixels:
        decoded[record.name] += not reader._released
        return pixels_of(reader, record)

    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id, **PARTLY)
    jobs.work(until=StepKind.ENCODE)
    monkeypatch.setattr(Reader, "pixels", counted)
    jobs.work(until=StepKind.PACKAGE)
    assert jobs.show(protection_id).error is None
    assert decoded == dict.fromkeys(FILES, 1)


@pytest.mark.usefixtures("environment")
def test_what_was_used_goes_as_soon_as_it_was() -> None:
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=StepKind.ENCODE)
    assert storage.read_if_there(jobs.shard(protection_id)) is not None
    jobs.work(until=StepKind.PACKAGE)
    assert storage.read_if_there(jobs.shard(protection_id)) is None
    assert storage.read_if_there(jobs.encoded(protection_id)) is not None
    jobs.work(until=StepKind.EVALUATE)
    assert storage.read_if_there(jobs.encoded(protection_id)) is None


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
    assert encode.are_small(sizes) is small


@pytest.mark.parametrize("levels", [1, 9])
def test_a_change_that_must_not_be_fails_the_step(levels: int) -> None:
    """Of an image that was not chosen though it is within the budget, and above it of any."""
    made = job(3)
    change = Change((63, *[0] * (levels - 1), 1), 1 / 64, 0.99)
    with pytest.raises(AppError, match="expected no change") as refused:
        encode._check_change(made, 2, change)
    assert refused.value.code == "UNPROTECTED_CHANGED"
    assert refused.value.message.startswith("2.png: ")
    if levels <= made.config.epsilon_levels:
        encode._check_change(made, 1, change)
    else:
        with pytest.raises(AppError, match="at most 2 levels in the encoded file, got 9"):
            encode._check_change(made, 1, change)
