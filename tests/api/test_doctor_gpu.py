"""What `sepgate doctor` says of this host's GPUs where no worker has one.

There is no GPU here: scripts say what `nvidia-smi` would.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from api import keys
from api.db import transaction
from api.models import Queue
from api.scheduling import locks
from tests.api.conftest import beat, examined

Smi = Callable[[str], None]


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str]) -> Smi:
    """Makes this script the host's `nvidia-smi`."""
    assert environment
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(script: str) -> None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)

    return make


def lists(driver: str) -> str:
    return f'echo "{driver}, GPU-a1"; echo "{driver}, GPU-b2"'


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "There is no nvidia-smi here."),
        ("echo NVML: version mismatch; exit 18", "nvidia-smi fails (NVML: version mismatch)."),
        ("exec /nowhere", "nvidia-smi fails ("),
        ("exit 0", "nvidia-smi lists no GPU"),
        (lists("570.124.06"), "The driver here is 570.124.06."),
    ],
)
def test_what_keeps_workers_from_a_gpu(smi: Smi, script: str | None, said: str) -> None:
    if script is not None:
        smi(script)
    status, found = examined()
    assert status == 1
    (told,) = found["gpu"]
    assert told.startswith(f"warn {said}")
    for mend in ("series 580", "nvidia-container-toolkit", "`gpus`", "SEPGATE_DEVICE=auto"):
        assert mend in told


def test_a_gpu_that_waits_for_a_worker(smi: Smi) -> None:
    smi(lists("580.65.06"))
    (told,) = examined()[1]["gpu"]
    assert "here are GPU-a1, GPU-b2 (driver 580.65.06): start `sepgate worker --queue gpu`" in told


@pytest.mark.parametrize(("device", "told"), [("cpu", 1), ("cuda", 0)])
def test_nothing_fails_where_the_queue_is_served(smi: Smi, device: str, told: int) -> None:
    """Without a GPU that is worth a word; with one, on another host maybe, nothing is said."""
    smi("exit 18")
    beat(Queue.GPU, device)
    beat(Queue.CPU, "cpu")
    with transaction() as session:
        keys.create(session, "tester")
        assert locks.hold(session, locks.SWEEP, "host/1:1", 60)
    status, found = examined()
    assert status == 0
    assert len(found.get("gpu", [])) == told
