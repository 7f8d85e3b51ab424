"""What a record concludes from accuracies, and when it concludes nothing."""

from typing import Any
from uuid import UUID

import pytest

from api.evidence import report
from tests.api.lives import accuracy, requested, succeed
from tests.api.records import Page, build, measured, name_classes, set_outputs


@pytest.mark.parametrize(
    ("clean", "protected", "worked", "decides", "word"),
    [
        (0.9, 0.3, True, True, "holds"),
        (0.9, 0.72, True, True, "holds"),  # of two classes: guessing is half
        (0.9, 0.735, False, True, "too few test images"),
        (0.9, 0.75, False, True, "did not work"),
        (0.9, 0.95, False, True, "did not work"),
        (0.6, 0.5, True, True, "holds"),
        (0.7, 0.5, True, True, "holds"),
        (0.55, 0.1, False, False, "decides nothing"),
        (0.0, 0.0, False, False, "decides nothing"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_verdicts(
    done: UUID, clean: float, protected: float, worked: bool, decides: bool, word: str
) -> None:
    measured(done, clean, protected)
    verdict = build(done)["verdict"]
    assert (verdict["worked"], verdict["decides"]) == (worked, decides)
    assert word in verdict["sentence"]
    assert f"{protected:.1%}" in verdict["sentence"]
    assert "guessing: 50.0%" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_protection_that_early_stopping_undoes(done: UUID) -> None:
    set_outputs(done, accuracy(0.9), accuracy(0.5, peak=0.8))
    verdict = build(done)["verdict"]
    assert not verdict["worked"]
    assert verdict["share_learned"] == {"last": 0, "peak": 0.75}
    assert "reaches 50.0% (peak 80.0%)" in verdict["sentence"]
    assert "does not withstand early stopping: do not rely on it." in verdict["sentence"]


@pytest.mark.parametrize(
    ("clean", "decides", "word"),
    [(0.78, False, "decides nothing"), (0.86, True, "holds"), (0.7, False, "decides nothing")],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_naming_the_largest_class_is_guessing(
    done: UUID, clean: float, decides: bool, word: str
) -> None:
    outputs = accuracy(clean), accuracy(0.3)
    for output in outputs:
        output["by_class"]["cat"]["images"] = 12_000
    set_outputs(done, *outputs)
    verdict = build(done)["verdict"]
    assert (verdict["guessing"], verdict["decides"]) == (0.75, decides)
    assert word in verdict["sentence"]


@pytest.mark.parametrize(("protected", "worked"), [(0.99, False), (0.92, True)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_class_of_nine_tenths_leaves_something_to_decide(
    done: UUID, protected: float, worked: bool
) -> None:
    outputs = accuracy(0.995), accuracy(protected)
    for output in outputs:
        output["by_class"]["cat"]["images"] = 46_000
    set_outputs(done, *outputs)
    verdict = build(done)["verdict"]
    assert (verdict["guessing"], verdict["decides"]) == (0.92, True)
    assert verdict["worked"] is worked


@pytest.mark.parametrize(
    ("worst", "sentence"),
    [
        (
            (0.8, 0.7),
            (
                "jpeg-10 with small recovers most: 70.0% (peak 70.0%) where the originals give "
                "80.0%. The protection does not withstand jpeg-10 with small: 70.0% (peak 70.0%) "
                "of 80.0%."
            ),
        ),
        (
            (0.9, 0.5),
            (
                "jpeg-10 with small recovers most: 50.0% (peak 50.0%) where the originals "
                "give 90.0%. The protection withstands all of them."
            ),
        ),
        (
            (0.55, 0.5),  # a baseline that decides nothing, of two classes
            (
                "give 55.0%. The protection withstands 2 of them; on the originals, too, the rest "
                "hardly beat guessing."
            ),
        ),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_countermeasure_that_recovers_most(
    owner_id: UUID, ready: UUID, worst: tuple[float, float], sentence: str
) -> None:
    names = ["crop-flip", "grey", "jpeg-10"]
    made = requested(owner_id, ready, countermeasures=names, seeds=2)
    succeed(made)
    others = [0.9, 0.3, 0.9, 0.3, 0.7, 0.4, 0.7, 0.4]
    set_outputs(made, *map(accuracy, [*others, *worst, *worst]))
    record = build(made)
    verdict = record["verdict"]
    assert verdict["worked"] is ("does not withstand" not in sentence)
    assert "reaches 30.0% (peak 50.0%)" in verdict["sentence"]
    assert "Of 3 ways" in verdict["sentence"]
    assert verdict["sentence"].endswith(sentence)
    assert verdict["strongest"]["countermeasure"] == "jpeg-10"
    assert [row["countermeasure"] for row in record["matrix"]] == names
    page = Page(report.render(record, None))
    assert page.open == []
    assert page.tags.count("polyline") == 2
    for shown in (*names, "90.0 ± 0.0", "40.0 to 40.0", "0.33"):
        assert shown in page.text


DIVERGED = {"diverged": "Expected finite losses, got others."}


@pytest.mark.parametrize(
    ("grey", "worked", "ways", "told"),
    [
        (
            [DIVERGED, accuracy(0.8), DIVERGED, accuracy(0.8)],
            *(False, 1, "grey with small (2 of 2 on the originals)"),
        ),
        ([DIVERGED] * 4, *(True, 1, "grey with small (2 of 2 on the originals); grey with")),
        (
            [accuracy(0.9), accuracy(0.3), accuracy(0.9), DIVERGED],
            *(False, 2, "grey with small (1 of 2 on the protected data)"),
        ),
        (
            [DIVERGED, DIVERGED, accuracy(0.9), DIVERGED],
            *(False, 1, "grey with small (1 of 2 on the originals); grey with small (2 of 2 on"),
        ),
    ],
)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_diverged_is_never_taken_for_withstood(
    *, owner_id: UUID, ready: UUID, grey: list[Any], worked: bool, ways: int, told: str, named: bool
) -> None:
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey"], seeds=2)
    succeed(made)
    set_outputs(made, *[accuracy(0.9), accuracy(0.3)] * 2, *grey)
    if named:
        name_classes(made, "cat", "dog")
    record = build(made)
    verdict = record["verdict"]
    assert (verdict["named"] if named else verdict)["worked"] is worked
    assert (f"Of {ways} ways" in verdict["sentence"]) is (ways > 1)
    assert "withstands all" not in verdict["sentence"]
    assert f" Trainings that diverged tell nothing: {told}" in verdict["sentence"]
    page = Page(report.render(record, None))
    assert page.open == []
    clean, protected = (record["matrix"][1][side] is None for side in ("clean", "protected"))
    assert page.text.count("diverged") == 2 * clean + 4 * protected + 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_all_seeds_have_a_say_in_the_verdict(owner_id: UUID, ready: UUID) -> None:
    made = requested(owner_id, ready, countermeasures=["crop-flip"], seeds=3)
    succeed(made)
    set_outputs(made, *map(accuracy, [0.9, 0.5, 0.9, 0.9, 0.9, 0.9]))
    verdict = build(made)["verdict"]
    assert not verdict["worked"]
    assert verdict["share_learned"] == {"last": 1, "peak": 1}
    assert "76.7% (peak" in verdict["sentence"]
    assert "76.7% (peak 76.7%, up to 90.0%)" in verdict["sentence"]
    assert "guessing: 50.0%, means of 3 trainings each" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_training_that_learns_all_is_enough(owner_id: UUID, ready: UUID) -> None:
    """Whoever gets hold of the data trains as often as they like."""
    made = requested(owner_id, ready, countermeasures=["crop-flip"], seeds=3)
    succeed(made)
    set_outputs(made, *map(accuracy, [0.9, 0.55, 0.9, 0.55, 0.9, 0.9]))
    verdict = build(made)["verdict"]
    assert not verdict["worked"]
    assert verdict["share_learned"]["last"] == 1
    assert "up to 90.0%)" in verdict["sentence"]


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_who_is_wrong_in_a_way_that_repeats_has_learned(
    owner_id: UUID, ready: UUID, seeds: int
) -> None:
    """In one training of several: whoever has some labelled images renames the answers."""
    made = requested(owner_id, ready, countermeasures=["crop-flip"], seeds=seeds)
    succeed(made)
    wrong, others = accuracy(0.03, renamed=0.97), [accuracy(0.97), accuracy(0.55)] * (seeds - 1)
    set_outputs(made, accuracy(0.97), wrong, *others)
    verdict = build(made)["verdict"]
    assert not verdict["worked"]
    assert verdict["share_learned"] == {"last": 1, "peak": 1}
    assert "97.0% with its answers renamed), and" in verdict["sentence"]
    assert "whoever renames its answers undoes much of the protection" in verdict["sentence"]


@pytest.mark.parametrize(("images", "worked"), [(1, False), (20, False), (200, True)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_so_few_images_that_chance_may_have_done_it(done: UUID, images: int, worked: bool) -> None:
    outputs = accuracy(0.99), accuracy(0.7)
    for output in outputs:
        for counted in output["by_class"].values():
            of = counted["images"] / images
            counted |= {name: round(number / of) for name, number in counted.items()}
    set_outputs(done, *outputs)
    verdict = build(done)["verdict"]
    assert (verdict["worked"], verdict["test_images"]) == (worked, 2 * images)
    assert verdict["sentence"].startswith(f"On {2 * images} clean test images, the network small")
    assert verdict["decides"] is (images > 1)
    if not worked and images > 1:
        assert "There are too few test images to say whether" in verdict["sentence"]


def counted(cats: int, dogs: int, cats_known: int, dogs_known: int) -> dict[str, Any]:
    """An output of a training by what it recognises, before and after early stopping."""
    known = (cats_known + dogs_known) / (cats + dogs)
    numbers = {"cat": (cats, cats_known), "dog": (dogs, dogs_known)}
    return accuracy(known) | {
        "by_class": {
            name: {"images": images, "recognised_last": right, "recognised_peak": right}
            for name, (images, right) in numbers.items()
        }
    }


@pytest.mark.parametrize(("dogs_known", "worked"), [(98, False), (4, True)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_rare_class_counts_as_much_as_any_other(
    done: UUID, dogs_known: int, worked: bool
) -> None:
    """Who calls all images healthy is right as often as one who knows 98 of 100 sick ones."""
    set_outputs(done, counted(900, 100, 895, 95), counted(900, 100, 790, dogs_known))
    verdict = build(done)["verdict"]
    assert verdict["share_learned"] == {"last": 0, "peak": 0}
    assert verdict["worked"] is worked
    assert ("do not rely on it" in verdict["sentence"]) is not worked
    told = (
        "class by class, crop-flip with small recognises 92.9% (peak 92.9%) of a class on average"
    )
    assert (f"{told} where the originals give 97.2%" in verdict["sentence"]) is not worked


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_classes_of_like_size_are_looked_at_once(owner_id: UUID, ready: UUID) -> None:
    """Another way that undoes it is told as such, and not as something about classes."""
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey"])
    succeed(made)
    set_outputs(made, *map(accuracy, [0.95, 0.55, 0.9, 0.88]))
    verdict = build(made)["verdict"]
    assert not verdict["worked"]
    assert "The protection holds against this network and recipe." in verdict["sentence"]
    assert "does not withstand grey with small" in verdict["sentence"]
    assert "class by class" not in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_where_no_baseline_learned_anything_nothing_is_said(owner_id: UUID, ready: UUID) -> None:
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey"])
    succeed(made)
    set_outputs(made, *map(accuracy, [0.52, 0.515, 0.5, 0.515]))
    verdict = build(made)["verdict"]
    assert not verdict["decides"]
    assert "does not withstand" not in verdict["sentence"]


@pytest.mark.parametrize(("protected", "worked"), [(0.9, False), (0.55, True)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_way_whose_own_baseline_learned_nothing(
    owner_id: UUID, ready: UUID, protected: float, worked: bool
) -> None:
    """It may have been unlucky on the originals; what it got of what leaves, it got."""
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey"])
    succeed(made)
    set_outputs(made, *map(accuracy, [0.95, 0.55, 0.51, protected]))
    verdict = build(made)["verdict"]
    assert verdict["worked"] is worked
    told = f"The protection does not withstand grey with small: {protected:.1%}"
    assert (told in verdict["sentence"]) is not worked


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_short_schedule_is_told_by_its_own_epochs(owner_id: UUID, ready: UUID) -> None:
    made = requested(owner_id, ready, countermeasures=["short"])
    succeed(made)
    set_outputs(made, accuracy(0.8), accuracy(0.5))
    report = build(made)
    epochs = round(report["config"]["appropriator_epochs"] / 7)
    sentence = report["verdict"]["sentence"]
    assert f"trained by short for {epochs} epochs at" in sentence
    assert "(guessing: 50.0%, one training each)" in sentence


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_weak_network_that_learns_all_it_can_is_named(owner_id: UUID, ready: UUID) -> None:
    """It gets less than another, of which the protection took nearly half."""
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey"])
    succeed(made)
    set_outputs(made, *map(accuracy, [0.95, 0.75, 0.76, 0.7]))
    verdict = build(made)["verdict"]
    assert verdict["strongest"]["countermeasure"] == "crop-flip"
    assert verdict["sentence"].endswith(
        "The protection does not withstand grey with small: 70.0% (peak 70.0%) of 76.0%."
    )
