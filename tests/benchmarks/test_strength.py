"""The rows of pretrained backbones, made and measured by their commands on small data."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import pretrain
from benchmarks.strength import __main__ as command
from benchmarks.strength import page
from sep_core.config import NetworkName
from sep_core.networks import build
from tests import pictures


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.zip"
    path.write_bytes(pictures.zipped(pictures.class_folders(8, 4)))
    return path


def give(folder: Path, network: NetworkName, seed: int) -> str:
    """A file of weights; its digest."""
    ones = torch.ones(3)
    drawn = build(network, 2, 32, ones / 2, ones / 4, torch.Generator().manual_seed(seed))
    path = folder / f"{network}.pt"
    torch.save(drawn.state_dict(), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(monkeypatch: pytest.MonkeyPatch, data: Path, *words: str) -> None:
    folder = data.parent
    given = ["--data", str(data), "--results", str(folder / "results")]
    given += ["--cache", str(folder / "cache"), "--precision", "float32", "--only", "clean"]
    monkeypatch.setattr(sys, "argv", ["strength", *given, *words])
    assert command.main() == 0


def test_rows_of_pretrained_backbones_name_the_file_that_they_begin_with(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = give(data.parent, "mlp", seed=1)
    weights = ("--weights", str(data.parent / "mlp.pt"))
    run(monkeypatch, data, *weights)
    files = sorted((data.parent / "results").rglob("*.json"))
    names = ["mlp-pretrained-frozen-11.json", "mlp-pretrained-tuned-11.json"]
    assert [file.name for file in files] == names
    for file in files:
        assert json.loads(file.read_text())["weights_sha256"] == digest
    assert page.build(data.parent / "results", data.parent / "results.md")

    before = [file.stat().st_mtime_ns for file in files]
    run(monkeypatch, data, *weights)
    assert [file.stat().st_mtime_ns for file in files] == before
    other = give(data.parent, "mlp", seed=2)
    run(monkeypatch, data, *weights)
    assert {json.loads(file.read_text())["weights_sha256"] for file in files} == {other}


def test_a_file_is_made_of_other_images(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--network", "mlp", "--out", str(data.parent / "weights")]
    words += ["--half", "choose", "--epochs", "8", "--precision", "float32"]
    monkeypatch.setattr(sys, "argv", ["pretrain", *words])
    assert pretrain.main() == 0
    *_, digest, accuracy = capsys.readouterr().out.splitlines()
    assert accuracy == "test accuracy: 1 1"
    run(monkeypatch, data, "--weights", str(data.parent / "weights/mlp.pt"))
    for file in (data.parent / "results").rglob("*.json"):
        result = json.loads(file.read_text())
        assert digest.endswith(result["weights_sha256"])
        assert result["last"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "expected a TABLE, --full or --weights"),
        (("matrices",), "expected some of"),
        (("--weights", "resnet18-f37072fd.pth"), "--weights"),
    ],
)
def test_commands_that_are_refused(
    words: tuple[str, ...],
    sentence: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, data, *words)
    assert sentence in capsys.readouterr().err
