"""benchmarks.paper at toy size: killed, resumed, read back."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from api.plans import planning
from benchmarks import resumable
from benchmarks.data import Data
from benchmarks.paper import __main__ as paper
from benchmarks.paper import pieces
from benchmarks.paper.data import read, write
from benchmarks.paper.pieces import Piece
from benchmarks.paper.trials import STAGES, Trial, configure, surrogate_of, trained_by
from benchmarks.strength import page, results
from benchmarks.strength.cells import PERTURBATION
from benchmarks.strength.recipes import OWN
from sep_core.config import NetworkName, Plan, checkpoint_epochs, resolve
from sep_core.costs import gradient_passes
from sep_core.optimisation import learning_rate
from sep_core.presets import FAST, at_budget, paper_for
from sep_core.training import Recipe, fit
from tests import pictures

ROOT = Path(__file__).parents[2]
SIDE = 16
SMALL = ["--device", "cpu", "--precision", "float32", "--shard", "25", "--batch", "10"]
for change in (
    *("surrogate=small", "appropriator=small", "epochs=8", "checkpoints=8", "inner_steps=2"),
    *("steps=3", "appropriator_epochs=2", "batch_size=8"),
):
    SMALL += ["--set", change]
# A machine with PyTorch and torchvision alone.
BARE = """
import runpy, sys
for name in ("jaxtyping", "beartype", "pydantic", "jinja2", "skimage", "scipy"):
    sys.modules[name] = None
