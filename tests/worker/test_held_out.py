"""Which images judge, and that none of them was learned by heart."""

import pytest

from api.evidence import report
from tests import pictures
from tests.worker import jobs
from worker import tensors
from worker.data import load_index

pytestmark = pytest.mark.usefixtures("environment")

TRAIN_ONLY = pictures.zipped(pictures.class_folders(12))


def test_what_is_held_out_depends_on_the_data_alone() -> None:
    dataset = jobs.upload(TRAIN_ONLY)
    index = load_index(dataset.id)
    train, held, copies, seen = tensors.split(index, 25, dataset.sha256)
    assert (len(held), copies, seen) == (9, 0, False)
    assert sorted([*train, *held], key=lambda r: r.name) == list(index.records)
    again, others = tensors.split(index, 25, dataset.sha256), tensors.split(index, 25, "0" * 64)
    assert [list(part) for part in (again.train, again.held_out)] == [list(train), list(held)]
    assert list(others.held_out) != list(held)


def test_a_copy_of_a_training_image_judges_nothing() -> None:
    """Whoever has learned by heart knows it, under whatever name, split and format."""
    files = pictures.class_folders(6, 4)
    files["test/bee/0001.bmp"] = pictures.encoded(pictures.image(0, 0), "BMP")
    protection, _ = jobs.protect(pictures.zipped(files))
    record = jobs.record_of(protection)
    told = record["training"]
    assert (told["held_out_images"], told["held_out_copies"]) == (12, 1)
    assert not told["held_out_seen"]
    assert sum(row["test_images"] for row in record["by_class"]) == 12
    assert "(1 more, which have the pixels of a training image" in report.render(record, None)


def test_equal_images_are_set_aside_together() -> None:
    """Without a test split; else nearly all that were drawn would have a copy left to learn."""
    files = pictures.class_folders(10)
    files |= {name.replace(".png", "-again.png"): data for name, data in files.items()}
    dataset = jobs.upload(pictures.zipped(files))
    train, held, copies, seen = tensors.split(load_index(dataset.id), 20, dataset.sha256)
    assert (len(held), len(train), copies, seen) == (2 * 6, 2 * 24, 0, False)
    assert not {record.pixels_sha256 for record in held} & {r.pixels_sha256 for r in train}
    assert {record.class_name for record in held} == set(pictures.CLASSES)


def test_a_picture_that_stands_for_many_judges_nothing() -> None:
    """Set aside, it would be most of what everything is judged by."""
    files = pictures.class_folders(20)
    for name in files:
        if name.endswith(("0.png", "5.png")):
            files[name] = files["train/ant/0000.png"]
    dataset = jobs.upload(pictures.zipped(files))
    _, held, copies, seen = tensors.split(load_index(dataset.id), 20, dataset.sha256)
    assert (copies, seen) == (0, False)
    assert len(held) == len({record.pixels_sha256 for record in held}) == 9
    assert {record.class_name for record in held} == set(pictures.CLASSES)


def test_a_class_of_one_image_many_times_is_trained_on() -> None:
    files = pictures.class_folders(10)
    for name in files:
        if "/bee/" in name:
            files[name] = files["train/bee/0000.png"]
    dataset = jobs.upload(pictures.zipped(files))
    train, held, copies, seen = tensors.split(load_index(dataset.id), 20, dataset.sha256)
    assert (copies, seen) == (0, False)
    assert sum(record.class_name == "bee" for record in train) == 10
    assert {record.class_name for record in held} == {"ant", "cat"}


def test_data_of_one_image_a_class_many_times_are_judged_by_copies() -> None:
    files = pictures.class_folders(4)
    for name in files:
        files[name] = files[f"{name.rpartition('/')[0]}/0000.png"]
    dataset = jobs.upload(pictures.zipped(files))
    train, held, copies, seen = tensors.split(load_index(dataset.id), 20, dataset.sha256)
    assert seen
    assert copies == len(held) == 3
    assert len(train) == 9


def test_data_of_which_every_test_image_is_a_copy_are_said_to_be() -> None:
    files = pictures.class_folders(6, 4)
    train = sorted(name for name in files if name.startswith("train"))
    for number, name in enumerate(name for name in files if name.startswith("test")):
        files[name] = files[train[number % len(train)]]
    protection, _ = jobs.protect(pictures.zipped(files))
    record = jobs.record_of(protection)
    assert record["training"]["held_out_seen"]
    assert record["training"]["held_out_copies"] == record["training"]["held_out_images"]
    assert "all of which have the pixels of a training image" in report.render(record, None)
    assert not record["verdict"]["worked"]
    assert "every test image has the pixels of a training image." in record["verdict"]["sentence"]
