"""Room for pixels: in memory, or in a file that has no name any more; decoding by threads."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sep_core.pixels import to_images, to_input, to_pixels
from tests import pictures
from tests.worker import jobs
from worker import alive, tensors
from worker.data import load_index, open_source

FILES = pictures.class_folders(3)


def mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


def test_room_above_the_limit_is_a_file_without_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 3 * 20 * 20)
    assert tensors.room((1, 3, 20, 20)).shape == (1, 3, 20, 20)
    assert not mapped(tmp_path)
    pixels = tensors.room((2, 3, 20, 20))
    assert mapped(tmp_path)
    assert list(tmp_path.iterdir()) == []
    pixels.fill_(7)
    assert pixels.sum() == 7 * 2 * 3 * 20 * 20
    del pixels
    assert not mapped(tmp_path)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


@pytest.mark.usefixtures("environment", "four_threads")
@pytest.mark.parametrize(
    ("decoded_bytes", "threads"), [(192_000_000, 4), (2 * 32 * 32 * 3, 2), (1, 1)]
)
def test_threads_decode_the_same_in_order_and_fewer_where_images_are_large(
    monkeypatch: pytest.MonkeyPatch, decoded_bytes: int, threads: int
) -> None:
    dataset = jobs.upload(pictures.zipped(FILES))
    records = load_index(dataset.id).records
    with open_source(dataset.id) as reader:
        alone = [to_images(tensors.tensor([reader.pixels(record)])) for record in records]
        monkeypatch.setattr(alive, "AT_ONCE_BYTES", decoded_bytes)
        monkeypatch.setattr(alive, "TOGETHER", 2)
        before = threading.active_count()
        work = tensors.at_input_size(reader, records, 20)
        images = [next(work)]
        assert 1 <= threading.active_count() - before <= threads
        images += work
    assert torch.equal(torch.stack(images), to_pixels(to_input(torch.cat(alone), 20)))


def test_who_stacks_a_batch_starts_no_team_of_threads() -> None:
    """It is read ahead while another is perturbed, which then would have to share the cores."""
    script = """
import os, threading, numpy as np, torch
from worker import tensors
torch.set_num_threads(2)
images = [np.zeros((64, 64, 3), np.uint8)] * 256
found = []
def read():
    before = len(os.listdir("/proc/self/task"))
    parts = tensors.parts(images)
    found.append((len(os.listdir("/proc/self/task")) - before, [part.shape for part in parts]))
thread = threading.Thread(target=read)
thread.start()
thread.join()
assert found == [(0, [(256, 3, 64, 64)])], found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
