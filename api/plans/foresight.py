"""What a protection will not come to, in sentences, before hours are spent on it. Pure."""

from collections.abc import Iterator, Mapping

from api.evidence import learned
from sep_core.config import SEPConfig
from sep_core.costs import held_out_images

Counts = Mapping[str, Mapping[str, int]]
"""Images by split and class."""
NAMED_AT_MOST = 5


def warnings(
    config: SEPConfig, counts: Counts, storage_bytes: int, free_bytes: int | None
) -> list[str]:
    """What stands in the way of a protection that is used in full, judged and finished.

    Args:
        config: resolved.
        storage_bytes: that it takes while it runs.
        free_bytes: of the storage; None where it has no such limit.
    """
    found = [*_budget(config), *_tests(config, test_images(counts, config.held_out_percent))]
    if free_bytes is not None and storage_bytes > free_bytes:
        found.append(
            f"storage: expected about {_gib(storage_bytes)} of room while it runs, got "
            f"{_gib(free_bytes)}: steps will wait for more."
        )
    return found


def test_images(counts: Counts, held_out_percent: int) -> dict[str, int]:
    """Of each class, as far as counting tells: copies of training images judge nothing."""
    for split in ("test", "val"):
        if split in counts:
            return {name: counts[split].get(name, 0) for name in counts["train"]}
    train = counts["train"].items()
    return {name: held_out_images(images, held_out_percent) for name, images in train}


def _budget(config: SEPConfig) -> Iterator[str]:
    reached = config.steps * config.step_levels
    if config.class_steps == 0 and reached < config.epsilon_levels:
        yield (
            f"steps, step_levels: {config.steps} steps of {config.step_levels:g} levels change no "
            f"value by more than {reached:g} of the {config.epsilon_levels} levels allowed."
        )


def _tests(config: SEPConfig, tested: Mapping[str, int]) -> Iterator[str]:
    names = config.protected_classes or tuple(tested)
    missing = [name for name in names if not tested.get(name)]
    if missing:
        shown = ", ".join(missing[:NAMED_AT_MOST])
        more = f" and {len(missing) - NAMED_AT_MOST} more" if len(missing) > NAMED_AT_MOST else ""
        yield f"No test image of {shown}{more}: nothing will be said of them."
    images = sum(tested.get(name, 0) for name in names)
    largest = max(tested.values(), default=0) / max(sum(tested.values()), 1)
    guessing = 1 / len(tested) if config.protected_classes else largest
    if images and not learned.can_tell(images, guessing):
        yield f"{images} test images are too few to say that it holds, whatever is measured."


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
