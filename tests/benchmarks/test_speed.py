"""benchmarks.speed on a stand-in that is laid out as the authors' checkout, on a small network."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import authors, speed
from benchmarks.strength.page import build as build_page
from sep_core.networks import build

MODEL = """
from torch import nn
import torch
from sep_core.networks import build

class Inner(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        self.features = self.network.features(x)
        return self.network.head(self.features)

class Outer(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

def get_model(model_name, num_of_classes=10, dataset=None):
    assert (model_name, dataset) == ("ResNet18", "cifar10")
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    return Outer(Inner(build("small", num_of_classes, 32, mean, std, torch.Generator())))
"""

SCRIPT = """
import a_module_that_is_not_there

@torch.no_grad()
def valid_test(net, dataloader):
    for inputs, targets in dataloader:
        with torch.enable_grad():
            outputs = net(inputs_c)
            loss = criterion({compared})
            grad = {sign}torch.autograd.grad(loss, inputs_c)[0]
"""

SMALL = ["speed", "--network", "small", "--batch", "8", "--rounds", "2"]
NO_LIMIT = ["--min-float32", "0", "--min-bfloat16", "0"]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").touch()
    (tmp_path / "utils" / "tmp.py").write_text(MODEL)
    _write_scripts(tmp_path, sign="")
    yield tmp_path
    for name in ("utils", "utils.tmp"):
        sys.modules.pop(name, None)


def _write_scripts(folder: Path, sign: str) -> None:
    sep = SCRIPT.format(compared="outputs, targets_attack", sign=sign)
    aligned = SCRIPT.format(compared="net.net.features, f[targets_attack]", sign=sign)
    (folder / "ens.py").write_text(sep)
    (folder / "ens_feature.py").write_text(aligned)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [*SMALL, *words])
    return speed.main()


def test_compares_with_the_checkout_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = checkout / "speed" / "here.json"
    assert run(monkeypatch, "--reference", str(checkout), "--record", str(record), *NO_LIMIT) == 0
    kept = json.loads(record.read_text())
    assert kept["reference"] == "the authors' code"
    page = build_page(checkout / "results", checkout / "results.md")[checkout / "results.md"]
    assert f"sep 1 thread gradient pass ratio | {_ratio_in(kept)} |" in page
    printed = capsys.readouterr().out
    assert f"reference: {checkout}" in printed
    for variant in ("sep", "sep-fa"):
        for precision in ("float32", "bfloat16"):
            assert f"{precision} {variant} 1 thread gradient pass ratio: " in printed
            name = f"{variant} 1 thread"
            found = re.search(
                rf"^{precision} {name}: (\S+) images/s$.*"
                rf"^{precision} matrix rate beside {name}: (\S+) GFLOP/s$.*"
                rf"^{precision} {name} share of the matrix rate: (\S+) 1$",
                printed,
                re.MULTILINE | re.DOTALL,
            )
            assert found
            images, rate, share = map(float, found.groups())
            assert share * rate == pytest.approx(2 * 0.07 * images, rel=0.02)
    assert "bfloat16 surrogate training 1 thread: " in printed


def _ratio_in(kept: dict[str, Any]) -> str:
    return str(kept["figures"]["bfloat16 sep 1 thread gradient pass ratio"])


def test_refuses_a_reference_that_does_other_work(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_scripts(checkout, sign="-")
    with pytest.raises(SystemExit, match="same gradient on both sides, got a cosine of -1"):
        run(monkeypatch, "--reference", str(checkout))


def test_names_the_other_side_and_fails_below_the_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--variants", "sep", "--min-float32", "1000") == 1
    assert "reference: our network, not folded, contiguous, float32" in capsys.readouterr().out


def test_refuses_another_layout_and_another_network(tmp_path: Path) -> None:
    (tmp_path / "ens.py").write_text("def valid_test(): pass")
    with pytest.raises(ValueError, match="expected valid_test with a block"):
        authors.gradient_block(tmp_path / "ens.py")
    small = build("small", 10, 32, torch.ones(3), torch.ones(3), torch.Generator())
    other = build("small", 11, 32, torch.ones(3), torch.ones(3), torch.Generator())
    with pytest.raises(ValueError, match="network: expected Linear"):
        authors.copy_weights(small, other)
