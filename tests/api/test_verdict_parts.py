"""Verdicts where only some classes, or a part of the images, are protected."""

from uuid import UUID

import pytest

from api.evidence import report
from api.models import StepKind
from tests.api.lives import JSON, accuracy, requested, succeed
from tests.api.records import (
    Page,
    build,
    measured,
    name_classes,
    output_of,
    packaged,
    set_outputs,
)


def named(last: float, peak: float) -> dict[str, JSON]:
    """What a training on protected data counts of the classes that are named."""
    figures = accuracy(last, max(last, peak))
    return {"named": {name: value for name, value in figures.items() if name != "by_class"}}


@pytest.mark.parametrize(
    ("accuracy_last", "word"),
    [
        (0.3, "What leaves, taken whole, serves this network and recipe badly; whoever leaves the"),
        (0.8, "What leaves, taken whole, can still be learned from: do not rely on it."),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_part_never_holds_and_it_is_said_plainly(
    done: UUID, accuracy_last: float, word: str
) -> None:
    """Whoever leaves the protected images out has clean ones to train on."""
    measured(done, 0.9, accuracy_last)
    packaged(done, protected_images=3)
    record = build(done)
    assert (record["change"]["images"], record["change"]["protected_images"]) == (4, 3)
    scope = (
        "Only 3 of 4 images are protected; the rest leave as clean copies, and can be learned from."
    )
    assert record["change"]["scope"] == scope
    assert not record["verdict"]["worked"]
    assert word in record["verdict"]["sentence"]
    assert "holds" not in record["verdict"]["sentence"]
    assert record["verdict"]["sentence"].endswith(scope)
    assert "shows in 1 of 3 protected images" in record["change"]["sentence"]
    assert Page(report.render(record, None)).text.count(scope) == 2


@pytest.mark.parametrize(
    ("cat", "dog", "fraction", "worked", "word"),
    [
        (0.1, 0.9, 1, True, "whole, teaches this network and recipe little of these classes. Only"),
        (0.1, 0.9, 0.5, False, "whole, serves this network and recipe badly; whoever leaves the"),
        (0.9, 0.1, 1, False, "taken whole, still teaches these classes: do not rely on it. Only"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_where_classes_are_named_the_verdict_is_on_them_alone(
    done: UUID, cat: float, dog: float, fraction: float, worked: bool, word: str
) -> None:
    """What is learned of the other classes, from clean copies, says nothing of these."""
    protected = accuracy(0.5, cat=cat, dog=dog) | named(cat, 0.5)
    set_outputs(done, accuracy(0.9, cat=0.95, dog=0.9), protected)
    name_classes(done, "cat", fraction=fraction)
    record = build(done)
    verdict = record["verdict"]
    assert (verdict["worked"], verdict["decides"]) == (False, True)
    last = max(cat - 0.5, 0) / (0.95 - 0.5)
    assert verdict["share_learned"]["last"] == pytest.approx(last, abs=1e-4)
    assert verdict["named"]["classes"] == ["cat"]
    assert verdict["named"]["worked"] is worked
    assert verdict["named"]["clean"]["last"] == 0.95
    assert verdict["named"]["protected"] == {"last": cat, "peak": max(cat, 0.5)}
    reached = f"{cat:.1%} (peak {max(cat, 0.5):.1%}"
    for shown in ("images of the classes to protect", reached, "95.0%", word):
        assert shown in verdict["sentence"]
    assert record["accuracy"]["protected"] == protected  # of all classes


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_countermeasure_that_recovers_most_of_the_named_classes(
    owner_id: UUID, ready: UUID
) -> None:
    made = requested(owner_id, ready, countermeasures=["crop-flip", "grey", "jpeg-10"])
    succeed(made)
    lasts = [{"cat": 0.1, "dog": 0.9}, {"cat": 0.6, "dog": 0.2}, {"cat": 0.2, "dog": 0.9}]
    clean = accuracy(0.9)
    each = [accuracy(0.5, **last) | named(last["cat"], 0.5) for last in lasts]
    set_outputs(made, *(output for found in each for output in (clean, found)))
    name_classes(made, "cat")
    verdict = build(made)["verdict"]
    assert verdict["strongest"]["countermeasure"] == "grey"
    assert verdict["strongest"]["ratio"]["last"] == pytest.approx(0.6 / 0.9, abs=1e-4)
    assert "grey with small recovers most of these classes: 60.0% (peak" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_records_from_before_answers_were_renamed(done: UUID) -> None:
    outputs = accuracy(0.9), accuracy(0.3)
    older = [{n: v for n, v in o.items() if not n.startswith("renamed")} for o in outputs]
    set_outputs(done, *older)
    record = build(done)
    assert record["verdict"]["worked"]
    assert Page(report.render(record, None)).open == []


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_records_from_before_classes_were_counted(done: UUID, *, named: bool) -> None:
    outputs = accuracy(0.9), accuracy(0.3)
    set_outputs(done, *({n: v for n, v in o.items() if n != "by_class"} for o in outputs))
    if named:
        name_classes(done, "cat")
    record = build(done)
    assert record["by_class"] is None
    assert not record["verdict"]["worked"]
    assert not named or not record["verdict"]["named"]["worked"]
    assert "before recognised images were counted by class." in record["verdict"]["sentence"]
    page = Page(report.render(record, None))
    assert "not counted by class when" in page.text
    assert page.open == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_classes_without_a_test_image(done: UUID) -> None:
    name_classes(done, "owl")
    verdict = build(done)["verdict"]
    assert (verdict["worked"], verdict["decides"]) == (False, False)
    assert "there are no clean test images of them." in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_early_stopping_is_of_the_named_classes(done: UUID) -> None:
    """The epoch that is best on all classes comes long after it: others are learned to the end."""
    protected = accuracy(0.7, cat=0.5, dog=0.9)
    set_outputs(done, accuracy(0.9), protected | named(0.5, 0.88))
    name_classes(done, "cat")
    verdict = build(done)["verdict"]
    assert not verdict["named"]["worked"]
    assert verdict["named"]["protected"] == {"last": 0.5, "peak": 0.88}
    assert "50.0% (peak 88.0%)" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_of_a_class_without_a_test_image_nothing_is_claimed(done: UUID) -> None:
    set_outputs(done, accuracy(0.9), accuracy(0.1))
    name_classes(done, "cat", "owl")
    verdict = build(done)["verdict"]
    assert verdict["decides"]
    assert not verdict["named"]["worked"]
    assert verdict["untested_classes"] == ["owl"]
    told = "Nothing here measures what is learned of owl: no test image of theirs judges."
    assert verdict["sentence"].endswith(told)
    name_classes(done, "cat")
    verdict = build(done)["verdict"]
    assert verdict["named"]["worked"]
    assert verdict["untested_classes"] == []


@pytest.mark.parametrize(
    ("rare", "told"), [(1, "rare0: no test"), (7, "rare0, rare1, rare2, rare3, rare4 and 2 more: ")]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_whole_data_set_tells_which_classes_were_not_tested(
    done: UUID, rare: int, told: str
) -> None:
    """A class of one image has none to set aside; where most have none, little was tested."""
    outputs = accuracy(0.9), accuracy(0.5)
    for output in outputs:
        nothing = {"images": 0, "recognised_last": 0, "recognised_peak": 0}
        output["by_class"] |= {f"rare{number}": nothing for number in range(rare)}
    set_outputs(done, *outputs)
    verdict = build(done)["verdict"]
    assert verdict["worked"] is (rare == 1)
    assert ("holds" in verdict["sentence"]) is (rare == 1)
    assert ("Most classes were not tested" in verdict["sentence"]) is (rare == 7)
    assert len(verdict["untested_classes"]) == rare
    assert f"learned of {told}" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_copies_of_training_images_are_told_of(done: UUID) -> None:
    set_outputs(done, accuracy(0.9), accuracy(0.5))
    output_of(done, StepKind.TRAIN, held_out_copies=3, held_out_seen=False)
    verdict = build(done)["verdict"]
    assert verdict["worked"]
    told = "3 more test images have the pixels of a training image, and judge nothing."
    assert told in verdict["sentence"]
    output_of(done, StepKind.TRAIN, held_out_copies=2, held_out_seen=True)
    record = build(done)
    assert not record["verdict"]["worked"]
    assert not record["verdict"]["decides"]
    told = "Nothing here measures the protection: every test image has the pixels of a training"
    assert record["verdict"]["sentence"].startswith(told)
    assert Page(report.render(record, None)).open == []


@pytest.mark.parametrize(
    ("protected", "words"), [(4, "2 images leave"), (3, "2 of the images to protect leave")]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_images_that_could_not_be_changed_are_of_those_to_protect(
    done: UUID, protected: int, words: str
) -> None:
    packaged(done, protected_images=protected, unchanged_images=2)
    verdict = build(done)["verdict"]
    assert not verdict["worked"]
    assert f" {words} as they came: the method found no way" in verdict["sentence"]
    assert verdict["sentence"].count("leave as they came") == 1


@pytest.mark.parametrize("last", [0.1, 0.8])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_part_withstands_nothing(owner_id: UUID, ready: UUID, last: float) -> None:
    """Nor does it fail to: what leaves is clean images, too."""
    made = requested(owner_id, ready, countermeasures=["crop-flip", "jpeg-10"])
    succeed(made)
    set_outputs(made, *map(accuracy, [0.9, 0.1, 0.9, last]))
    packaged(made, protected_images=3)
    verdict = build(made)["verdict"]
    assert "recovers most" in verdict["sentence"]
    assert "withstand" not in verdict["sentence"]
