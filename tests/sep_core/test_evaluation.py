from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from sep_core import surrogate
from sep_core.config import COUNTERMEASURES, Countermeasure, Plan, SEPConfig
from sep_core.countermeasures import PREPROCESSING
from sep_core.evaluation import Accuracy, appropriate, held_out, predictions
from sep_core.inference import INFERENCE_BATCH
from sep_core.networks import Network
from sep_core.pixels import to_images
from sep_core.training import Epoch, Progress, Recipe, fit
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data


def _curve(
    train: Data,
    test: Data,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
) -> list[Accuracy]:
    events = appropriate(train, test, CLASSES, config, plan, countermeasure=countermeasure)
    return [event for event in events if isinstance(event, Accuracy)]


def _split(data: Data) -> tuple[Data, Data]:
    pixels, labels = data
    return (pixels[:18], labels[:18]), (pixels[18:], labels[18:])


def test_what_can_be_learned_is_learned(data: Data, config: SEPConfig, plan: Plan) -> None:
    train, test = _split(data)
    curve = _curve(train, test, replace(config, appropriator_epochs=12), plan)
    assert [point.epoch for point in curve] == list(range(1, 13))
    assert curve[-1].accuracy == 1
    assert curve[-1].recognised == (2, 2, 2)


def test_wrong_training_labels_are_learned_too(data: Data, config: SEPConfig, plan: Plan) -> None:
    (pixels, labels), test = _split(data)
    wrong = (pixels, (labels + 1) % CLASSES)
    curve = _curve(wrong, test, replace(config, appropriator_epochs=12), plan)
    assert curve[-1].accuracy == 0
    assert curve[-1].recognised == (0, 0, 0)


def test_recognised_images_are_counted_by_their_own_class(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    """The second class is learned as the third, so that nothing is ever taken for it."""
    (pixels, labels), test = _split(data)
    confused = (pixels, torch.where(labels == 1, 2, labels))
    curve = _curve(confused, test, replace(config, appropriator_epochs=12), plan)
    assert curve[-1].recognised == (2, 0, 2)
    for point in curve:
        assert sum(point.recognised) / len(test[1]) == pytest.approx(point.accuracy)


def test_progress_counts_training_and_testing(data: Data, config: SEPConfig, plan: Plan) -> None:
    train, test = _split(data)
    events = appropriate(train, test, CLASSES, config, plan)
    seen = [event for event in events if isinstance(event, Progress)]
    assert seen == [Progress(n, 8) for n in range(1, 9)]  # two epochs of three and one


def test_the_test_images_choose_nothing(data: Data, config: SEPConfig, plan: Plan) -> None:
    train, test = _split(data)
    other = (test[0].flip(0), test[1])
    both = [test[0], other[0]], [test[1], other[1]]
    curves = [_curve(train, part, config, plan) for part in (test, other)]
    together = _curve(train, (torch.cat(both[0]), torch.cat(both[1])), config, plan)
    for first, second, mean in zip(*curves, together, strict=True):
        assert mean.accuracy == pytest.approx((first.accuracy + second.accuracy) / 2)


def test_the_same_call_gives_the_same_curve(data: Data, config: SEPConfig, plan: Plan) -> None:
    train, test = _split(data)
    assert _curve(train, test, config, plan) == _curve(train, test, config, plan)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_takes_training_and_test_images(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    train, test = _split(data)
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}  # by whether the network trained

    def note(module: nn.Module, inputs: tuple[Tensor], _: object) -> None:
        if isinstance(module, Network):
            seen[module.training] |= _contents(inputs[0])

    with register_module_forward_hook(note):
        _curve(train, test, replace(config, crop_padding=0, flip=False), plan, name)
    for training, (pixels, _) in ((True, train), (False, test)):
        assert seen[training] == _contents(to_images(PREPROCESSING[name](pixels)))
        assert not seen[training] & _contents(to_images(pixels))


def _contents(images: Tensor) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in images}


