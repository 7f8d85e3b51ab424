"""Trainings of the small network, by the tests' configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sep_core.channels import channel_statistics
from sep_core.config import Countermeasure, Plan, SEPConfig
from sep_core.networks import Network, build
from sep_core.randomness import generator
from sep_core.training import Epoch, Progress, Recipe, fit
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data

RECIPE = Recipe("small", 3, "test")


def training_events(
    data: Data,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: Mapping[str, Tensor] | None = None,
) -> Iterator[Progress | Epoch]:
    return fit(
        *data,
        CLASSES,
        RECIPE,
        config=config,
        plan=plan,
        countermeasure=countermeasure,
        pretrained=pretrained,
    )


def trained_weights(
    data: Data,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: Mapping[str, Tensor] | None = None,
) -> Tensor:
    *_, last = training_events(data, config, plan, countermeasure, pretrained)
    assert isinstance(last, Epoch)
    return flat(last.network)


def flat(network: Network) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def new_network(data: Data, config: SEPConfig, classes: int = CLASSES) -> Network:
    draws = generator(str(config.seed), RECIPE.purpose, 0)
    return build(RECIPE.network, classes, SIDE, *channel_statistics(data[0]), draws)


def backbone(data: Data, config: SEPConfig) -> dict[str, Tensor]:
    """As if trained elsewhere: other weights, other normalisation, two classes more."""
    *_, last = training_events(
        data, replace(config, seed=SEED[::-1]), Plan(device="cpu", precision="float32")
    )
    assert isinstance(last, Epoch)
    state = new_network(data, config, CLASSES + 2).state_dict()
    trained = last.network.state_dict()
    assert set(trained) == set(state)
    return state | {k: (v * 1.1).to(v.dtype) for k, v in trained.items() if "head" not in k}
