"""`encode`: one part of the images as files, and what is known of them."""

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO, Any
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import protections, storage
from api.archive import ImageRecord, IngestResult, Numbers, Pixels
from api.errors import AppError
from api.models import Protection, StepKind
from api.settings import settings
from sep_core.cells import Evaluation
from sep_core.config import Plan, SEPConfig
from tests import pictures
from tests.worker import jobs
from worker import alive, encoded, metrics
from worker.data import Job, Reader, encoded_key
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


class Cut(Job):
    """Into parts as a test has them: a real one asks for its data set."""

    parts: Sequence[Numbers] = ()


def job(number: int, parts: Sequence[Sequence[int]] = ()) -> Job:
    """Of so many images."""
    records = tuple(
        ImageRecord(f"{at}.png", "train", "bee", 8, 8, 1, "PNG", "0" * 64, f"{at}.png")
        for at in range(number)
    )
    made = Cut(
        *(uuid4(), uuid4(), SEPConfig(seed=jobs.SEED)),
        Plan(device="cpu", precision="float32"),
        Evaluation(),
        IngestResult(records, (), ("bee",)),
        "0" * 64,
    )
    object.__setattr__(made, "parts", [np.array(part, np.int64) for part in parts])
    return made


def part(records: Sequence[ImageRecord], files: Sequence[encode.File]) -> IO[bytes]:
    """Their table, as it lies in storage."""
    file = io.BytesIO()
    table = encoded.Table(file)
    for record, (data, change) in zip(records, files, strict=True):
        table.append(record, data, change)
    assert len(table) == len(files)
    table.write()
    return file


@given(files, st.randoms(use_true_random=False))
def test_what_tables_say_of_images_comes_back_whichever_part_has_them(
    expected: list[encode.File], draws: Any
) -> None:
    order = draws.sample(range(len(expected)), len(expected))
    cut = draws.randint(0, len(expected))
    parts = [sorted(part) for part in (order[:cut], order[cut:]) if part]
    made = job(len(expected), parts)
    together = patch.object(encoded, "_TOGETHER", draws.randint(1, 3))
    with together, closing(encoded.Encoded(made)) as whole:
        for number, indices in enumerate(parts):
            of_part = [made.records[index] for index in indices]
            whole._add(number, part(of_part, [expected[index] for index in indices]))
        for index, (data, change) in enumerate(expected):
            assert whole.change(index) == change
            assert whole.sha256(index) == hashlib.sha256(data).hexdigest()
            assert whole.sizes_bytes[index] == len(data)
            assert whole.ssim[index] == change.ssim


FILE = b"", Change((1,), 0.0, 1.0)


@pytest.mark.parametrize("taken", [(1, 2), (0, 1, 2), (0,), (1, 0)])
def test_a_table_of_other_images_is_none(taken: Sequence[int]) -> None:
    """Whatever cut the parts otherwise: a file must not leave under another's name."""
    made = job(3, [[0, 1], [2]])
    with closing(encoded.Encoded(made)) as whole:
        for together in (1, 1024):
            with patch.object(encoded, "_TOGETHER", together):
                table = part([made.records[index] for index in taken], [FILE] * len(taken))
            with pytest.raises(AppError, match="expected part 0 of its 2 images") as refused:
                whole._add(0, table)
            assert refused.value.code == "BLOB_CHANGED"
        renamed = replace(made.records[0], released_name="other.png")
        with pytest.raises(AppError):
            whole._add(0, part([renamed, made.records[1]], [FILE] * 2))
        whole._add(0, part(made.records[:2], [FILE] * 2))
        with pytest.raises(AppError, match="expected 2 parts as encoded, got 1"):
            next(whole.read_tables([{}]))


@pytest.mark.usefixtures("environment")
def test_files_come_back_in_order_from_wherever_they_lie() -> None:
    parts = [[0, 1, 4, 5, 8], [2, 3, 6, 7]]
    made = job(9, parts)
    files = [(bytes([index]) * (1 + index % 4 * 100), FILE[1]) for index in range(9)]
    with closing(encoded.Encoded(made)) as whole:
        for number, indices in enumerate(parts):
            of_part = [files[index] for index in indices]
            key = encoded_key(made.protection_id, made.plan, number)
            storage.write(key, b"".join(data for data, _ in of_part))
            whole._add(number, part([made.records[index] for index in indices], of_part))
        for start, stop in itertools.combinations(range(10), 2):
            found = whole.files(range(start, stop))
            assert found == [data for data, _ in files[start:stop]]
        storage.write(key, b"x" * 600)
        assert whole.files(range(2)) == [data for data, _ in files[:2]]
        with pytest.raises(AppError, match=r"00001\.bin: expected what an earlier step has stored"):
            whole.files(range(1, 3))


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


def test_a_change_that_must_not_be_fails_the_step() -> None:
    """Of an image that was not chosen though it is small, and of any above the budget."""
    record, change = job(1).records[0], Change((61, 2, 1), 3 / 64, 0.99)
    encode.check_change(record, change, 2)
    for allowed, code in ((0, "UNPROTECTED_CHANGED"), (1, "BUDGET_EXCEEDED")):
        with pytest.raises(AppError, match=r"^0\.png: expected .*, got 2") as refused:
            encode.check_change(record, change, allowed)
        assert refused.value.code == code
