"""docs/results.md: every number is a result file's, worked out by hand here."""

import json
import math
import random
import re
import sys
from dataclasses import asdict, replace
from itertools import combinations, product
from pathlib import Path

import pytest

from benchmarks.strength import page, results
from benchmarks.strength.cells import Cell, is_current
from benchmarks.strength.curve import Point, draw

CLEAN = Cell("judge", "clean", 0, 0, "small", "crop-flip", 11)
FULL = Cell("judge", "sep-fa-vr", 8, 1, "small", "crop-flip", 11)
OURS = replace(FULL, recipe="sep-2x30")
PASSES = {"sep-fa-vr": 900, "sep-2x30": 60, "clean": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def write(
    folder: Path,
    cell: Cell,
    last: float,
    peak: float,
    weights: str | None = None,
    **figures: float,
) -> None:
    """As `benchmarks.strength.cells` does; with figures that earlier results lack."""
    passes = {"passes": PASSES[cell.recipe]} if cell.recipe in PASSES else {}
    record = asdict(cell) | {
        "last": last,
        "peak": peak,
        "train_images": 2500,
        "test_images": 1000,
        "data_sha256": "abc" * 8,
        "config": {"surrogate": "small", "input_pixels": 32, "epochs": 30},
        "plan": {"device": "cpu", "precision": "bfloat16"},
        "release": passes | {"seconds": 1.0},
        "versions": {"torch": "2.14.1"},
    }
    record |= figures | ({} if weights is None else {"weights_sha256": weights})
    path = folder / cell.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def three_seeds(folder: Path, cell: Cell, *both: tuple[float, float]) -> None:
    for seed, (last, peak) in enumerate(both, start=1):
        write(folder, replace(cell, surrogate_seed=seed), last, peak)


def lines(folder: Path) -> list[str]:
    return page.build(folder, folder.parent / "results.md")[
        folder.parent / "results.md"
    ].splitlines()


def test_recipes_are_compared_seed_by_seed(folder: Path) -> None:
    write(folder, CLEAN, 0.60, 0.61)
    three_seeds(folder, FULL, (0.20, 0.30), (0.24, 0.34), (0.22, 0.32))
    three_seeds(folder, OURS, (0.21, 0.29), (0.24, 0.33), (0.22, 0.31))
    # last: +1, 0, 0 points: mean 0.33, deviation 0.577, bound 0.33 + 2.920 * 0.577 / sqrt 3 = 1.31.
    # 60 passes * 2 * 0.07 GFLOP = 8.4.
    row = "| `sep-2x30` | 60 | 8.4 | 3 | 22.3 ± 1.5 | 31.0 ± 2.0 "
    row += "| +0.3 (≤ +1.3) | -1.0 (≤ -1.0) | yes |"
    assert row in lines(folder)
    assert "| `clean` | 0 | 0 | 1 | 60.0 | 61.0 | - | - | - |" in lines(folder)
    # 3 * 30 epochs * 0.07 GFLOP; with 900 passes 2,500 * (6.3 + 126) GFLOP
    note = "training costs 6.3 GFLOP an image beside that: for these 2,500 images"
    assert any(f"{note} `sep-fa-vr` 0.33 PFLOP all told." in line for line in lines(folder))


def test_answers_renamed_stand_beside_answers_as_they_are(folder: Path) -> None:
    write(folder, CLEAN, 0.60, 0.61)
    assert "## Answers renamed" in lines(folder)
    for seed, renamed in ((1, 0.30), (2, 0.40)):
        cell = replace(FULL, surrogate_seed=seed)
        write(folder, cell, 0.20, 0.26, renamed_last=renamed, renamed_peak=0.5)
    row = "| 8 | `small` | `crop-flip` | `sep-fa-vr` | 2 | 20.0 / 26.0 | 35.0 / 50.0 |"
    assert [line for line in lines(folder) if line.endswith(row)]


def test_a_recipe_that_may_be_worse_is_not_called_as_good(folder: Path) -> None:
    write(folder, CLEAN, 0.60, 0.60)
    three_seeds(folder, FULL, (0.20, 0.30), (0.20, 0.30), (0.20, 0.30))
    three_seeds(folder, OURS, (0.20, 0.30), (0.20, 0.30), (0.23, 0.30))
    # mean +1.0, but the bound is 1 + 2.920 * 1.732 / sqrt 3 = 3.92
    assert any("| +1.0 (≤ +3.9) | +0.0 (≤ +0.0) | no |" in line for line in lines(folder))


def test_one_seed_has_no_bound_and_other_seeds_are_no_pair(folder: Path) -> None:
    write(folder, CLEAN, 0.60, 0.60)
    write(folder, FULL, 0.20, 0.30)
    write(folder, OURS, 0.25, 0.31)
    row = "+5.0 (one seed: no bound) | +1.0 (one seed: no bound) | no bound |"
    assert any(line.endswith(row) for line in lines(folder))
    (folder / OURS.path).unlink()
    write(folder, replace(OURS, seed=12), 0.25, 0.31)
    assert any(line.endswith("| 25.0 | 31.0 | - | - | - |") for line in lines(folder))


def test_rows_on_which_a_claim_rests_are_tested_alike(folder: Path) -> None:
    grey = [replace(cell, countermeasure="grey") for cell in (FULL, replace(FULL, recipe="fast"))]
    three_seeds(folder, grey[0], (0.50, 0.50), (0.48, 0.50), (0.51, 0.52))
    three_seeds(folder, grey[1], (0.54, 0.50), (0.26, 0.40), (0.53, 0.52))
    # last: +4, -22, +2: mean -5.33, deviation 14.47, bound -5.33 + 2.920 * 14.47 / sqrt 3 = 19.06
    # peak: 0, -10, 0: mean -3.33, deviation 5.77, bound -3.33 + 2.920 * 5.77 / sqrt 3 = 6.40
    excess = "| grey | `fast` | 3 | -5.3 (≤ +19.1) | -3.3 (≤ +6.4) |"
    assert f"{excess} undecided |" in lines(folder)
    clean = replace(CLEAN, countermeasure="grey")
    three_seeds(folder, clean, (0.60, 0.60), (0.60, 0.60), (0.60, 0.60))
    assert f"{excess} no |" in lines(folder)
    three_seeds(folder, clean, (0.587, 0.60), (0.587, 0.60), (0.587, 0.60))
    reason = "the full recipe lowers clean by 9.0 points, less than 10."
    assert f"`grey`: Decides nothing: {reason}" in lines(folder)
    assert f"{excess} undecided |" in lines(folder)


def test_says_where_a_cell_decides_nothing(folder: Path) -> None:
    write(folder, OURS, 0.50, 0.50)
    expected = "Decides nothing: `clean` and `sep-fa-vr` not measured here."
    assert expected in lines(folder)
    write(folder, CLEAN, 0.60, 0.60)
    write(folder, FULL, 0.505, 0.60)
    expected = "Decides nothing: the full recipe lowers clean by 9.5 points, less than 10."
    assert expected in lines(folder)
    assert any(line.endswith("| undecided |") for line in lines(folder))
    write(folder, FULL, 0.49, 0.60)
    assert not any("undecided" in line or "Decides nothing" in line for line in lines(folder))


def test_matrix_has_a_row_for_every_countermeasure_and_dashes(folder: Path) -> None:
    write(folder, replace(CLEAN, countermeasure="jpeg-10"), 0.4, 0.45)
    write(folder, replace(FULL, countermeasure="jpeg-10"), 0.38, 0.39)
    write(folder, replace(FULL, countermeasure="jpeg-10", seed=12), 0.40, 0.41)
    found = lines(folder)
    both = "39.0 ± 1.4 / 40.0 ± 1.4"  # deviation of two values 2 apart is sqrt 2
    assert f"| jpeg-10 | 40.0 / 45.0 | {both} | - | - |" in found
    assert "| adversarial-8 | - | - | - | - |" in found
    assert "| pretrained-tuned | - | - | - | - |" in found


def test_pretrained_rows_name_their_file(folder: Path) -> None:
    write(folder, replace(FULL, countermeasure="pretrained-frozen"), 0.5, 0.6, weights="1" * 64)
    found = lines(folder)
    assert "| pretrained-frozen | - | 50.0 / 60.0 | - | - |" in found
    assert f"The `pretrained` rows begin with weights of SHA-256 `{'1' * 64}`." in found


def test_networks_and_other_methods_have_their_tables(folder: Path) -> None:
    write(folder, FULL, 0.2, 0.2)
    write(folder, replace(FULL, network="vgg16"), 0.3, 0.3)
    write(folder, replace(FULL, recipe="uniform", countermeasure="grey"), 0.5, 0.6)
    found = lines(folder)
    assert "| vgg16 | - | 30.0 / 30.0 | - | - |" in found
    assert "| `uniform` | - | - | 50.0 / 60.0 | - |" in found
    assert "| `autoregressive` | - | - | - | - |" in found


def test_passes_for_the_patterns_are_counted(folder: Path) -> None:
    write(folder, OURS, 0.25, 0.31)
    path = folder / OURS.path
    record = json.loads(path.read_text())
    record["config"] |= {"class_steps": 100, "target_map": list(range(10))}
    path.write_text(json.dumps(record))
    # 100 steps of 2 checkpoints look at 512 images: 102,400 passes for 2,500 images.
    assert any(line.startswith("| `sep-2x30` | 101 | 14.1 |") for line in lines(folder))


def test_arithmetics_stand_side_by_side(folder: Path) -> None:
    three_seeds(folder, replace(FULL, recipe="fast"), (0.3, 0.4), (0.3, 0.4), (0.3, 0.4))
    write(folder, replace(FULL, recipe="fast-float32"), 0.31, 0.41)
    found = lines(folder)
    assert "| bfloat16 | 3 | 30.0 ± 0.0 | 40.0 ± 0.0 |" in found
    assert "| float32 | 1 | 31.0 | 41.0 |" in found


def test_candidates_are_shown_where_they_were_tried(folder: Path) -> None:
    tried = replace(FULL, half="choose", recipe="class-4x15")
    write(folder, tried, 0.3, 0.3)
    write(folder, replace(tried, countermeasure="grey"), 0.4, 0.4)
    found = lines(folder)
    assert "| countermeasure | class-4x15 |" in found
    assert "| grey | 40.0 / 40.0 |" in found
    assert not any(line.startswith("| blur") for line in found)


def test_curve_places_points_by_passes_and_accuracy(folder: Path) -> None:
    write(folder, FULL, 0.2, 0.3)
    write(folder, OURS, 0.25, 0.35)
    files = page.build(folder, folder.parent / "results.md")
    assert folder / "curve-judge-8-small.svg" in files
    assert "(results/curve-judge-8-small.svg)" in files[folder.parent / "results.md"]

    drawn = draw([Point("sep", 10, 20, 30), Point("last", 1000, 0, 0)], 40, "t < u", "passes")
    assert "t &lt; u" in drawn
    # A third of a decade left of 10 and right of 1000, 2 2/3 in all: 1/8 and 7/8 of 60 to 588;
    # 20 % is half of the height between 460 and 50, whose top is 40 %.
    assert '<circle cx="126.0" cy="255.0" r="4"/>' in drawn
    assert '<circle cx="522.0" cy="460.0" r="4"/>' in drawn
    assert "M60 50.0H588" in drawn  # clean


def test_names_meet_neither_each_other_nor_points() -> None:
    draws = random.Random(1)
    points = [
        Point(f"name-{n}", draws.choice((57, 60, 76)), draws.uniform(20, 40), 40) for n in range(12)
    ]
    drawn = draw(points, None, "t", "passes")
    circles = re.findall(r'<circle cx="(\S+)" cy="(\S+)"', drawn)
    texts = re.findall(r'<text x="(\S+)" y="(\S+)" text-anchor="(\S+)" stroke="none">', drawn)
    assert (len(circles), len(texts)) == (24, 12)
    names = [
        (float(x) - (42 if anchor == "end" else 0), float(y) - 4)  # left end and middle
        for x, y, anchor in texts
    ]
    for (x, y), (other_x, other_y) in combinations(names, 2):  # letters of 6 units, lines of 12
        assert abs(x - other_x) >= 36 or abs(y - other_y) >= 12
    for (x, y), (at_x, at_y) in product(names, circles):
        assert not (x - 3 < float(at_x) < x + 39 and abs(y - float(at_y)) < 8)


def test_quantiles_are_those_of_t() -> None:
    """Half of the density's integral by Simpson's rule is 0.45 at each of them."""
    for freedom, quantile in enumerate(results.T95, start=1):
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi)
        width = quantile / 2000
        density = [
            (1 + (i * width) ** 2 / freedom) ** (-(freedom + 1) / 2) * (2 + 2 * (i % 2))
            for i in range(1, 2000)
        ]
        ends = 1 + (1 + quantile**2 / freedom) ** (-(freedom + 1) / 2)
        integral = scale / math.gamma(freedom / 2) * width / 3 * (sum(density) + ends)
        assert integral == pytest.approx(0.45, abs=1e-4)


