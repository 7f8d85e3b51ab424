"""Two real processes train one network together, by gloo on the CPU."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.nn import functional

from sep_core import surrogate
from sep_core.config import Plan, SEPConfig
from sep_core.networks import Network
from sep_core.pixels import to_images
from sep_core.ranks import ALONE, LEAST_SLICE, Ranks, joined
from sep_core.surrogate import Checkpoint
from sep_core.training import Progress, Recipe, State, fit, most_ranks
from tests.sep_core.conftest import CLASSES, SIDE, Data
from tests.sep_core.trainings import flat

BATCH = 2 * LEAST_SLICE
FOLLOW_SECONDS = 120


def follow(path: Path, data: Data, config: SEPConfig, plan: Plan) -> None:
    torch.set_num_threads(1)
    with joined(FileStore(str(path), 2), 1, 2) as ranks:
        surrogate.follow(*data, CLASSES, config, plan, ranks)


@contextmanager
def another(path: Path, data: Data, config: SEPConfig, plan: Plan) -> Iterator[Ranks]:
    """Us as the first of two."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=follow, args=(path, data, config, plan))
    process.start()
    with joined(FileStore(str(path), 2), 0, 2) as ranks:
        yield ranks
    process.join(FOLLOW_SECONDS)
    assert process.exitcode == 0


@pytest.fixture
def many() -> Data:
    """So many that a batch has two slices, and the last one of another size."""
    draws = torch.Generator().manual_seed(1)
    number = 5 * BATCH + 7
    labels = torch.arange(number) % CLASSES
    pixels = torch.randint(0, 160, (number, 3, SIDE, SIDE), generator=draws)
    pixels[torch.arange(number), labels] += 90
    return pixels.to(torch.uint8), labels


@pytest.fixture
def config(config: SEPConfig) -> SEPConfig:
    return replace(config, batch_size=BATCH, checkpoints=4, learning_rate=0.02)


def trained(
    data: Data, config: SEPConfig, plan: Plan, ranks: Ranks = ALONE, resumed: State | None = None
) -> list[Network]:
    events = surrogate.train(*data, CLASSES, config, plan, resumed, ranks)
    return [event.network for event in events if isinstance(event, Checkpoint)]


def loss(network: Network, data: Data) -> float:
    pixels, labels = data
    with torch.no_grad():
        return functional.cross_entropy(network(to_images(pixels)), labels).item()


def test_without_batch_norm_it_is_what_one_process_trains(
    many: Data, config: SEPConfig, plan: Plan, tmp_path: Path
) -> None:
    config = replace(config, surrogate="linear")
    with another(tmp_path / "meeting", many, config, plan) as ranks:
        together = trained(many, config, plan, ranks)
    for ours, alone in zip(together, trained(many, config, plan), strict=True):
        torch.testing.assert_close(flat(ours), flat(alone), rtol=1e-4, atol=1e-6)


def test_with_batch_norm_the_loss_is_that_of_one_process(
    many: Data, config: SEPConfig, plan: Plan, tmp_path: Path
) -> None:
    with another(tmp_path / "meeting", many, config, plan) as ranks:
        together = trained(many, config, plan, ranks)
    alone = trained(many, config, plan)
    assert loss(together[-1], many) < 0.8 * loss(together[0], many)
    assert loss(together[-1], many) == pytest.approx(loss(alone[-1], many), rel=0.25, abs=0.02)


@pytest.mark.parametrize("batches", [1, 2])
def test_it_goes_on_from_a_batch_to_the_same_bytes(
    *,
    many: Data,
    config: SEPConfig,
    plan: Plan,
    tmp_path: Path,
    batches: int,
) -> None:
    """The one who follows knows nothing of where the first goes on."""
    with another(tmp_path / "first", many, config, plan) as ranks:
        events = surrogate.train(*many, CLASSES, config, plan, None, ranks)
        states: list[State] = []
        kept = []
        for event in events:
            point = event.point if isinstance(event, Progress) else None
            if point is not None and (point.epoch, point.batches) == (2, batches):
                torch.save(point.state(), tmp_path / "state")
                states.append(torch.load(tmp_path / "state", weights_only=True))
            if isinstance(event, Checkpoint):
                kept.append(event.network)
    with another(tmp_path / "second", many, config, plan) as ranks:
        again = trained(many, config, plan, ranks, states[0])
    assert torch.equal(flat(again[-1]), flat(kept[-1]))


def test_only_the_surrogate_s_countermeasure_knows_ranks(
    many: Data, config: SEPConfig, plan: Plan
) -> None:
    recipe = Recipe("small", 1, "test")
    training = fit(
        *many, CLASSES, recipe, config=config, plan=plan, countermeasure="mixup", ranks=Ranks(0, 2)
    )
    with pytest.raises(ValueError, match="expected 1 for mixup, got 2"):
        next(training)


@pytest.mark.parametrize(("images", "most"), [(2, 1), (31, 1), (32, 2), (64, 2), (65, 1), (96, 2)])
def test_slices_are_not_too_small(images: int, most: int, config: SEPConfig) -> None:
    """65 images are three batches of 21."""
    assert most_ranks(images, config) == most
