"""Which images are changed: by split and class, from pixels alone."""

import hashlib
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.archive import ImageRecord
from api.plans.choice import CLASSES_SHOWN, check_classes, chosen
from sep_core.config import SEPConfig

SEED = "0123456789abcdef" * 2
CONFIG = SEPConfig(seed=SEED)


def record(name: str, split: str, class_name: str, pixels: int | None = None) -> ImageRecord:
    """An image of its own pixels, or of the ones with that number."""
    digest = hashlib.sha256((name if pixels is None else str(pixels)).encode()).hexdigest()
    return ImageRecord(name, split, class_name, 32, 32, 3, "PNG", digest, name)


groups = st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from(["ant", "bee"]))
data_sets = st.lists(groups, max_size=80).map(
    lambda found: [record(f"{at:05d}.png", *group) for at, group in enumerate(found)]
)
with_duplicates = st.lists(st.tuples(groups, st.integers(0, 30)), max_size=80).map(
    lambda found: [record(f"{at:05d}.png", *of, pixels) for at, (of, pixels) in enumerate(found)]
)
fractions = st.floats(0, 1, exclude_min=True)


def by_group(records: list[ImageRecord]) -> Counter[tuple[str, str]]:
    return Counter((found.split, found.class_name) for found in records)


def indices(records: list[ImageRecord], config: SEPConfig) -> list[int]:
    return list(map(int, chosen(records, config)))


def names(records: list[ImageRecord], config: SEPConfig) -> set[str]:
    return {records[index].name for index in indices(records, config)}


@given(data_sets)
def test_by_default_all(records: list[ImageRecord]) -> None:
    assert indices(records, SEPConfig()) == list(range(len(records)))  # without a seed even


@given(data_sets, fractions)
def test_of_each_split_and_class_the_share_and_at_least_one(
    records: list[ImageRecord], fraction: float
) -> None:
    taken_at = indices(records, replace(CONFIG, protected_fraction=fraction))
    assert taken_at == sorted(set(taken_at))
    taken = by_group([records[index] for index in taken_at])
    for group, count in by_group(records).items():
        assert taken[group] == max(1, round(count * fraction))


@given(data_sets, fractions)
def test_some_classes_are_as_they_would_be_among_all(
    records: list[ImageRecord], fraction: float
) -> None:
    config = replace(CONFIG, protected_fraction=fraction)
    bees = {found.name for found in records if found.class_name == "bee"}
    only = names(records, replace(config, protected_classes=("bee",)))
    assert only == names(records, config) & bees
    both = replace(config, protected_classes=("bee", "ant"))
    assert names(records, both) == names(records, config)


@given(with_duplicates, fractions)
def test_no_pixels_leave_both_as_they_were_and_changed(
    records: list[ImageRecord], fraction: float
) -> None:
    """Whatever their names, splits and classes; the share is then at least the one asked for."""
    taken_at = set(indices(records, replace(CONFIG, protected_fraction=fraction)))
    pixels = {True: set[str](), False: set[str]()}
    for index, found in enumerate(records):
        pixels[index in taken_at].add(found.pixels_sha256)
    assert not pixels[True] & pixels[False]
    taken = by_group([records[index] for index in taken_at])
    for group, count in by_group(records).items():
        assert taken[group] >= max(1, round(count * fraction))


def test_images_that_are_all_the_same_are_all_taken() -> None:
    records = [record(f"{at}.png", "train", "ant", 7) for at in range(10)]
    assert indices(records, replace(CONFIG, protected_fraction=0.1)) == list(range(10))


@given(data_sets, fractions)
def test_names_choose_nothing(records: list[ImageRecord], fraction: float) -> None:
    config = replace(CONFIG, protected_fraction=fraction)
    renamed = [replace(found, name=f"other {found.name}") for found in records]
    assert indices(renamed, config) == indices(records, config)


@given(with_duplicates, st.randoms(use_true_random=False), fractions)
def test_neither_order_nor_another_field_matters(
    records: list[ImageRecord], draws: object, fraction: float
) -> None:
    config = replace(CONFIG, protected_fraction=fraction)
    mixed = records.copy()
    draws.shuffle(mixed)  # type: ignore[attr-defined]  # hypothesis gives no type
    assert names(mixed, config) == names(records, config)
    other = replace(config, epsilon_levels=3, steps=1, target_map=(1, 0), precision="float32")
    assert indices(records, other) == indices(records, config)


@given(with_duplicates, fractions, fractions)
def test_a_larger_share_takes_the_same_and_more(
    records: list[ImageRecord], one: float, other: float
) -> None:
    small, large = (
        names(records, replace(CONFIG, protected_fraction=share)) for share in sorted((one, other))
    )
    assert small <= large


def test_another_protection_chooses_alike() -> None:
    """Else whoever has both finds images clean in one and changed in the other."""
    records = [record(f"{at}.png", "train", "ant") for at in range(200)]
    half = replace(CONFIG, protected_fraction=0.5)
    assert names(records, half) == names(records, replace(half, seed=SEED[::-1]))


def test_of_many_classes_some_are_named() -> None:
    classes = [f"class {number}" for number in range(1000)]
    check_classes(replace(CONFIG, protected_classes=tuple(classes)), classes)
    with pytest.raises(ValueError, match=r"^protected_classes: expected") as refused:
        check_classes(replace(CONFIG, protected_classes=("class 7", "dog")), classes)
    assert str(refused.value).endswith("'class 19' and 980 more), got 'dog'")
    assert str(refused.value).count("class ") == CLASSES_SHOWN
