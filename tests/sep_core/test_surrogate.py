from dataclasses import replace

import pytest
import torch

from sep_core.config import Plan, SEPConfig, checkpoint_epochs
from sep_core.inference import INFERENCE_BATCH
from sep_core.networks import Network, build
from sep_core.pixels import to_images
from sep_core.surrogate import Checkpoint, class_means, freeze, restore, train
from sep_core.training import Progress
from tests.sep_core import reference
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data


def _checkpoints(data: Data, config: SEPConfig, plan: Plan) -> list[Checkpoint]:
    events = train(*data, CLASSES, config, plan)
    return [event for event in events if isinstance(event, Checkpoint)]


@pytest.mark.parametrize(("epochs", "count"), [(4, 2), (5, 3), (3, 3), (2, 1)])
def test_checkpoints_come_on_schedule(
    data: Data, config: SEPConfig, plan: Plan, epochs: int, count: int
) -> None:
    config = replace(config, epochs=epochs, checkpoints=count)
    kept = _checkpoints(data, config, plan)
    assert [checkpoint.epoch for checkpoint in kept] == checkpoint_epochs(epochs, count)


def test_progress_rises_by_one_to_its_total(data: Data, config: SEPConfig, plan: Plan) -> None:
    events = train(*data, CLASSES, config, plan)
    seen = [event for event in events if isinstance(event, Progress)]
    total = 4 * 3 + 2 * 1  # four epochs of three batches, class means of two checkpoints
    assert seen == [Progress(n, total) for n in range(1, total + 1)]


def test_a_checkpoint_stays_as_it_was_while_training_goes_on(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    images = to_images(data[0])
    first = None
    for event in train(*data, CLASSES, config, plan):
        if isinstance(event, Checkpoint) and first is None:
            first, then = event, event.network(images)
    assert first is not None
    assert torch.equal(first.network(images), then)
    assert not first.network.training
    assert not any(p.requires_grad for p in first.network.parameters())


def test_checkpoints_differ(data: Data, config: SEPConfig, plan: Plan) -> None:
    first, second = _checkpoints(data, config, plan)
    images = to_images(data[0])
    assert (first.network(images) - second.network(images)).abs().max() > 1e-3


def test_class_means_are_those_of_the_checkpoint_that_brings_them(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    pixels, labels = data
    for checkpoint in _checkpoints(data, config, plan):
        naive = reference.class_means(checkpoint.network, to_images(pixels), labels, CLASSES)
        torch.testing.assert_close(checkpoint.class_means.double(), naive, rtol=1e-4, atol=1e-5)


def test_class_means_over_many_batches_are_the_naive_mean(
    networks: list[Network], plan: Plan
) -> None:
    count = INFERENCE_BATCH + 9
    draws = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, CLASSES, (count,), generator=draws)
    network = networks[0].train()  # freezing must end training mode
    *_, means = class_means(freeze(network), pixels, labels, CLASSES, plan)
    naive = reference.class_means(network, to_images(pixels), labels, CLASSES)
    torch.testing.assert_close(means.double(), naive, rtol=1e-4, atol=1e-5)


def test_a_class_without_images_has_a_finite_mean(networks: list[Network], plan: Plan) -> None:
    pixels = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    *_, means = class_means(freeze(networks[0]), pixels, torch.tensor([0, 2]), CLASSES, plan)
    assert means.isfinite().all()
    assert means[1].abs().max() == 0


def test_freezing_changes_outputs_by_rounding_alone(networks: list[Network]) -> None:
    images = torch.rand(4, 3, SIDE, SIDE)
    for network in networks:
        torch.testing.assert_close(freeze(network)(images), network(images), rtol=1e-4, atol=1e-4)
        assert any(p.requires_grad for p in network.parameters())


def test_freezing_lays_out_what_is_large_on_small_maps() -> None:
    mean = torch.full((3,), 0.5)
    frozen = freeze(build("resnet18", 2, SIDE, mean, mean, torch.Generator().manual_seed(6)))
    frozen(torch.rand(2, 3, SIDE, SIDE))
    kernels = [m.weight for m in frozen.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [k.is_contiguous() for k in kernels if k.shape[1:] == (512, 3, 3)] == [True] * 3


def test_a_stored_checkpoint_comes_back_whole(data: Data, config: SEPConfig, plan: Plan) -> None:
    kept = _checkpoints(data, config, plan)[-1]
    back = restore(kept.network.state_dict(), kept.class_means, kept.epoch, config, plan)
    images = to_images(data[0])
    assert torch.equal(back.network(images), kept.network(images))
    assert torch.equal(back.class_means, kept.class_means)
    assert back.epoch == kept.epoch
    assert not back.network.training
    assert not any(p.requires_grad for p in back.network.parameters())


def test_the_same_seed_gives_the_same_bytes(data: Data, config: SEPConfig, plan: Plan) -> None:
    first, again = _checkpoints(data, config, plan)[-1], _checkpoints(data, config, plan)[-1]
    other = _checkpoints(data, replace(config, seed=SEED[::-1]), plan)[-1]
    images = to_images(data[0])
    assert torch.equal(first.network(images), again.network(images))
    assert torch.equal(first.class_means, again.class_means)
    assert not torch.equal(first.network(images), other.network(images))
