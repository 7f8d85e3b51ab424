"""A call in a thread, and the signs of life meanwhile."""

import hashlib
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

from api import storage
from worker import alive

T = TypeVar("T")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "SECONDS", 0.02)


def rest(work: Generator[None, None, T]) -> tuple[int, T]:
    """How many signs of life there still were, and the result."""
    signs = 0
    while True:
        try:
            next(work)
        except StopIteration as end:
            return signs, end.value
        signs += 1


def test_a_computation_yields_until_it_is_there() -> None:
    over = threading.Event()
    work = alive.computing(lambda: over.wait(30))
    for _ in range(3):
        next(work)
    over.set()
    assert rest(work)[1] is True


@pytest.mark.parametrize("error", [TimeoutError("late"), OSError("away"), KeyError("x")])
def test_what_it_raises_comes_out(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        list(alive.computing(call))
    assert raised.value is error


@pytest.mark.parametrize(("reads", "least", "most"), [(0, 0, 1), (4, 2, 5)])
def test_only_getting_on_with_the_file_is_a_sign_of_life(reads: int, least: int, most: int) -> None:
    def call() -> None:
        for _ in range(reads):
            file.read(2**20)
            time.sleep(0.1)  # five looks at a file that does not move
        time.sleep(0.5)

    with tempfile.TemporaryFile() as file:
        file.write(bytes(4 * 2**20))
        file.seek(0)
        signs, _ = rest(alive.reading(call, file))
    assert least <= signs <= most


@pytest.mark.usefixtures("environment")
def test_storing_yields_and_stores() -> None:
    data = bytes(range(256)) * 2**18
    with tempfile.TemporaryFile() as file:
        file.write(data)
        work = alive.reading(lambda: storage.write("protections/x/archive.zip", file), file)
        signs, digest = rest(work)
    assert signs
    assert digest == hashlib.sha256(data).hexdigest()
    assert storage.read("protections/x/archive.zip") == data


@pytest.mark.usefixtures("environment")
def test_storing_that_is_broken_off_ends_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as made:
        made.truncate(4 * 2**30)  # sparse: no room is taken until it is stored
    with path.open("rb") as file:
        work = alive.reading(lambda: storage.write("protections/x/archive.zip", file), file)
        next(work)
        began = time.monotonic()
        work.close()
        assert time.monotonic() - began < 2
        assert file.closed
    with pytest.raises(FileNotFoundError):
        storage.read("protections/x/archive.zip")


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_with_signs_in_between(threads: int) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def call(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1 if number % 3 == 0 else 0.001)
        with lock:
            at_once -= 1
        return number

    found = list(alive.in_order(call, range(12), threads))
    assert [result for result in found if result is not None] == list(range(12))
    assert None in found
    assert most == threads


def test_a_call_that_hangs_gives_no_signs_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "MOST_SECONDS", 0.2)
    over = threading.Event()
    threading.Timer(1, over.set).start()
    found = list(alive.in_order(lambda _: over.wait(30), range(1), 1))
    assert found[-1] is True
    assert len(found) < 0.5 / alive.SECONDS


def test_nothing_is_begun_after_one_that_fails() -> None:
    begun = []

    def call(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        return 1 // (number - 3)

    work = alive.in_order(call, range(1000), 2)
    with pytest.raises(ZeroDivisionError):
        list(work)
    assert len(begun) < 10
