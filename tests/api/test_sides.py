"""The size that a data set's images have, from the index and from the summary."""

from api.archive import ImageRecord
from api.plans.sides import median_side, summary_side


def record(split: str, height: int, width: int) -> ImageRecord:
    return ImageRecord("a.png", split, "cat", height, width, 3, "PNG", "0" * 64, "a.png")


def test_the_median_is_of_the_training_images_shorter_sides() -> None:
    train = [record("train", *size) for size in [(10, 90), (70, 20), (30, 30), (40, 50)]]
    assert median_side([*train, *(record("test", 500, 500) for _ in range(9))]) == 20
    assert median_side(train[1:]) == 30


def test_a_summary_has_it_or_comes_near_it() -> None:
    sizes = {"90x10": 1, "20x70": 5, "224x300": 2}
    assert summary_side({"sizes": sizes, "median_side": 64}) == 64
    assert summary_side({"sizes": sizes}) == 20
