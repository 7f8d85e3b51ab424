"""Pixels kept on the device or read ahead."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sep_core import reading
from sep_core.config import Plan, SEPConfig
from sep_core.inference import infer
from sep_core.networks import Network
from sep_core.reading import batches, place, read_ahead
from sep_core.training import Epoch, Recipe, fit
from tests.sep_core.conftest import CLASSES, Data
from tests.sep_core.trainings import flat


def test_items_come_in_order_and_the_next_is_read_while_one_is_used() -> None:
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        return item * item

    results = read_ahead(read, range(5))
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while started != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert started == [0, 1]  # the next, and no more
    assert list(results) == [1, 4, 9, 16]
    assert list(read_ahead(read, [])) == []


def test_nothing_is_read_twice_at_a_time() -> None:
    busy = threading.Lock()

    def read(item: int) -> int:
        assert busy.acquire(blocking=False)
        time.sleep(0.002)
        busy.release()
        return item

    assert list(read_ahead(read, range(20))) == list(range(20))


@pytest.mark.parametrize("threads", [2, 5])
def test_several_threads_keep_the_order_and_read_no_further_ahead(threads: int) -> None:
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        time.sleep(0.001 * (item % 3))  # who begins later may be ready sooner
        return item

    for item, result in enumerate(read_ahead(read, range(30), threads)):
        assert result == item
        assert len(started) <= item + 1 + threads


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_to_read_comes_where_the_item_would(threads: int) -> None:
    before = threading.active_count()
    results = read_ahead(lambda item: 6 // item, [1, 2, 0, 3, 0, 1], threads)
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 4])
def test_the_threads_end_with_who_stops_halfway(threads: int) -> None:
    before = threading.active_count()
    started: list[int] = []
    results = read_ahead(started.append, range(1000), threads)
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(started) <= 1 + threads


def test_a_training_that_is_broken_off_leaves_no_thread(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    before = threading.active_count()
    small = replace(config, batch_size=4)
    work = fit(*data, CLASSES, Recipe("small", 2, "surrogate"), config=small, plan=plan)
    next(work)
    assert threading.active_count() > before
    work.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


def test_pixels_stay_where_they_are_on_a_cpu(data: Data) -> None:
    (placed,) = place([data[0]], "cpu")
    assert placed is data[0]


@pytest.mark.parametrize(
    ("memory_images", "resident"),
    [(9, [False, True]), (10, [True, False]), (13, [True, False]), (14, [True, True])],
)
def test_parts_share_what_pixels_may_take_of_a_device(
    monkeypatch: pytest.MonkeyPatch, memory_images: int, resident: list[bool]
) -> None:
    """The first that fits goes first; `meta` is a device that every machine has."""
    parts = [torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]
    memory_bytes = memory_images * 3 * 4 * 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, memory_bytes))
    assert reading.RESIDENT_SHARE == 0.5
    placed = place(parts, "meta")
    assert [pixels.device.type == "meta" for pixels in placed] == resident


def test_mapped_pixels_give_the_same_weights_and_features(
    data: Data, config: SEPConfig, plan: Plan, tmp_path: Path
) -> None:
    pixels, labels = data
    path = tmp_path / "pixels"
    path.write_bytes(pixels.numpy().tobytes())
    mapped = torch.from_file(str(path), size=pixels.numel(), dtype=torch.uint8).view(pixels.shape)
    expected, actual = (_trained(p, labels, config, plan) for p in (pixels, mapped))
    assert torch.equal(flat(actual), flat(expected))
    seen = expected.eval().features
    assert torch.equal(*(torch.cat(list(infer(seen, part, plan))) for part in (pixels, mapped)))


def test_batches_are_those_of_the_indices(data: Data) -> None:
    chosen = [torch.tensor([3, 1]), torch.tensor([0]), torch.tensor([5, 5, 2])]
    taken = list(batches(data[0], chosen, "cpu"))
    assert [batch.tolist() for batch in taken] == [data[0][i].tolist() for i in chosen]
    assert list(batches(data[0], [], "cpu")) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_are_the_same_on_a_gpu_read_ahead_or_resident(data: Data) -> None:
    chosen = torch.split(torch.randperm(len(data[0])), 3)
    (resident,) = place([data[0]], "cuda")
    for pixels in (resident, data[0]):
        taken = [batch.cpu() for batch in batches(pixels, chosen, "cuda")]
        assert torch.equal(torch.cat(taken), data[0][torch.cat(chosen)])


def _trained(pixels: Tensor, labels: Tensor, config: SEPConfig, plan: Plan) -> Network:
    recipe = Recipe("small", 2, "surrogate")
    *_, last = fit(pixels, labels, CLASSES, recipe, config=config, plan=plan)
    assert isinstance(last, Epoch)
    return last.network


def test_readers_start_no_teams_of_threads() -> None:
    """Each would take the cores from the network that is being trained meanwhile."""
    script = """
import os, torch
from sep_core.reading import READ_THREADS, batches
torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
pixels = torch.zeros(2000, 3, 32, 32, dtype=torch.uint8)
before = len(os.listdir("/proc/self/task"))
for _ in batches(pixels, torch.arange(2000).split(200), "cpu"):
    assert len(os.listdir("/proc/self/task")) <= before + READ_THREADS
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
