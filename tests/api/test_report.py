"""The owner's record as data and as a page: what it says, and what it must not let through."""

import json
from typing import Any
from uuid import UUID

import pytest

from api import protections, storage
from api.db import transaction
from api.evidence import report, scope
from api.models import Protection, StepKind
from tests.api.lives import accuracy, protection
from tests.api.records import Page, build, name_classes, output_of, packaged, set_outputs, written

EVIL = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }} & \N{RIGHT-TO-LEFT OVERRIDE}"


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
    assert (dog["class"], dog["to_protect"], dog["test_images"]) == ("dog", True, 4000)
    assert (dog["clean"]["last"], dog["protected"]) == (0.9, {"last": 0.05, "peak": 0.5})
    assert (cat["class"], cat["to_protect"], cat["protected"]["last"]) == ("cat", False, 0.8)
    assert owl["clean"] == {"last": None, "peak": None}
    page = Page(report.render(record, None))
    assert page.open == []
    for shown in ("By class", "dogyes400090.0 %", "catno4000", "owlno0no images"):
        assert shown in page.text


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
