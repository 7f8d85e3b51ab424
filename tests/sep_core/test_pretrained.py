"""Trainings that begin with a backbone from elsewhere."""

from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sep_core.config import (
    Plan,
    SEPConfig,
)
from sep_core.training import Epoch
from tests.sep_core.conftest import CLASSES, Data
from tests.sep_core.trainings import backbone, new_network, trained_weights, training_events


def test_a_frozen_backbone_stays_as_given(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = backbone(data, config)
    heads = []
    for event in training_events(data, config, plan, "pretrained-frozen", given):
        if isinstance(event, Epoch):
            state = event.network.state_dict()
            assert all(torch.equal(state[k], given[k]) for k in given if "head" not in k)
            heads.append(state["head.weight"].clone())
            event.network.train()  # as testing leaves it
    assert len(heads) == 3
    assert heads[0].shape == (CLASSES, 128)
    assert not torch.equal(heads[0], heads[2])


def test_a_tuned_backbone_starts_as_given_with_a_new_head(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    given = backbone(data, config)
    still = replace(config, learning_rate=1e-7, warmup_epochs=0, weight_decay=0)
    *_, last = training_events(data, still, plan, "pretrained-tuned", given)
    assert isinstance(last, Epoch)
    expected = given | {
        k: v for k, v in new_network(data, config).state_dict().items() if "head" in k
    }
    for name, parameter in last.network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-5, rtol=1e-4)
    assert torch.equal(last.network.state_dict()["mean"], given["mean"])


def test_a_tuned_backbone_is_trained_at_a_tenth(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = backbone(data, config)
    tuned = trained_weights(data, replace(config, warmup_epochs=0), plan, "pretrained-tuned", given)
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    again = trained_weights(data, replace(config, warmup_epochs=0), plan, "pretrained-tuned", given)
    hook.remove()
    assert torch.equal(tuned, again)
    assert max(rates) == pytest.approx(config.learning_rate / 10)


def test_weights_that_do_not_belong_are_refused(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = backbone(data, config)
    with pytest.raises(ValueError, match="expected a state dict with pretrained-tuned, got none"):
        next(training_events(data, config, plan, "pretrained-tuned"))
    with pytest.raises(ValueError, match="expected none with cutout, got one"):
        next(training_events(data, config, plan, "cutout", given))
    first = next(k for k in given if k.endswith(".weight"))
    for wrong in (
        {k: v for k, v in given.items() if k != first},
        given | {first: torch.zeros(1)},
        given | {"another.weight": torch.zeros(1)},
    ):
        with pytest.raises(
            ValueError, match=f"expected the network's state with ({first}|another)"
        ):
            next(training_events(data, config, plan, "pretrained-frozen", wrong))
