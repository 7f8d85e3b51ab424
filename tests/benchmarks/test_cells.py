"""A cell is measured once, from what is kept, as long as its recipe is what it was."""

import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import data, resumable
from benchmarks.data import read
from benchmarks.files import save
from benchmarks.strength import cells, recipes, work
from benchmarks.strength.cells import Bench, Cell
from sep_core import views
from sep_core.config import Plan, as_dict

CELL = Cell("judge", "class-1x4", 8, 1, "linear", "crop-flip", 11)
IMAGES = 12
CLASSES = 2


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    short = {"surrogate": "linear", "epochs": 2, "checkpoints": 2, "appropriator_epochs": 2}
    monkeypatch.setattr(recipes, "COMMON", recipes.COMMON | short)
    monkeypatch.setitem(recipes.RECIPES, CELL.recipe, recipes.SHORT | {"checkpoints_per_step": 1})
    draws = np.random.default_rng(1)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for split in ("train", "test"):
            for number in range(2 * IMAGES * CLASSES):
                file = io.BytesIO()
                pixels = draws.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(file, "PNG")
                archive.writestr(f"{split}/{number % CLASSES}/{number}.png", file.getvalue())
    plan = Plan(device="cpu", precision="float32", threads=1, batch_size=5)
    source = partial(read, tmp_path / "data.zip")
    return Bench(tmp_path / "results", tmp_path / "cache", source, plan)


def test_a_cell_is_measured_once_and_again_when_its_recipe_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cells.measure(CELL, bench)
    result = bench.done(CELL)
    assert result is not None
    assert result["release"]["passes"] == 4
    assert not cells.measure(CELL, bench)
    assert work.missing_gflop([CELL], bench) == 0
    changed = recipes.RECIPES[CELL.recipe] | {"steps": 3}
    monkeypatch.setitem(recipes.RECIPES, CELL.recipe, changed)
    assert bench.done(CELL) is None
    assert cells.measure(CELL, bench)
    path = bench.results / CELL.path
    assert json.loads(path.read_text())["config"]["steps"] == 3


