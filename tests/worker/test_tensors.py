"""Pixels at input size: in memory, or in a file that has no name any more."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import pictures
from tests.worker import jobs
from worker import tensors
from worker.data import load_index, open_source

pytestmark = pytest.mark.usefixtures("environment")

FILES = pictures.class_folders(3)


def at_input_size() -> Tensor:
    dataset = jobs.upload(pictures.zipped(FILES))
    events = []
    with open_source(dataset.id) as reader:
        records = load_index(dataset.id).records
        work = tensors.at_input_size(reader, records, 20)
        try:
            while True:
                events.append(next(work))
        except StopIteration as end:
            assert events == [(0, 0)] * len(records)
            pixels: Tensor = end.value
            return pixels


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def test_pixels_mapped_from_a_file_are_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = at_input_size()
    assert expected.shape == (len(FILES), 3, 20, 20)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert torch.equal(at_input_size(), expected)
    assert not mapped(folder)
    monkeypatch.setattr(tensors, "MAPPED_BYTES", expected.nbytes - 1)
    actual = at_input_size()
    assert mapped(folder)
    assert torch.equal(actual, expected)
    assert list(folder.iterdir()) == []
    del actual
    assert not mapped(folder)


def test_a_job_ends_in_the_same_bytes_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pictures.zipped(FILES)
    expected = jobs.protect(archive)[1]
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 0)
    assert jobs.protect(archive)[1] == expected