sys.argv[0] = "paper"
runpy.run_module("benchmarks.paper", run_name="__main__")
"""


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 9 test images of three classes, each with its colour."""
    draws = torch.Generator().manual_seed(1)
    splits = []
    for images in (60, 9):
        labels = torch.arange(images) % 3
        pixels = torch.randint(0, 160, (images, 3, SIDE, SIDE), generator=draws)
        pixels[torch.arange(images), labels] += 90
        splits.append((pixels.to(torch.uint8), labels))
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    write(Data(splits[0], splits[1], 3), path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, npz: Path, out: Path, *words: str) -> int:
    monkeypatch.setattr(
        sys, "argv", ["paper", "two", "--data", str(npz), "--out", str(out), *SMALL, *words]
    )
    try:
        return paper.main()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def whole(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has disturbed."""
    out = tmp_path_factory.mktemp("paper") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(monkeypatch, npz, out) == 0
    return out


def contents(out: Path) -> dict[str, object]:
    """Of every file, what a training took apart."""
    found: dict[str, object] = {}
    for path in sorted(file for file in out.rglob("*") if file.suffix in (".pt", ".json")):
        name = str(path.relative_to(out))
        if path.suffix == ".pt":
            found[name] = path.read_bytes()
        else:
            found[name] = json.loads(path.read_text()) | {"seconds": None}
    return found


def kill_when(npz: Path, out: Path, file: str) -> None:
    """Start the work on a bare machine and kill it as soon as `file` is there."""
    command = [sys.executable, "-c", BARE, "two", "--data", str(npz), "--out", str(out), *SMALL]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (out / file).exists():
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_killed_in_the_middle_and_resumed_to_the_same_bytes(
    *,
    npz: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = tmp_path / "cut"
    kill_when(npz, cut, "surrogate/epoch-0003.pt")  # in the middle of a training
    kill_when(npz, cut, "released/fast-2-1/000000.pt")  # and of the images of one recipe
    assert 0 < len(contents(cut)) < len(contents(whole))
    assert run(monkeypatch, npz, cut) == 0
    assert contents(cut) == contents(whole)

    printed = capsys.readouterr().out
    assert "clean 0 levels small last: " in printed
    assert printed.rstrip().endswith("left: 0 PFLOP")
    assert run(monkeypatch, npz, cut) == 0
    assert "0 of 17 pieces left: 0 of" in capsys.readouterr().out


def test_trainings_go_on_where_they_were_cut_off(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    base = resolve(paper._base(SIDE, [word for word in SMALL if "=" in word]), 3)
    plan = Plan(device="cpu", precision="float32", threads=1, batch_size=10)
    found = []
    for out, cuts in ((tmp_path / "whole", 0), (tmp_path / "cut", 3)):
        bench = pieces.Bench(out, read(npz), base, plan, 25)
        for piece in pieces.pieces(bench, ["two"])[:2]:  # surrogate and clean baseline
            first = []
            for cut in range(cuts):
                begun = piece.work()
                first.append(next(begun))
                for share in begun:
                    if share > (cut + 1) / (cuts + 1):
                        break
            assert not cuts or first[-1] > first[0]
            list(piece.work())
            assert piece.done
        assert list((out / "resume").iterdir()) == []
        found.append(contents(out))
    assert found[0] == found[1]


def test_results_are_those_of_the_page_and_within_the_budget(npz: Path, whole: Path) -> None:
    measured = {result.cell.recipe: result for result in results.read(whole / "results")}
    # fast: 4 steps of 4 passes, and for the patterns 2 a step through all images;
    # sep-fa-vr: 3 steps of half the 8 checkpoints and 2 inner passes.
    assert {name: m.passes for name, m in measured.items()} == {
        "clean": 0,
        "fast": 4 * 4 + 2 * FAST.class_steps,
        "sep-fa-vr": 18,
        "fast-own": 4 * 4 + 2 * FAST.class_steps,
    }
    clean = read(npz).train[0].int()
    for name in ("fast-2-1", "sep-fa-vr-2-1", "fast-own-2-1"):
        shards = sorted((whole / "released" / name).glob("0*.pt"))
        assert [path.name for path in shards] == ["000000.pt", "000025.pt", "000050.pt"]
        released = torch.cat([torch.load(path, weights_only=True) for path in shards])
        assert (released.int() - clean).abs().amax() == 2


def test_results_are_shown_each_recipe_with_its_own_surrogate(whole: Path, tmp_path: Path) -> None:
    """Here all have the small one; on a GPU it is `fast-own`'s alone."""
    folder = shutil.copytree(whole / "results", tmp_path / "results")
    for path in folder.rglob("*.json"):
        record = json.loads(path.read_text())
        record["config"]["surrogate"] = "small" if record["recipe"] == OWN else "resnet18"
        path.write_text(json.dumps(record))
    shown = page.build(folder, tmp_path / "results.md")
    told = shown[tmp_path / "results.md"]
    assert re.search(r"costs [\d.]+ GFLOP an image \(`fast-own`'s [\d.]+\) beside that", told)
    assert re.search(r"`fast` [\d.e-]+ PFLOP, `fast-own` [\d.e-]+ PFLOP all told", told)
    (curve,) = (text for path, text in shown.items() if path.suffix == ".svg")
    assert ">GFLOP of gradient passes an image<" in curve


def test_stops_at_the_limit_and_says_what_is_left(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, npz, tmp_path, "--limit-minutes", "0") == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("17 of 17 pieces left: ")
    total = printed[0].split(" of ")[2].split(" ")[0]
    assert printed[-2:] == [
        f"left: {total} PFLOP",
        "limit: nothing that lasts was done in 0 minutes; allow more",
    ]


def test_tells_the_time_that_is_left_as_soon_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what was done here: the first quarter is of an earlier run."""
    monkeypatch.setattr(paper, "REPORT_SECONDS", -1)
    clock = iter([0, *(60 * minute for minute in (0, 0, 10, 10, 20, 20))])
    monkeypatch.setattr(paper, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    piece = Piece("patterns", 1e6, [tmp_path / "file"], lambda: iter([0.25, 0.5]))
    assert paper._work_off([piece], lambda: False) == (0.75, [])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "patterns: 25%"
    assert second == "patterns: 50%; about 20 min left"


@pytest.mark.parametrize("judges", [True, False])
def test_a_training_that_diverges_stops_no_other(judges: bool, tmp_path: Path) -> None:
    def diverge() -> Iterator[float]:
        yield 0.5
        raise FloatingPointError

    wild = Piece("wild", 1e6, [tmp_path / "wild"], diverge, judges=judges)
    tame = Piece("tame", 2e6, [tmp_path / "tame"], lambda: iter([0.0, 0.5]))
    if judges:
        assert paper._work_off([wild, tame], lambda: False) == (2, [wild])
    else:  # others need its files
        with pytest.raises(FloatingPointError):
            paper._work_off([wild, tame], lambda: False)


def test_settings_are_numbers_where_they_can_be() -> None:
    base = paper._base(SIDE, ["learning_rate=0.05", "epochs=40", "surrogate=small"])
    assert (base.learning_rate, base.epochs, base.surrogate) == (0.05, 40, "small")


def test_refuses_the_folder_of_another_run(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, npz, tmp_path, "--limit-minutes", "0")
    with pytest.raises(ValueError, match="out: expected a run as in"):
        run(monkeypatch, npz, tmp_path, "--set", "epochs=9", "--limit-minutes", "0")


def test_goes_on_with_another_pytorch_and_says_so(
    npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, npz, tmp_path, "--limit-minutes", "0")
    file = tmp_path / "run.json"
    begun = json.loads(file.read_text())
    now, earlier = begun["versions"][0], begun["versions"][0] | {"torch": "2.11.0"}
    file.write_text(json.dumps(begun | {"versions": [earlier]}))
    run(monkeypatch, npz, tmp_path, "--limit-minutes", "0")
    assert f"run: goes on with {now}, was begun with {earlier}" in capsys.readouterr().out
    assert json.loads(file.read_text()) == begun | {"versions": [earlier, now]}
    run(monkeypatch, npz, tmp_path, "--limit-minutes", "0")
    assert "run: goes on" not in capsys.readouterr().out


def test_a_release_beyond_the_budget_is_not_trained_on(
    npz: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "changed"
    shutil.copytree(whole, out)
    shard = out / "released/fast-2-1/000000.pt"
    torch.save(torch.load(shard, weights_only=True) ^ 8, shard)
    next((out / "results/paper/fast-2-1").iterdir()).unlink()
    with pytest.raises(ValueError, match="change: expected at most 2 levels, got"):
        run(monkeypatch, npz, out)


def test_recipes_are_the_papers_and_share_their_checkpoints() -> None:
    base = paper_for("sep")
    kept = set(checkpoint_epochs(base.epochs, base.checkpoints))
    passes = {}
    for trial in (trial for trials in STAGES.values() for trial in trials):
        config = configure(trial, base)
        own = trial.recipe == OWN
        assert own or set(checkpoint_epochs(config.epochs, config.checkpoints)) <= kept
        assert trial.recipe == "clean" or config.epsilon_levels == trial.levels
        passes[trial.recipe] = gradient_passes(config)
    assert passes | {"clean": 0} == {
        "clean": 0,
        "fast": 16,
        "fast-own": 16,
        "sep-fa-vr": 900,
        "sep-fa": 900,
        "sep": 900,
        "last": 30,
    }
    assert configure(Trial("sep-fa-vr", 2), base) == paper_for("sep-fa-vr")


@pytest.mark.parametrize("network", [None, "vgg16", "senet18"])
def test_every_network_is_trained_at_the_papers_rate(
    npz: Path, network: NetworkName | None
) -> None:
    base = replace(resolve(paper_for("sep"), 3), seed="1" * 32, batch_size=8, input_pixels=16)
    config, images = trained_by(Trial("clean", 0, network), base), read(npz)
    plan = Plan(device="cpu", precision="float32")
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    recipe = Recipe(config.appropriator, 1, "appropriator")
    list(fit(*images.train, images.classes, recipe, config=config, plan=plan))
    hook.remove()
    batches = len(rates)
    assert rates == pytest.approx([learning_rate(base, 1, n / batches) for n in range(batches)])


def test_fast_changes_images_as_the_preset_does() -> None:
    """Also in what the preset may begin to do one day."""
    ours, preset = configure(Trial("fast", 4), paper_for("sep")), at_budget(FAST, 4)
    trained = {"target_map", "appropriator", "appropriator_epochs", "inner_steps"}
    for field in set(PERTURBATION) - trained:
        assert getattr(ours, field) == getattr(preset, field), field


def test_fast_through_its_own_surrogate_is_what_auto_would_be() -> None:
    """On a GPU, for the images of CIFAR-10, at the paper's seed and targets."""
    base = resolve(paper_for("sep"), 10)
    asked = planning.configure("auto", {"epsilon_levels": 2}, "cuda", 50_000, 32)
    expected = replace(asked, seed=base.seed, target_map=base.target_map)
    assert configure(Trial(OWN, 2), base) == expected
    assert surrogate_of(Trial(OWN, 2), base)[1].surrogate == "small"
    assert surrogate_of(Trial("fast", 2), base)[1] == base
    trained = trained_by(Trial(OWN, 2), base)
    assert trained == trained_by(Trial("fast", 2), base)
    assert (trained.appropriator, trained.appropriator_epochs) == ("resnet18", 120)


def test_reads_a_zip_and_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.zip"
    path.write_bytes(pictures.zipped(pictures.class_folders(2, 1)))
    data = read(path)
    assert data.train[1].tolist() == [0, 0, 1, 1, 2, 2]
    expected = np.stack([pictures.image(label, number) for label in range(3) for number in (0, 1)])
    assert np.array_equal(data.train[0].permute(0, 2, 3, 1).numpy(), expected)
    assert run(monkeypatch, path, tmp_path, "--convert", str(tmp_path / "toy.npz")) == 0
    assert read(tmp_path / "toy.npz").sha256 == data.sha256
