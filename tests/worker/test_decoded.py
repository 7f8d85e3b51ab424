"""Pixels at input size: decoded once for a protection, the same from every way, gone with it."""

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import torch
from torch import Tensor

from api import protections, storage
from api.archive import ImageRecord, Pixels
from api.db import transaction
from api.models import ProtectionState, StepKind
from api.settings import settings
from sep_core.pixels import to_images, to_input, to_pixels
from tests import pictures
from tests.api.conftest import blobs
from tests.worker import jobs
from worker import decoded, lease, sweep, tensors
from worker.data import Job, Reader, load_planned, open_released, open_source
from worker.tensors import Part

pytestmark = [
    pytest.mark.usefixtures("environment"),
    # Nothing here depends on the kind of database.
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

FILES = pictures.class_folders(4, 2, (24, 30))
SOURCES = {"originals": decoded.originals, "released": decoded.released}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process's temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def run_until(kind: StepKind) -> UUID:
    """A protection that waits for its steps of this kind."""
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id)
    jobs.work(until=kind)
    return protection_id


def job_of(protection_id: UUID) -> Job:
    return load_planned(protection_id)


def end(work: Generator[tuple[int, int], None, Tensor]) -> Tensor:
    try:
        while True:
            assert next(work) == (0, 0)
    except StopIteration as over:
        pixels: Tensor = over.value
        return pixels


def part(
    job: Job, start: int | None = None, stop: int | None = None, step: int | None = None
) -> Part:
    return Part(job.records, np.arange(len(job.records))[start:stop:step])


def kept(protection_id: UUID) -> list[Path]:
    """Everything where decoded pixels lie, half-written files included."""
    folder = storage.local_path(storage.protection_key(protection_id, protections.DECODED))
    assert folder is not None
    return sorted(folder.rglob("*"))


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def one_by_one(job: Job, source: str) -> Tensor:
    opened = (
        open_source(job.dataset_id) if source == "originals" else open_released(job.protection_id)
    )
    with opened as reader:
        images = [to_images(tensors.tensor([reader.pixels(record)])) for record in job.records]
    return torch.cat([to_pixels(to_input(image, job.config.input_pixels)) for image in images])


