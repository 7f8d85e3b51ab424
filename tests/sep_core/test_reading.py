"""Pixels kept on the device or read ahead."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sep_core import reading
from sep_core.config import Plan, SEPConfig
from sep_core.reading import batches, place, read_ahead
from sep_core.training import Epoch, Recipe, fit
from tests.sep_core.conftest import CLASSES, Data


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


def test_a_failure_to_read_comes_where_the_item_would() -> None:
    results = read_ahead(lambda item: 6 // item, [1, 2, 0, 3])
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_thread_ends_with_who_stops_halfway() -> None:
    before = threading.active_count()
    results: Iterator[int] = read_ahead(lambda item: item, range(1000))
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


def test_pixels_stay_where_they_are_on_a_cpu(data: Data) -> None:
    assert place(data[0], "cpu") is data[0]


def test_training_from_a_mapped_file_gives_the_same_weights(
    data: Data, config: SEPConfig, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = data
    path = tmp_path / "pixels"
    path.write_bytes(pixels.numpy().tobytes())
    mapped = torch.from_file(str(path), size=pixels.numel(), dtype=torch.uint8).view(pixels.shape)
    expected = _weights(pixels, labels, config, plan)
    assert torch.equal(_weights(mapped, labels, config, plan), expected)

    def ahead(pixels: Tensor, chosen: tuple[Tensor, ...], device: str) -> Iterator[Tensor]:
        return read_ahead(lambda indices: pixels[indices].to(device), chosen)

    monkeypatch.setattr("sep_core.training.batches", ahead)
    assert torch.equal(_weights(mapped, labels, config, plan), expected)


def test_batches_are_those_of_the_indices(data: Data) -> None:
    chosen = [torch.tensor([3, 1]), torch.tensor([0])]
    taken = list(batches(data[0], chosen, "cpu"))
    assert torch.equal(taken[0], data[0][[3, 1]])
    assert torch.equal(taken[1], data[0][:1])
    assert 0 < reading.RESIDENT_SHARE < 1


def _weights(pixels: Tensor, labels: Tensor, config: SEPConfig, plan: Plan) -> Tensor:
    recipe = Recipe("small", 2, "surrogate")
    *_, last = fit(pixels, labels, CLASSES, recipe, config=config, plan=plan)
    assert isinstance(last, Epoch)
    return torch.cat([p.detach().flatten() for p in last.network.parameters()])
