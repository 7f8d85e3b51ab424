from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sep_core import surrogate
from sep_core.config import (
    COUNTERMEASURES,
    PRETRAINED,
    Countermeasure,
    NetworkName,
    Plan,
    SEPConfig,
    resolve,
)
from sep_core.countermeasures import PREPROCESSING, attack, change_batch
from sep_core.evaluation import Accuracy, appropriate
from sep_core.networks import TRUNKS, Network
from sep_core.optimisation import learning_rate
from sep_core.pixels import to_images
from sep_core.presets import QUICK, at_side
from sep_core.protection import protect
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from sep_core.training import Epoch, Progress, Recipe, fit
from tests.sep_core import reference
from tests.sep_core.conftest import CLASSES, SEED, Data
from tests.sep_core.trainings import (
    RECIPE,
    backbone,
    flat,
    new_network,
    trained_weights,
    training_events,
)


def draws() -> torch.Generator:
    return generator(SEED, "images")


Batch = tuple[Tensor, Tensor]


def _plain_loop(
    data: Data, config: SEPConfig, change: Callable[[Network, Tensor, Tensor, int], Batch]
) -> Tensor:
    """The training as it was before there were countermeasures, in other words."""
    pixels, labels = data
    network = new_network(data, config).train()
    optimiser = torch.optim.SGD(network.parameters(), 1, config.momentum, weight_decay=5e-4)
    for epoch in range(RECIPE.epochs):
        draws = generator(str(config.seed), RECIPE.purpose, epoch + 1)
        order = torch.randperm(len(pixels), generator=draws)
        corners = torch.randint(0, 2 * config.crop_padding + 1, (len(pixels), 2), generator=draws)
        mirrored = torch.randint(0, 2, (len(pixels), 1), generator=draws) * config.flip
        for index, part in enumerate(order.tensor_split(3)):
            optimiser.param_groups[0]["lr"] = learning_rate(config, 3, epoch + index / 3)
            crops = [
                reference.augment(image, top, left, bool(mirror), config.crop_padding)
                for image, (top, left), mirror in zip(
                    to_images(pixels[part]), corners[part].tolist(), mirrored[part], strict=True
                )
            ]
            batch = torch.stack(crops).contiguous(memory_format=torch.channels_last)
            images, targets = change(network, batch, labels[part], epoch)
            optimiser.zero_grad()
            loss = functional.cross_entropy(network(images), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return flat(network)


def test_the_optimiser_takes_the_scheduled_rate(data: Data, config: SEPConfig, plan: Plan) -> None:
    rates: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    list(training_events(data, config, plan))
    hook.remove()
    assert rates == [
        learning_rate(config, 3, epoch + n / 3) for epoch in range(3) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("network", "optimiser", "share", "decay"),
    [
        ("small", torch.optim.SGD, 1, 0.0005),
        ("vgg16", torch.optim.SGD, 0.1, 0.0005),
        ("vit", torch.optim.AdamW, 0.01, 0.05),
    ],
)
def test_vgg_is_trained_at_a_tenth_of_the_rate_and_a_transformer_by_adam_at_a_hundredth(
    data: Data,
    config: SEPConfig,
    plan: Plan,
    network: NetworkName,
    optimiser: type[torch.optim.Optimizer],
    share: float,
    decay: float,
) -> None:
    rates: list[float] = []

    def note(used: torch.optim.Optimizer, *_: object) -> None:
        (group,) = used.param_groups
        assert (type(used), group["weight_decay"]) == (optimiser, decay)
        rates.append(group["lr"])

    hook = register_optimizer_step_pre_hook(note)
    list(fit(*data, CLASSES, Recipe(network, 1, "test"), config=config, plan=plan))
    hook.remove()
    assert rates == pytest.approx([share * learning_rate(config, 1, n / 3) for n in range(3)])


def test_a_training_that_diverges_is_an_error(data: Data, config: SEPConfig, plan: Plan) -> None:
    """Every step multiplies the weights by 1 - 100: the last epoch is never told of."""
    wild = replace(config, learning_rate=100, warmup_epochs=0, weight_decay=1)
    recipe = Recipe("linear", 20, "appropriator")
    told = fit(*data, CLASSES, recipe, config=wild, plan=plan)
    where = (
        r"Expected finite losses and weights, got others in epoch \d+ of training linear "
        r"\(appropriator, crop-flip\): try a lower learning_rate than 100"
    )
    epochs: list[int] = []
    with pytest.raises(FloatingPointError, match=where):
        epochs.extend(event.number for event in told if isinstance(event, Epoch))
    assert len(epochs) < recipe.epochs


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("network", TRUNKS)
def test_every_network_learns_and_teaches_by_the_presets_recipe(
    network: NetworkName, side: int, plan: Plan
) -> None:
    """As surrogate and as appropriator: three colours, which no test image is taken for another."""
    labels = torch.arange(96) % 3
    pixels = torch.randint(0, 60, (96, 3, side, side), dtype=torch.uint8, generator=draws())
    pixels[torch.arange(96), labels] += 90
    own = replace(
        at_side(QUICK, side), surrogate=network, appropriator=network, batch_size=15, class_steps=0
    )
    few = replace(own, epochs=10, appropriator_epochs=10, checkpoints=2, seed=SEED)
    asked = resolve(few, CLASSES)
    train, test = (pixels[:60], labels[:60]), (pixels[60:], labels[60:])
    events = appropriate(train, test, CLASSES, asked, plan)
    assert [event.accuracy for event in events if isinstance(event, Accuracy)][-1] > 0.9
    trained = surrogate.train(*train, CLASSES, asked, plan)
    ensemble = [event for event in trained if isinstance(event, Checkpoint)]
    *_, protected = protect([pixels[:12]], labels[:12], ensemble, asked, plan)
    assert isinstance(protected, Tensor)
    change = (protected.int() - pixels[:12].int()).abs().amax((1, 2, 3))
    assert (change > 0).all()
    assert change.max() <= asked.epsilon_levels


def test_crops_and_flips_happen_as_configured(data: Data, config: SEPConfig, plan: Plan) -> None:
    plain = trained_weights(data, replace(config, crop_padding=0, flip=False), plan)
    assert not torch.equal(
        plain, trained_weights(data, replace(config, crop_padding=2, flip=False), plan)
    )
    assert not torch.equal(
        plain, trained_weights(data, replace(config, crop_padding=0, flip=True), plan)
    )


def test_crop_and_flip_train_as_they_always_did(data: Data, config: SEPConfig, plan: Plan) -> None:
    expected = _plain_loop(data, config, lambda _, images, labels, __: (images, labels))
    assert torch.equal(trained_weights(data, config, plan), expected)
    assert torch.equal(trained_weights(data, config, plan, "crop-flip"), expected)


def test_none_trains_on_the_images_as_they_are(data: Data, config: SEPConfig, plan: Plan) -> None:
    bare = replace(config, crop_padding=0, flip=False)
    expected = _plain_loop(data, bare, lambda _, images, labels, __: (images, labels))
    assert torch.equal(trained_weights(data, config, plan, "none"), expected)


@pytest.mark.parametrize("name", ["cutout", "mixup", "cutmix", "randaugment"])
def test_batches_are_changed_after_crop_and_flip(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    draws = {n: generator(SEED, f"test {name}", n) for n in (1, 2, 3)}

    def change(_: Network, images: Tensor, labels: Tensor, epoch: int) -> Batch:
        return change_batch(name, images, labels, CLASSES, draws[epoch + 1])

    assert torch.equal(trained_weights(data, config, plan, name), _plain_loop(data, config, change))


@pytest.mark.parametrize("levels", [2, 8])
def test_adversarial_training_sees_only_what_the_attack_made(
    levels: int, data: Data, config: SEPConfig, plan: Plan
) -> None:
    name: Countermeasure = f"adversarial-{levels}"  # type: ignore[assignment]
    draws = {n: generator(SEED, f"test {name}", n) for n in (1, 2, 3)}

    def change(network: Network, images: Tensor, labels: Tensor, epoch: int) -> Batch:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(network(images), labels)

        return attack(network, loss, images, labels, levels, draws[epoch + 1]), labels

    assert torch.equal(trained_weights(data, config, plan, name), _plain_loop(data, config, change))


@pytest.mark.parametrize("name", sorted(set(COUNTERMEASURES) - set(PREPROCESSING)))
def test_every_countermeasure_trains_by_the_seed(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    def weights(name: Countermeasure, seed: str) -> Tensor:
        state = given if name in PRETRAINED else None
        return trained_weights(part, replace(config, seed=seed), plan, name, state)

    part, given = (data[0][:8], data[1][:8]), backbone(data, config)
    first = weights(name, SEED)
    torch.manual_seed(7)
    assert torch.equal(first, weights(name, SEED))
    assert not torch.equal(first, weights(name, SEED[::-1]))
    # A projection has changed the pixels before: what is trained is the plain training.
    plain = name in {"crop-flip", "projection", "short"}
    assert torch.equal(first, weights("crop-flip", SEED)) == plain


def test_progress_counts_batches_and_epochs_follow(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    events = list(training_events(data, config, plan))
    done = [event for event in events if isinstance(event, Progress)]
    assert done == [Progress(n, 9) for n in range(1, 10)]
    assert [n for n, event in enumerate(events) if isinstance(event, Epoch)] == [3, 7, 11]
    assert [event.number for event in events if isinstance(event, Epoch)] == [1, 2, 3]


def test_the_same_seed_trains_the_same_weights(data: Data, config: SEPConfig, plan: Plan) -> None:
    first = trained_weights(data, config, plan)
    torch.manual_seed(7)
    assert torch.equal(first, trained_weights(data, config, plan))
    other = replace(config, seed=SEED[::-1])
    assert not torch.equal(first, trained_weights(data, other, plan))


def test_purposes_draw_apart(data: Data, config: SEPConfig, plan: Plan) -> None:
    *_, last = fit(*data, CLASSES, replace(RECIPE, purpose="x"), config=config, plan=plan)
    assert isinstance(last, Epoch)
    assert not torch.equal(flat(last.network), trained_weights(data, config, plan))


def test_bfloat16_is_used_where_planned(data: Data, config: SEPConfig, plan: Plan) -> None:
    coarse = trained_weights(data, config, replace(plan, precision="bfloat16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, trained_weights(data, config, plan))


def test_what_it_cannot_train_on_is_refused(data: Data, config: SEPConfig, plan: Plan) -> None:
    pixels, labels = data
    with pytest.raises(ValueError, match="expected at least 2 training images, got 1"):
        next(training_events((pixels[:1], labels[:1]), config, plan))
    with pytest.raises(ValueError, match="seed: expected a resolved"):
        next(training_events(data, replace(config, seed=None), plan))