def test_a_cell_is_measured_again_with_other_data_views_or_arithmetic(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = recipes.RECIPES[CELL.recipe] | {"views": "hardened"}
    monkeypatch.setitem(recipes.RECIPES, CELL.recipe, changed)
    assert cells.measure(CELL, bench)
    assert bench.done(CELL)
    data, config = bench.data("judge"), CELL.config(CLASSES)
    before = cells._digest(as_dict(config), data, bench.plan)
    assert replace(bench, plan=replace(bench.plan, precision="bfloat16")).done(CELL) is None
    other = replace(data, train=(255 - data.train[0], data.train[1]))
    assert replace(bench, data=lambda _: other).done(CELL) is None
    monkeypatch.setattr(views, "HARDENED", ("jpeg-10",))
    assert bench.done(CELL) is None
    assert cells._digest(as_dict(config), data, bench.plan) != before


def test_the_targeted_poison_says_that_it_knows_one_checkpoint(bench: Bench) -> None:
    poison = replace(CELL, recipe="last")
    assert cells.measure(poison, bench)
    result = bench.done(poison)
    assert result is not None
    assert (result["config"]["checkpoints"], result["release"]["passes"]) == (1, 30)


def test_what_was_perturbed_is_not_perturbed_again(bench: Bench, tmp_path: Path) -> None:
    data, config = bench.data("judge"), CELL.config(CLASSES)
    assert len(data.train[0]) == IMAGES * CLASSES
    ensemble = cells._ensemble(CELL, data, config, bench)
    stopped = cells._perturbed(data, ensemble, config, bench.plan, tmp_path / "parts")
    next(stopped), next(stopped)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(parts) == 2
    resumed = list(cells._perturbed(data, ensemble, config, bench.plan, tmp_path / "parts"))
    assert [len(pixels) for pixels, _ in resumed] == [5, 5, 5, 5, 4]
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    whole = list(cells._perturbed(data, ensemble, config, bench.plan, tmp_path / "others"))
    assert all((a == b).all() for (a, _), (b, _) in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("other_code", [False, True])
def test_a_training_goes_on_where_it_was_cut_off_unless_by_other_code(
    *, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_code: bool
) -> None:
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    clean = replace(CELL, recipe="clean")
    data, config = bench.data("judge"), clean.config(CLASSES)
    state = cells._state_path(clean, data, config, bench)
    begun = cells._appropriate(clean, data.train, data, config, bench, state)
    while not state.exists():
        next(begun)
    if other_code:
        save(state, torch.load(state, weights_only=True) | {"code_sha256": "0" * 64})

    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_pre_hook(count)
    assert cells.measure(clean, bench)
    hook.remove()
    whole = replace(bench, results=tmp_path / "whole", cache=tmp_path / "other")
    assert cells.measure(clean, whole)
    every = config.appropriator_epochs * -(-len(data.train[0]) // config.batch_size)
    assert (steps == every) if other_code else (0 < steps < every)
    assert not state.exists()
    resumed, undisturbed = bench.done(clean), whole.done(clean)
    assert resumed
    assert undisturbed
    assert resumed["accuracy_by_epoch"] == undisturbed["accuracy_by_epoch"]


def test_a_surrogate_goes_on_where_it_was_cut_off(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    data, config = bench.data("judge"), replace(CELL.config(CLASSES), epochs=4, checkpoints=4)
    path, written = cells.surrogate_path(CELL, data, config, bench), 0

    def cut_off(file: Path, value: object) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise KeyboardInterrupt
        save(file, value)

    with monkeypatch.context() as once:
        once.setattr(resumable, "save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cells._ensemble(CELL, data, config, bench)
    assert not path.exists()
    resumed = cells._ensemble(CELL, data, config, bench)
    whole = cells._ensemble(CELL, data, config, replace(bench, cache=tmp_path / "other"))
    assert [checkpoint.epoch for checkpoint in resumed] == [1, 2, 3, 4]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert torch.equal(ours.class_means, theirs.class_means)
        states = ours.network.state_dict(), theirs.network.state_dict()
        assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert [file.name for file in path.parent.glob("*.pt")] == [path.name]


def test_a_recipe_names_its_own_arithmetic(bench: Bench) -> None:
    config = CELL.config(CLASSES)
    assert cells._plan(config, bench) == bench.plan
    other = cells._plan(replace(config, precision="bfloat16"), bench)
    assert other == replace(bench.plan, precision="bfloat16")
    data = bench.data("judge")
    assert cells.surrogate_path(CELL, data, config, bench) != cells.surrogate_path(
        CELL, data, replace(config, precision="bfloat16"), bench
    )


def test_a_table_costs_its_trainings_images_and_surrogates(bench: Bench) -> None:
    forward = 0.00006144  # `linear`, GFLOP
    images = IMAGES * CLASSES
    training = 3 * 2 * forward * images
    # 4 passes an image, and 100 steps of 2 checkpoints on all images for the patterns
    walk = 2 * forward * (4 * images + 100 * 2 * images)
    assert work.missing_gflop([CELL], bench) == pytest.approx(2 * training + walk)
    hard = replace(CELL, countermeasure="adversarial-4")  # three times the work of a training
    both = work.missing_gflop([CELL, hard], bench)
    assert both == pytest.approx(5 * training + walk)
    noise = replace(CELL, recipe="uniform")
    assert work.missing_gflop([noise], bench) == pytest.approx(training)
    poison = replace(CELL, recipe="last")  # 30 steps through one of the two checkpoints
    steps = 2 * forward * 30 * images
    assert work.missing_gflop([poison], bench) == pytest.approx(2 * training + steps)


@pytest.mark.parametrize(
    ("half", "before", "at_least"), [("confirm", "HALVED", 500), ("twice", "CONFIRMED", 750)]
)
def test_what_judges_again_is_in_neither_half(
    half: str, before: str, at_least: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.data("whole")
    with pytest.raises(ValueError, match=f"expected more than {at_least} images of a class"):
        bench.data(half)
    monkeypatch.setattr("benchmarks.data.HALVED", {"train": 8, "test": 10})
    monkeypatch.setattr("benchmarks.data.CONFIRMED", {"train": 16, "test": 20})
    judging = bench.data(half)
    for split, start in getattr(data, before).items():
        end = None if half == "twice" else 2 * start
        pixels, labels = getattr(whole, split)
        expected = torch.cat([pixels[labels == label][start:end] for label in range(CLASSES)])
        assert len(expected)
        assert torch.equal(getattr(judging, split)[0], expected)
