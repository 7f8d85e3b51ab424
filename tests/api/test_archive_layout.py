"""Folders decide on class and split; a file elsewhere is refused by itself, with a reason."""

import pytest

from tests.api.archives import Inspection, inspect, zip_bytes


def inspected(*names: str) -> Inspection:
    return inspect(zip_bytes([(name, b"") for name in names]))


def placed(*names: str) -> dict[str, tuple[str, str]]:
    return {entry.name: (entry.split, entry.class_name) for entry in inspected(*names).entries}


def refused(*names: str) -> dict[str, str]:
    return {refusal.name: refusal.code for refusal in inspected(*names).refusals}


def test_class_folders_alone_are_training_data() -> None:
    assert placed("cat/1.png", "dog/1.png") == {
        "cat/1.png": ("train", "cat"),
        "dog/1.png": ("train", "dog"),
    }


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *(("train", "train"), ("TRAIN", "train"), ("Training", "train"), ("test", "test")),
        *(("val", "val"), ("Valid", "val"), ("validation", "val"), ("Testing", "test")),
    ],
)
@pytest.mark.parametrize("top", ["", "photos/", "a/b/", "./", "./photos/"])
def test_splits_with_and_without_a_folder_above(folder: str, split: str, top: str) -> None:
    name = f"{top}{folder}/cat/1.png"
    names = [name, f"{top}train/dog/1.png" if split != "train" else f"{top}{folder}/dog/1.png"]
    assert placed(*names)[name] == (split, "cat")


@pytest.mark.parametrize("top", ["photos/", "a/b/"])
def test_class_folders_below_one_top_folder(top: str) -> None:
    assert placed(f"{top}cat/1.png", f"{top}dog/1.png")[f"{top}cat/1.png"] == ("train", "cat")


def test_nested_folders_belong_to_the_class() -> None:
    names = ("train/cat/indoor/night/1.png", "train/dog/1.png")
    assert placed(*names)[names[0]] == ("train", "cat")
    assert placed("cat/train/1.png", "dog/1.png")["cat/train/1.png"] == ("train", "cat")


def test_trains_may_be_a_class() -> None:
    names = ("train/1.png", "car/1.png", "plane/1.png")
    assert placed(*names)["train/1.png"] == ("train", "train")


STRAY = ("README.txt", "labels.csv", "logo.png", "docs/guide.txt")


@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize("split", ["", "train/"])
def test_stray_files_at_the_root_change_nothing(top: str, split: str) -> None:
    names = [f"{top}{split}{name}/1.png" for name in ("cat", "dog")]
    stray = [name for name in STRAY if top or split or not name.startswith("docs")]
    assert set(placed(*names, *stray)) == set(names)
    assert set(refused(*names, *stray)) == set(stray)


def test_images_outside_the_only_folder_with_splits() -> None:
    names = ("photos/train/cat/1.png", "photos/train/dog/1.png", "docs/figure.png")
    assert refused(*names) == {"docs/figure.png": "NOT_IN_CLASS_FOLDER"}


def test_what_lies_beside_the_splits_or_in_no_class() -> None:
    names = ("train/cat/1.png", "train/dog/1.png", "extra/cat/1.png", "a.png", "train/b.png")
    assert refused(*names) == {
        "a.png": "BESIDE_SPLIT_FOLDERS",
        "extra/cat/1.png": "BESIDE_SPLIT_FOLDERS",
        "train/b.png": "NOT_IN_CLASS_FOLDER",
    }


LITTER = (
    *("__MACOSX/photos/._cat", "__MACOSX/train/cat/._1.png", ".DS_Store", "photos/.DS_Store"),
    *("photos/cat/Thumbs.db", "photos/cat/desktop.ini", "photos/cat/._1.png", "photos/Icon\r"),
    "photos/.ipynb_checkpoints/1-checkpoint.png",
)


def test_litter_is_named_and_has_no_say() -> None:
    names = ("photos/cat/1.png", "photos/dog/1.png")
    assert set(placed(*names, *LITTER)) == set(names)
    assert set(refused(*names, *LITTER).items()) == {(name, "METADATA_FILE") for name in LITTER}


def test_odd_names() -> None:
    long = f"cat/{'a' * 1000}.png"
    names = (
        long,
        "cat/a\n.png",
        "cat/\u3000\u200d\U0001f408.png",
        "manifest.json/1.png",
        "dog/1.png",
    )
    assert set(placed(*names)) == {"cat/\u3000\u200d\U0001f408.png", "dog/1.png"}
    assert refused(*names) == {
        long: "NAME_TOO_LONG",
        "cat/a\n.png": "CONTROL_CHARACTER_IN_NAME",
        "manifest.json/1.png": "RESERVED_NAME",
    }


def test_a_class_is_one_however_its_accents_are_composed() -> None:
    names = ("train/caf\u00e9/1.png", "test/cafe\u0301/1.png")
    assert {class_name for _, class_name in placed(*names).values()} == {"caf\u00e9"}


def test_images_without_endings() -> None:
    assert placed("train/0/0001", "train/1/0001")["train/0/0001"] == ("train", "0")


def test_both_lists_are_sorted_and_say_why() -> None:
    found = inspected("dog/1.png", "b.txt", "cat/1.png", "a.txt", "empty/")
    assert [entry.name for entry in found.entries] == ["cat/1.png", "dog/1.png"]
    assert [refusal.name for refusal in found.refusals] == ["a.txt", "b.txt"]
    assert "cat/1.png" in found.refusals[0].reason
