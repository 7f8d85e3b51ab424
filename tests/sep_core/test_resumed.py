"""Trainings that are broken off and go on: to the same bytes, whatever they had done."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from sep_core.config import Countermeasure, NetworkName, Plan, SEPConfig
from sep_core.networks import build
from sep_core.randomness import generator
from sep_core.training import Epoch, Progress, Recipe, State, fit
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data

RECIPE = Recipe("small", 3, "test")
Event = Progress | Epoch


def told(events: Iterable[Event]) -> list[tuple[int, int]]:
    """Of batches how many are done of all, of epochs which one."""
    return [(e.done, e.total) if isinstance(e, Progress) else (e.number, 0) for e in events]


def state_after(batches: int, events: Iterator[Event]) -> tuple[State, list[Event]]:
    """What is kept then, stored and loaded, and what comes after."""
    for event in events:
        if isinstance(event, Progress) and event.done == batches:
            assert event.point is not None
            file = io.BytesIO()
            torch.save(event.point.state(), file)
            file.seek(0)
            return torch.load(file, weights_only=True), list(events)
    raise AssertionError


def assert_same(resumed: list[Event], undisturbed: list[Event]) -> None:
    assert told(resumed) == told(undisturbed)
    last, again = undisturbed[-1], resumed[-1]
    assert isinstance(last, Epoch)
    assert isinstance(again, Epoch)
    for name, value in last.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


@pytest.mark.parametrize(
    ("network", "countermeasure"),
    [
        *(("small", name) for name in ("crop-flip", "mixup", "randaugment", "adversarial-2")),
        *(("small", "pretrained-frozen"), ("small", "pretrained-tuned"), ("vit", "crop-flip")),
    ],
)
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_training_ends_in_the_same_bytes(
    *,
    data: Data,
    config: SEPConfig,
    plan: Plan,
    network: NetworkName,
    countermeasure: Countermeasure,
    after: int,
) -> None:
    """In the middle of an epoch, at its end, and in the middle of a later one."""
    draws, blank = generator(SEED, "elsewhere"), torch.ones(3)
    elsewhere = build(network, CLASSES + 2, SIDE, blank, blank, draws).state_dict()
    recipe = replace(RECIPE, network=network)
    train = partial(fit, *data, CLASSES, recipe, config=config, plan=plan)
    train = partial(train, countermeasure=countermeasure)
    if countermeasure.startswith("pretrained"):
        train = partial(train, pretrained=elsewhere)
    state, rest = state_after(after, train())
    assert_same(list(train(resumed=state)), rest)


def test_a_state_of_an_earlier_version_is_of_an_epochs_end(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    train = partial(fit, *data, CLASSES, RECIPE, config=config, plan=plan)
    state, rest = state_after(6, train())  # the second epoch's last
    old = {name: state[name] for name in ("epoch", "network", "optimiser")}
    assert told(rest) == [(2, 0), *((n, 9) for n in (7, 8, 9)), (3, 0)]
    assert_same(list(train(resumed=old)), rest)


def _losses_end(state: State) -> State:
    return {**state, "losses": torch.tensor(torch.inf)}


def _weights_end(state: State) -> State:
    return {**state, "network": {n: v * torch.nan for n, v in state["network"].items()}}


@pytest.mark.parametrize("diverge", [_losses_end, _weights_end])
def test_what_diverged_before_it_was_broken_off_is_still_found(
    data: Data, config: SEPConfig, plan: Plan, diverge: Callable[[State], State]
) -> None:
    """After the last batch of all."""
    train = partial(fit, *data, CLASSES, RECIPE, config=config, plan=plan)
    state, _ = state_after(9, train())
    with pytest.raises(FloatingPointError, match="in epoch 3 of training small"):
        list(train(resumed=diverge(state)))