def test_they_are_those_of_every_image_by_itself_kept_or_mapped(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    job = job_of(run_until(StepKind.EVALUATE))
    for source in SOURCES:
        with monkeypatch.context() as patch:
            check(job, source, patch)
    assert list(temporary.iterdir()) == []


def check(job: Job, source: str, patch: pytest.MonkeyPatch) -> None:
    expected = one_by_one(job, source)
    first = end(SOURCES[source](job, part(job)))
    later = end(SOURCES[source](job, part(job)))
    assert first.dtype == torch.uint8
    assert torch.equal(first, expected)
    assert torch.equal(later, expected)
    blob = next(path for path in kept(job.protection_id) if path.read_bytes() == bytes_of(expected))
    assert not mapped(blob)
    patch.setattr(tensors, "MAPPED_BYTES", expected.nbytes - 1)
    from_file = end(SOURCES[source](job, part(job)))
    assert mapped(blob)
    assert torch.equal(from_file, expected)
    assert not from_file.numpy().flags.owndata
    assert read_only(blob)  # nothing that is done to the tensor can reach the blob
    del from_file
    assert not mapped(blob)


def read_only(file: Path) -> bool:
    """Whether this process may not write into its mappings of a file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[1][:2] for line in lines if str(file) in line} == {"r-"}


def test_more_is_mapped_than_there_is_memory(tmp_path: Path) -> None:
    """The system would not promise as much for a mapping that may be written into."""
    size = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sparse = tmp_path / "pixels"
    sparse.touch()
    os.truncate(sparse, size)
    pixels = decoded._mapped(sparse, size)
    assert pixels.shape == (size,)
    assert pixels[-1] == 0


def bytes_of(pixels: Tensor) -> bytes:
    return pixels.numpy().tobytes()


def test_another_selection_or_side_is_decoded_by_itself() -> None:
    job = job_of(run_until(StepKind.PERTURB))
    whole = end(decoded.originals(job, part(job)))
    before = len(kept(job.protection_id))
    assert torch.equal(end(decoded.originals(job, part(job, 3, 7))), whole[3:7])
    assert torch.equal(end(decoded.originals(job, part(job, step=-1))), whole.flip(0))
    assert end(decoded.originals(job, part(job, stop=0))).shape == (0, 3, *whole.shape[2:])
    small = replace(job, config=replace(job.config, input_pixels=20))
    assert torch.equal(end(decoded.originals(small, part(job))), one_by_one(small, "originals"))
    assert len(kept(job.protection_id)) == before + 4


def test_eight_evaluations_decode_every_part_once_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"countermeasures": ["none", "grey"], "networks": ["linear"], "seeds": 2}
    protection_id = jobs.ask(jobs.upload(pictures.zipped(FILES)).id, asked)
    jobs.work(until=StepKind.EVALUATE)
    read = counted(monkeypatch)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.SUCCEEDED
    train = sum(name.startswith("train") for name in FILES)
    assert read == {True: train}  # `train` has left the originals
    assert kept(protection_id) == []


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """How many images are decoded from now on, from uploads and from released archives."""
    read: Counter[bool] = Counter()

    def count(reader: Reader) -> None:
        read[reader._released] += 1

    before_each_image(monkeypatch, count)
    return read


def before_each_image(monkeypatch: pytest.MonkeyPatch, call: Callable[[Reader], None]) -> None:
    pixels = Reader.pixels

    def after(reader: Reader, record: ImageRecord) -> Pixels:
        call(reader)
        return pixels(reader, record)

    monkeypatch.setattr(Reader, "pixels", after)


def test_a_job_ends_in_the_same_bytes_mapped_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pictures.zipped(FILES)
    expected = jobs.protect(archive)[1]
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    assert jobs.protect(archive)[1] == expected


def test_who_stops_halfway_leaves_nothing(temporary: Path) -> None:
    job = job_of(run_until(StepKind.PERTURB))
    before, threads = kept(job.protection_id), threading.active_count()
    intra_op = torch.get_num_threads()
    work = decoded.originals(job, part(job))
    assert [next(work), next(work)] == [(0, 0)] * 2
    work.close()
    assert kept(job.protection_id) == before
    assert list(temporary.iterdir()) == []
    assert threading.active_count() == threads
    assert torch.get_num_threads() == intra_op


def test_a_protection_cancelled_while_it_decodes_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    dataset = jobs.upload(pictures.zipped(FILES))
    before, threads = blobs(), threading.active_count()
    protection_id = jobs.ask(dataset.id)
    read: list[Reader] = []

    def cancel(reader: Reader) -> None:
        read.append(reader)
        if len(read) == 5:
            with transaction() as session:
                protections.cancel(session, jobs.owner(), protection_id)

    before_each_image(monkeypatch, cancel)
    monkeypatch.setattr(lease, "REPORT_SECONDS", 0)
    jobs.work()
    assert jobs.show(protection_id).state is ProtectionState.CANCELLED
    assert 5 <= len(read) < len(FILES)
    assert blobs() == before
    assert list(temporary.iterdir()) == []
    assert threading.active_count() == threads


def test_what_a_killed_process_left_is_collected_or_goes_with_the_data_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protection, _ = jobs.protect(pictures.zipped(FILES))
    monkeypatch.setattr(settings(), "orphan_grace_seconds", 0)
    cleaners: list[Callable[[], None]] = [
        sweep.collect,
        lambda: protections.clean_originals([protection.id]),
    ]
    for clean in cleaners:
        job = job_of(protection.id)
        end(decoded.originals(job, part(job)))
        (blob,) = kept(protection.id)
        blob.with_name(f"{blob.name}#{'0a' * 16}.part").write_bytes(b"half written")
        clean()
        assert kept(protection.id) == []
    assert storage.read(storage.protection_key(protection.id, protections.ARCHIVE))


def test_a_blob_that_is_too_short_is_decoded_again() -> None:
    job = job_of(run_until(StepKind.PERTURB))
    expected = end(decoded.originals(job, part(job, stop=5)))
    blob = max(kept(job.protection_id), key=lambda path: path.stat().st_mtime_ns)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert torch.equal(end(decoded.originals(job, part(job, stop=5))), expected)
    assert blob.read_bytes() == bytes_of(expected)


def test_who_decodes_the_same_at_once_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first has stored, and perhaps mapped, stays."""
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    job = job_of(run_until(StepKind.PERTURB))
    before, expected = kept(job.protection_id), one_by_one(job, "originals")
    slow = decoded.originals(job, part(job))
    assert [next(slow), next(slow)] == [(0, 0)] * 2
    quick = end(decoded.originals(job, part(job)))
    (blob,) = set(kept(job.protection_id)) - set(before)
    first = blob.stat().st_ino
    assert torch.equal(end(slow), expected)
    assert kept(job.protection_id) == sorted([*before, blob])
    assert blob.stat().st_ino == first
    storage.remove(storage.protection_key(job.protection_id))
    assert torch.equal(quick, expected)