def test_refuses_a_file_in_another_cells_place(folder: Path) -> None:
    write(folder, FULL, 0.2, 0.3)
    (folder / FULL.path).rename(folder / "moved.json")
    with pytest.raises(ValueError, match=r"path: expected judge/sep-fa-vr-8-1/small-crop-flip-11"):
        results.read(folder)


def test_check_fails_until_the_page_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, FULL, 0.2, 0.3)
    words = ["page", "--results", str(folder), "--page", str(folder.parent / "results.md")]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        return page.main()

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    write(folder, FULL, 0.21, 0.3)
    assert run("--check") == 1


def test_jobs_through_the_service_have_a_row_and_a_sentence(folder: Path) -> None:
    figures = {"largest_change_levels": 8, "ssim_mean": 0.9384, "ssim_p5": 0.8047}
    worst = [{"name": "test/owl/7.png", "ssim": 0.4686}]
    job = {
        "data": "owls",
        "sides": [96, 224],
        "shapes": 17,
        "change": figures | {"images": 1234, "sentence": "It shows in none.", "worst": worst},
        "accuracy": {
            "clean": {"last": 0.8, "peak": 0.81},
            "protected": {"last": 0.3, "peak": 0.35},
        },
        "config": {"input_pixels": 64, "epsilon_levels": 8},
        "plan": {"threads": 2},
        "seconds": 1234,
    }
    (folder.parent / "service").mkdir()
    (folder.parent / "service" / "owls.json").write_text(json.dumps(job))
    row = "| `owls` | 1,234 | 96 to 224, 17 shapes | 64 | 8 of 8 | 0.938 | 0.805 "
    assert f"{row}| 80.0 / 81.0 | 30.0 / 35.0 | 1,234 on 2 threads |" in lines(folder)
    assert "- `owls`: It shows in none. Most in `test/owl/7.png`, SSIM 0.469." in lines(folder)


def test_committed_results_are_of_the_recipes_as_they_are() -> None:
    measured = results.read(Path(__file__).parents[2] / "docs" / "results")
    ours = [result for result in measured if result.cell.half != "paper"]
    assert ours
    assert [r.cell.path for r in ours if not is_current(r.cell, r.record)] == []


def test_the_committed_page_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs"
    if not (docs / "results").exists():
        pytest.skip("no results committed")
    for path, text in page.build(docs / "results", docs / "results.md").items():
        assert path.read_text(encoding="utf-8") == text, "python -m benchmarks.strength.page"