@pytest.mark.parametrize("name", [c for c in COUNTERMEASURES if not c.startswith("pretrained")])
def test_progress_counts_every_countermeasures_work(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    train, test = _split(data)
    events = list(appropriate(train, test, CLASSES, config, plan, countermeasure=name))
    preprocessing, linear_model = 2, 20 * 3
    epochs = 1 if name == "short" else 2
    work = 4 * epochs + (preprocessing if name in PREPROCESSING else 0)
    work += (linear_model + preprocessing) * (name == "projection")
    seen = [event for event in events if isinstance(event, Progress)]
    assert seen == [Progress(n, work) for n in range(1, work + 1)]
    assert [e.epoch for e in events if isinstance(e, Accuracy)] == [1, 2][:epochs]


def test_a_short_schedule_is_a_whole_one(data: Data, config: SEPConfig, plan: Plan) -> None:
    """Of a seventh of the epochs, with a warm-up that is no longer than it."""
    train, test = _split(data)
    asked = replace(config, appropriator_epochs=15, warmup_epochs=3)
    short = _curve(train, test, asked, plan, "short")
    whole = replace(config, appropriator_epochs=2, warmup_epochs=2)
    assert len(short) == 2
    assert short == _curve(train, test, whole, plan, "crop-flip")


def test_progress_counts_the_batches_of_large_images(
    data: Data, config: SEPConfig, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images at once are as many as may be: five batches of training images, two of test."""
    monkeypatch.setattr("sep_core.inference.INFERENCE_PIXELS", 4 * SIDE**2)
    train, test = _split(data)
    appropriated = appropriate(train, test, CLASSES, config, plan, countermeasure="grey")
    trained = surrogate.train(*train, CLASSES, replace(config, epochs=2, checkpoints=2), plan)
    for events, work in ((appropriated, 5 + 2 + 2 * (3 + 2)), (trained, 2 * (3 + 5))):
        seen = [event for event in events if isinstance(event, Progress)]
        assert seen == [Progress(n, work) for n in range(1, work + 1)]


def test_a_pretrained_backbone_recognises_with_a_new_head(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    train, test = _split(data)
    recipe = Recipe("small", 8, "elsewhere")
    *_, trained = fit(*train, CLASSES, recipe, config=config, plan=plan)
    assert isinstance(trained, Epoch)
    state = trained.network.state_dict()
    config = replace(config, appropriator_epochs=8)
    for name in COUNTERMEASURES[-2:]:
        events = appropriate(
            train, test, CLASSES, config, plan, countermeasure=name, pretrained=state
        )
        *_, last = events
        assert isinstance(last, Accuracy)
        assert last.accuracy == 1


def test_predictions_are_the_largest_logits_of_every_image(
    networks: list[Network], plan: Plan
) -> None:
    count = INFERENCE_BATCH + 5
    draws = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    network = networks[0]
    expected = [int(network(to_images(image[None])).argmax()) for image in pixels]
    assert torch.cat(list(predictions(network, pixels, plan))).tolist() == expected
    assert len(set(expected)) > 1


def test_testing_leaves_the_network_training_and_unchanged(
    networks: list[Network], data: Data, plan: Plan
) -> None:
    network = networks[0].train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert len(list(_whole(network, data[0], plan))) == 1
    assert all(module.training for module in network.modules() if isinstance(module, nn.Module))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def _whole(network: Network, pixels: Tensor, plan: Plan) -> Iterator[Tensor]:
    return predictions(network, pixels, plan)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    percent=st.integers(1, 90),
    seed=st.integers(0, 2**128 - 1),
)
def test_held_out_is_stratified_and_leaves_every_class(
    sizes: list[int], percent: int, seed: int
) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    chosen = held_out(labels, percent, f"{seed:032x}")
    for label, size in enumerate(sizes):
        count = int(chosen[labels == label].sum())
        if size == 1:
            assert count == 0
        else:
            assert 1 <= count <= size - 1
            assert abs(count - size * percent / 100) <= 1


def test_the_seed_decides_what_is_held_out() -> None:
    labels = torch.arange(100) % 5
    first = held_out(labels, 20, SEED)
    assert torch.equal(first, held_out(labels, 20, SEED))
    assert not torch.equal(first, held_out(labels, 20, SEED[::-1]))
    assert [int(first[labels == y].sum()) for y in range(5)] == [4] * 5


def test_classes_are_held_out_apart() -> None:
    labels = torch.arange(80) % 2
    chosen = held_out(labels, 50, SEED)
    assert not torch.equal(chosen[labels == 0], chosen[labels == 1])
