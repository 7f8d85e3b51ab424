"""What a plan says that it will not come to."""

from dataclasses import replace

import httpx2
import pytest

from api.evidence import learned
from api.plans import foresight
from sep_core.config import resolve
from sep_core.presets import FAST, QUICK
from tests.api.test_estimate import planned

GIB = 2**30
ENOUGH = {"train": {"cat": 500, "dog": 500}, "test": {"cat": 100, "dog": 100}}
PLAIN = replace(resolve(QUICK, 2), class_steps=0, steps=30)


def warned(counts: foresight.Counts = ENOUGH, **changes: object) -> list[str]:
    config = replace(PLAIN, **changes)  # type: ignore[arg-type]  # as each test knows
    return foresight.warnings(config, counts, 1, None)


def test_nothing_stands_in_the_way() -> None:
    for config in (resolve(QUICK, 2), resolve(FAST, 2)):
        assert foresight.warnings(config, ENOUGH, 3 * GIB, 3 * GIB) == []
        assert foresight.warnings(config, ENOUGH, 3 * GIB, None) == []


def test_steps_that_do_not_reach_the_budget() -> None:
    (told,) = warned(steps=3, step_levels=0.5, epsilon_levels=8)
    assert "3 steps of 0.5 levels change no value by more than 1.5 of the 8 levels allowed" in told
    assert warned(steps=16, step_levels=0.5, epsilon_levels=8) == []
    # Patterns of the classes are as large as the budget from the start.
    assert warned(steps=3, step_levels=0.5, epsilon_levels=8, class_steps=1) == []


def test_too_little_room() -> None:
    (told,) = foresight.warnings(PLAIN, ENOUGH, 3 * GIB, 2 * GIB)
    assert "expected about 3.0 GiB of room while it runs, got 2.0 GiB" in told


def test_classes_without_test_images() -> None:
    counts = {"train": {"cat": 500, "dog": 500, "owl": 500}, "test": {"cat": 100, "dog": 100}}
    assert warned(counts) == ["No test image of owl: nothing will be said of them."]
    assert warned(counts, protected_classes=("cat",)) == []
    many = {"train": {f"c{n}": 9 for n in range(9)}, "val": {"c0": 100, "c1": 100}}
    assert warned(many) == [
        "No test image of c2, c3, c4, c5, c6 and 2 more: nothing will be said of them."
    ]
    # A class with one image is trained on by it.
    alone = {"train": {"cat": 500, "dog": 500, "owl": 1}}
    assert warned(alone) == ["No test image of owl: nothing will be said of them."]


@pytest.mark.parametrize(("test_images", "told"), [(4, 1), (7, 0)])
def test_too_few_test_images(test_images: int, told: int) -> None:
    counts = {"train": {"cat": 90, "dog": 90}, "test": {"cat": test_images, "dog": test_images}}
    found = warned(counts)
    assert len(found) == told
    assert all(f"{2 * test_images} test images are too few" in warning for warning in found)


def test_so_many_test_images_can_tell_where_fewer_cannot() -> None:
    """Held against the rule by which a verdict is given."""

    def row(images: int, guessing: float) -> learned.Record:
        perfect = {"mean": 1.0, "min": 1.0, "max": 1.0}
        guessed = dict.fromkeys(("mean", "min", "max"), guessing)
        both = {"last": guessed, "peak": guessed}
        clean = {"last": perfect, "peak": perfect}
        return {"test_images": images, "clean": clean, "protected": both | {"renamed": both}}

    for guessing in (0.01, 0.1, 0.5, 0.9):
        tells = [learned.can_tell(images, guessing) for images in range(1, 200)]
        assert tells == sorted(tells)
        assert any(tells)
        assert not all(tells)
        for images, can in enumerate(tells, 1):
            assert can is learned.is_surely_low(row(images, guessing), guessing)


def test_a_plan_over_http_says_so(client: httpx2.Client, ready_dataset: str) -> None:
    found = planned(client, ready_dataset, config={"preset": "quick"})
    (told,) = found["warnings"]
    shown = client.get(f"/v1/datasets/{ready_dataset}").json()
    assert f"{len(shown['classes'])} test images are too few" in told
    images = sum(sum(of_split.values()) for of_split in shown["counts"].values())
    side = found["config"]["input_pixels"]
    assert found["storage_bytes"] > 2 * 3 * images * side**2
