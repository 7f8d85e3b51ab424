"""Trainings that are broken off and go on: to the same bytes, whatever they had done."""

import copy
import io
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
import torch

from sep_core.config import Countermeasure, NetworkName, Plan, SEPConfig
from sep_core.training import Batch, Epoch, Recipe, fit
from tests.sep_core.conftest import CLASSES, Data

RECIPE = Recipe("small", 3, "test")


def _told(events: Iterable[Batch | Epoch]) -> list[tuple[int, int]]:
    """Of batches how many are done of all, of epochs which one."""
    return [(e.done, e.total) if isinstance(e, Batch) else (e.number, 0) for e in events]


@pytest.mark.parametrize(
    ("network", "countermeasure"),
    [
        *(("small", name) for name in ("crop-flip", "mixup", "randaugment", "adversarial-2")),
        ("vit", "crop-flip"),
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
    recipe = replace(RECIPE, network=network)
    train = partial(fit, *data, CLASSES, recipe, config=config, plan=plan)
    train = partial(train, countermeasure=countermeasure)
    file = io.BytesIO()
    events: list[Batch | Epoch] = []
    for event in train():
        events.append(event)
        if isinstance(event, Batch) and event.done == after:
            torch.save(event.state(), file)
            seen = len(events)
    file.seek(0)
    resumed = list(train(resumed=torch.load(file, weights_only=True)))
    assert _told(resumed) == _told(events[seen:])
    last, again = events[-1], resumed[-1]
    for name, value in last.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_a_state_of_an_earlier_version_is_of_an_epochs_end(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    train = partial(fit, *data, CLASSES, RECIPE, config=config, plan=plan)
    events, state = [], None
    for event in train():
        events.append(event)
        if isinstance(event, Batch) and event.done == 6:  # the second epoch's last
            state = {n: copy.deepcopy(event.state()[n]) for n in ("epoch", "network", "optimiser")}
    resumed = list(train(resumed=state))
    assert _told(resumed) == _told(events[7:]) == [(2, 0), *((n, 9) for n in (7, 8, 9)), (3, 0)]
    for name, value in events[-1].network.state_dict().items():
        assert torch.equal(value, resumed[-1].network.state_dict()[name])
