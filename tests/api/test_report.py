"""The owner's record as data and as a page: what it says, and what it must not let through."""

import json
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

import pytest

from api import protections, report, scope, steps, storage
from api.db import transaction
from api.models import Protection, Step, StepKind
from tests.api.conftest import accuracy, protection, requested, steps_of, succeed

EVIL = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }} & \N{RIGHT-TO-LEFT OVERRIDE}"
VOID = {"meta", "img", "path", "polyline", "br", "link", "input"}


class Page(HTMLParser):
    """Elements that are open at the end, tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def done(owner_id: UUID, ready: UUID) -> UUID:
    made = requested(owner_id, ready)
    succeed(made)
    return made


def measured(protection_id: UUID, clean: float, protected: float) -> None:
    with transaction() as session:
        for each in steps.of(session, protection_id):
            if each.kind is StepKind.EVALUATE:
                last = clean if each.index == steps.CLEAN else protected
                session.get_one(Step, each.id).output = accuracy(last)


def build(protection_id: UUID) -> report.Record:
    return report.build(protection(protection_id), steps_of(protection_id))


def written(protection_id: UUID) -> report.Record:
    pieces = report.write(protection(protection_id), steps_of(protection_id))
    record: report.Record = json.loads(b"".join(pieces))
    return record


@pytest.mark.parametrize(
    ("clean", "protected", "worked", "decides", "word"),
    [
        (0.9, 0.3, True, True, "holds"),
        (0.9, 0.74, True, True, "holds"),  # of two classes: guessing is half
        (0.9, 0.75, False, True, "did not work"),
        (0.9, 0.95, False, True, "did not work"),
        (0.9, 0.04, False, True, "did not work"),  # the other answer is right
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
        output["by_class"]["cat"]["images"] = 120
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
        output["by_class"]["cat"]["images"] = 460
    set_outputs(done, *outputs)
    verdict = build(done)["verdict"]
    assert (verdict["guessing"], verdict["decides"]) == (0.92, True)
    assert verdict["worked"] is worked


def test_the_record_is_whole(done: UUID) -> None:
    record = build(done)
    row = protection(done)
    assert row.config is not None
    assert record["config"]["seed"] == row.config["seed"]
    assert record["config"]["target_map"] == row.config["target_map"]
    assert record["dataset"] == {"name": "pets", "sha256": row.dataset_sha256}
    assert record["change"]["archive_sha256"] == row.archive_sha256
    assert record["accuracy"]["clean"]["accuracy_last"] == 0.9
    assert record["accuracy"]["protected"]["accuracy_last"] == 0.3
    assert record["training"]["checkpoints"]
    assert record["refused"] == [{"name": "a.txt", "code": "C", "reason": "no image"}]
    assert [step["kind"] for step in record["timing"]][:2] == ["train", "perturb"]
    assert all(step["attempts"] == 1 and step["finished_at"] for step in record["timing"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_written_it_has_every_file_too(done: UUID) -> None:
    with transaction() as session:
        session.get_one(Protection, done).dataset_name = EVIL
    assert written(done) == build(done) | {"files": []}


def test_refused_files_have_a_blob_of_their_own(done: UUID) -> None:
    """The page does not read what is said of every other."""
    refused = [{"name": "b.txt", "code": "D", "reason": "no image either"}]
    blob = json.dumps({"refused": refused}).encode()
    storage.write(storage.protection_key(done, protections.REFUSED), blob)
    storage.write(storage.protection_key(done, protections.RECORD), b"{ }")
    assert build(done)["refused"] == refused


def test_a_record_whose_blobs_are_gone(done: UUID) -> None:
    storage.remove(storage.protection_key(done))
    for make in (build, written):
        with pytest.raises(FileNotFoundError):
            make(done)


def evil(record: report.Record) -> report.Record:
    record["dataset"]["name"] = EVIL
    record["refused"] = [
        {"name": f"{EVIL}{n}.png", "code": "X", "reason": EVIL} for n in range(300)
    ]
    record["training"]["held_out_from"] = EVIL
    record["verdict"]["sentence"] += EVIL
    record["change"]["psnr_db"] = None
    record["change"]["worst"][0]["name"] = EVIL
    return record


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_page(done: UUID, spoil: bool) -> None:
    record: Any = build(done)
    text = report.render(evil(record) if spoil else record, b"\x89PNG", b"\x89PNG5")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.open == []
    assert page.addresses == ["data:image/png;base64,iVBORw==", "data:image/png;base64,iVBORzU="]
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    sentence = record["change"]["sentence"]
    for shown in ("90.0 %", "30.0 %", "8 of 255 levels", record["config"]["seed"], sentence):
        assert shown in page.text
    if spoil:
        assert EVIL in page.text  # as it is, and only as text
        assert "49" not in page.text.split("alert")[1][:40]
        assert page.text.count("the first 200") == 1
        assert page.tags.count("code") < 260


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
    shown = [record["matrix"][1][side] is None for side in ("clean", "protected")]
    assert page.text.count("diverged") == 2 * sum(shown) + 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_all_seeds_have_a_say_in_the_verdict(owner_id: UUID, ready: UUID) -> None:
    made = requested(owner_id, ready, countermeasures=["crop-flip"], seeds=3)
    succeed(made)
    set_outputs(made, *map(accuracy, [0.9, 0.5, 0.9, 0.9, 0.9, 0.9]))
    verdict = build(made)["verdict"]
    assert not verdict["worked"]
    share = (2.3 / 3 - 0.5) / (0.9 - 0.5)
    assert verdict["share_learned"] == pytest.approx({"last": share, "peak": share}, abs=1e-4)
    assert "76.7% (peak" in verdict["sentence"]
    assert "guessing: 50.0%, means of 3 trainings each" in verdict["sentence"]


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


def test_one_training_has_no_matrix_to_show(done: UUID) -> None:
    record = build(done)
    assert len(record["matrix"]) == 1
    assert "ways to train" not in record["verdict"]["sentence"]
    assert "countermeasure" not in Page(report.render(record, None)).text


@pytest.mark.parametrize(
    ("shows", "may_show", "sentence"),
    [
        (0, 0, "none of 8 images: none is below 0.95."),
        (0, 2, "0 of 8 images (0.0%: below 0.92), and may show in 2 more (25.0%: below 0.95)."),
        (3, 4, "3 of 8 images (37.5%: below 0.92), and may show in 1 more (12.5%: below 0.95)."),
    ],
)
def test_where_the_change_shows(shows: int, may_show: int, sentence: str) -> None:
    change = {"images": 8, "protected_images": 8} | {
        name: {"ssim_below": limit, "images": images, "share": images / 8}
        for name, limit, images in (("shows", 0.92, shows), ("may_show", 0.95, may_show))
    }
    assert scope.where_it_shows(change) == f"By SSIM the change shows in {sentence}"


def packaged(protection_id: UUID, **figures: int) -> None:
    output_of(protection_id, StepKind.PACKAGE, **figures)


def output_of(protection_id: UUID, kind: StepKind, **figures: int) -> None:
    with transaction() as session:
        first = next(s for s in steps.of(session, protection_id) if s.kind is kind)
        row = session.get_one(Step, first.id)
        row.output = {**(row.output or {}), **figures}


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


def name_classes(protection_id: UUID, *names: str, fraction: float = 1) -> None:
    """As if these had been asked for; half of the images are theirs."""
    packaged(protection_id, protected_images=2)
    with transaction() as session:
        row = session.get_one(Protection, protection_id)
        assert row.config is not None
        chosen = {"protected_classes": list(names), "protected_fraction": fraction}
        row.config = row.config | chosen


def set_outputs(protection_id: UUID, *outputs: report.Record) -> None:
    with transaction() as session:
        parts = [s for s in steps.of(session, protection_id) if s.kind is StepKind.EVALUATE]
        for each, output in zip(parts, outputs, strict=True):
            session.get_one(Step, each.id).output = output


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
    protected = accuracy(0.5, cat=cat, dog=dog)
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
    assert verdict["named"]["protected"] == {"last": cat, "peak": 0.5}
    for shown in ("images of the classes to protect", f"{cat:.1%} (50.0% where", "95.0%", word):
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
    set_outputs(made, *(o for last in lasts for o in (clean, accuracy(0.5, **last))))
    name_classes(made, "cat")
    verdict = build(made)["verdict"]
    assert verdict["strongest"]["countermeasure"] == "grey"
    assert verdict["strongest"]["ratio"]["last"] == pytest.approx(0.6 / 0.9, abs=1e-4)
    assert "grey with small recovers most of these classes: 60.0% (50.0" in verdict["sentence"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_table_of_the_classes_the_named_ones_first(done: UUID) -> None:
    clean, protected = accuracy(0.9), accuracy(0.3, cat=0.8, dog=0.05)
    clean["by_class"]["owl"] = {"images": 0, "recognised_last": 0, "recognised_peak": 0}
    protected["by_class"]["owl"] = clean["by_class"]["owl"]
    set_outputs(done, clean, protected)
    record = build(done)
    assert [row["class"] for row in record["by_class"]] == ["cat", "dog", "owl"]
    assert all(row["to_protect"] for row in record["by_class"])
    name_classes(done, "dog")
    record = build(done)
    dog, cat, owl = record["by_class"]
    assert (dog["class"], dog["to_protect"], dog["test_images"]) == ("dog", True, 40)
    assert (dog["clean"]["last"], dog["protected"]) == (0.9, {"last": 0.05, "peak": 0.5})
    assert (cat["class"], cat["to_protect"], cat["protected"]["last"]) == ("cat", False, 0.8)
    assert owl["clean"] == {"last": None, "peak": None}
    page = Page(report.render(record, None))
    assert page.open == []
    for shown in ("By class", "dogyes4090.0 %", "catno40", "owlno0no images"):
        assert shown in page.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_trainings_from_before_classes_were_counted(done: UUID) -> None:
    old = {name: value for name, value in accuracy(0.9).items() if name != "by_class"}
    set_outputs(done, old, accuracy(0.3))
    record = build(done)
    assert record["verdict"]["worked"]
    assert record["by_class"] is None
    assert "not counted by class when" in Page(report.render(record, None)).text
    name_classes(done, "cat")
    record = build(done)
    assert not record["verdict"]["worked"]
    assert not record["verdict"]["named"]["worked"]
    assert "before recognised images were counted by class." in record["verdict"]["sentence"]
    assert Page(report.render(record, None)).open == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_classes_without_a_test_image(done: UUID) -> None:
    name_classes(done, "owl")
    verdict = build(done)["verdict"]
    assert (verdict["worked"], verdict["decides"]) == (False, False)
    assert "there are no clean test images of them." in verdict["sentence"]


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


@pytest.mark.parametrize(
    ("counted", "sentence"),
    [
        (None, None),  # of a training from before it was counted
        (2, None),
        (
            1,
            (
                "1 of the 4 images that were trained on are protected (25.0%; of all that leave "
                "50.0%): accuracies are of this mixture."
            ),
        ),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_how_much_of_what_was_trained_on_is_protected(
    done: UUID, counted: int | None, sentence: str | None
) -> None:
    packaged(done, protected_images=2)
    if counted is not None:
        output_of(done, StepKind.TRAIN, protected_train_images=counted)
    record = build(done)
    assert record["training"]["sentence"] == sentence
    assert ("of this mixture" in Page(report.render(record, None)).text) is (counted == 1)
    packaged(done, protected_images=4)
    assert build(done)["training"]["sentence"] is None


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


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_record_from_before_there_was_a_choice(done: UUID) -> None:
    record = build(done)
    assert record["change"]["protected_images"] == 4
    assert "All 4 images are protected." in Page(report.render(record, None)).text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_the_pictures_the_figures_stay(done: UUID) -> None:
    page = Page(report.render(build(done), None))
    assert page.addresses == []
    assert page.text.count("went with the data set") == 2
    assert "1. a.png" in page.text
    assert "97.00 %" in page.text  # of the values changed by 8 levels


def test_a_change_of_names_reaches_the_page(done: UUID) -> None:
    with transaction() as session:
        session.get_one(Protection, done).dataset_name = EVIL
    page = Page(report.render(build(done), b""))
    assert page.text.count(EVIL) == 2  # title and heading
