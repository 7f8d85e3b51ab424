from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from sep_core.networks import TRUNKS, Network, build
from sep_core.pixels import to_images
from sep_core.presets import PAPER, QUICK, at_side
from sep_core.protection import protect
from sep_core.randomness import generator
from sep_core.surrogate import Checkpoint
from sep_core.training import (
    INFERENCE_BATCH,
    Epoch,
    Progress,
    Recipe,
    augment,
    batch_count,
    channel_statistics,
    fit,
    infer,
    inference_batches,
    learning_rate,
)
from tests.sep_core import reference
from tests.sep_core.conftest import CLASSES, SEED, SIDE, Data

RECIPE = Recipe("small", 3, "test")


State = Mapping[str, Tensor]


def draws() -> torch.Generator:
    return generator(SEED, "images")


def _fit(
    data: Data,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: State | None = None,
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


def _weights(
    data: Data,
    config: SEPConfig,
    plan: Plan,
    countermeasure: Countermeasure = "crop-flip",
    pretrained: State | None = None,
) -> Tensor:
    *_, last = _fit(data, config, plan, countermeasure, pretrained)
    assert isinstance(last, Epoch)
    return _flat(last.network)


def _flat(network: Network) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _new_network(data: Data, config: SEPConfig, classes: int = CLASSES) -> Network:
    draws = generator(str(config.seed), RECIPE.purpose, 0)
    return build(RECIPE.network, classes, SIDE, *channel_statistics(data[0]), draws)


Batch = tuple[Tensor, Tensor]


def _plain_loop(
    data: Data, config: SEPConfig, change: Callable[[Network, Tensor, Tensor, int], Batch]
) -> Tensor:
    """The training as it was before there were countermeasures, in other words."""
    pixels, labels = data
    network = _new_network(data, config).train()
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
    return _flat(network)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.001),
        (0.5, 0.0505),
        (1, 0.1),
        (74.999, 0.1),
        (75, 0.01),
        (89.999, 0.01),
        (90, 0.001),
        (119.999, 0.001),
    ],
)
def test_the_learning_rate_is_the_papers(epoch: float, rate: float) -> None:
    assert learning_rate(PAPER, 120, epoch) == pytest.approx(rate)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.0), (1, 0.2), (2, 0.4), (6, 0.2), (10, 0.0)])
def test_cosine_falls_to_zero_after_the_warm_up(epoch: float, rate: float) -> None:
    config = SEPConfig(
        schedule="cosine", learning_rate=0.4, warmup_epochs=2, warmup_learning_rate=0
    )
    assert learning_rate(config, 10, epoch) == pytest.approx(rate)


def test_without_warm_up_the_first_batch_has_the_whole_rate() -> None:
    assert learning_rate(SEPConfig(warmup_epochs=0), 120, 0) == 0.1


def test_the_optimiser_takes_the_scheduled_rate(data: Data, config: SEPConfig, plan: Plan) -> None:
    rates: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimiser.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    list(_fit(data, config, plan))
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


@given(images=st.integers(2, 2000), batch_size=st.integers(2, 300))
def test_no_batch_is_single_or_too_large(images: int, batch_size: int) -> None:
    sizes = [
        len(part) for part in torch.arange(images).tensor_split(batch_count(images, batch_size))
    ]
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)  # an odd number in pairs needs a three
    assert max(sizes) - min(sizes) <= 1


def test_augmentation_is_a_padded_crop_and_a_mirror() -> None:
    images = torch.rand(9, 3, 8, 8)
    corners = torch.tensor([(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (1, 3), (3, 2), (2, 1), (2, 2)])
    mirrored = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1])
    result = augment(images, torch.cat([corners, mirrored[:, None]], 1), 2)
    for n, image in enumerate(images):
        top, left = corners[n].tolist()
        expected = reference.augment(image, top, left, bool(mirrored[n]), 2)
        assert torch.equal(result[n], expected)


def test_crops_and_flips_happen_as_configured(data: Data, config: SEPConfig, plan: Plan) -> None:
    plain = _weights(data, replace(config, crop_padding=0, flip=False), plan)
    assert not torch.equal(plain, _weights(data, replace(config, crop_padding=2, flip=False), plan))
    assert not torch.equal(plain, _weights(data, replace(config, crop_padding=0, flip=True), plan))


def test_crop_and_flip_train_as_they_always_did(data: Data, config: SEPConfig, plan: Plan) -> None:
    expected = _plain_loop(data, config, lambda _, images, labels, __: (images, labels))
    assert torch.equal(_weights(data, config, plan), expected)
    assert torch.equal(_weights(data, config, plan, "crop-flip"), expected)


def test_none_trains_on_the_images_as_they_are(data: Data, config: SEPConfig, plan: Plan) -> None:
    bare = replace(config, crop_padding=0, flip=False)
    expected = _plain_loop(data, bare, lambda _, images, labels, __: (images, labels))
    assert torch.equal(_weights(data, config, plan, "none"), expected)


@pytest.mark.parametrize("name", ["cutout", "mixup", "cutmix", "randaugment"])
def test_batches_are_changed_after_crop_and_flip(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    draws = {n: generator(SEED, f"test {name}", n) for n in (1, 2, 3)}

    def change(_: Network, images: Tensor, labels: Tensor, epoch: int) -> Batch:
        return change_batch(name, images, labels, CLASSES, draws[epoch + 1])

    assert torch.equal(_weights(data, config, plan, name), _plain_loop(data, config, change))


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

    assert torch.equal(_weights(data, config, plan, name), _plain_loop(data, config, change))


@pytest.mark.parametrize("name", sorted(set(COUNTERMEASURES) - set(PREPROCESSING)))
def test_every_countermeasure_trains_by_the_seed(
    name: Countermeasure, data: Data, config: SEPConfig, plan: Plan
) -> None:
    def weights(name: Countermeasure, seed: str) -> Tensor:
        state = given if name in PRETRAINED else None
        return _weights(part, replace(config, seed=seed), plan, name, state)

    part, given = (data[0][:8], data[1][:8]), _backbone(data, config)
    first = weights(name, SEED)
    torch.manual_seed(7)
    assert torch.equal(first, weights(name, SEED))
    assert not torch.equal(first, weights(name, SEED[::-1]))
    # A projection has changed the pixels before: what is trained is the plain training.
    plain = name in {"crop-flip", "projection"}
    assert torch.equal(first, weights("crop-flip", SEED)) == plain


def _backbone(data: Data, config: SEPConfig) -> dict[str, Tensor]:
    """As if trained elsewhere: other weights, other normalisation, two classes more."""
    *_, last = _fit(data, replace(config, seed=SEED[::-1]), Plan(device="cpu", precision="float32"))
    assert isinstance(last, Epoch)
    state = _new_network(data, config, CLASSES + 2).state_dict()
    trained = last.network.state_dict()
    assert set(trained) == set(state)
    return state | {k: (v * 1.1).to(v.dtype) for k, v in trained.items() if "head" not in k}


def test_a_frozen_backbone_stays_as_given(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = _backbone(data, config)
    heads = []
    for event in _fit(data, config, plan, "pretrained-frozen", given):
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
    given = _backbone(data, config)
    still = replace(config, learning_rate=1e-7, warmup_epochs=0, weight_decay=0)
    *_, last = _fit(data, still, plan, "pretrained-tuned", given)
    assert isinstance(last, Epoch)
    expected = given | {
        k: v for k, v in _new_network(data, config).state_dict().items() if "head" in k
    }
    for name, parameter in last.network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-5, rtol=1e-4)
    assert torch.equal(last.network.state_dict()["mean"], given["mean"])


def test_a_tuned_backbone_is_trained_at_a_tenth(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = _backbone(data, config)
    tuned = _weights(data, replace(config, warmup_epochs=0), plan, "pretrained-tuned", given)
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    again = _weights(data, replace(config, warmup_epochs=0), plan, "pretrained-tuned", given)
    hook.remove()
    assert torch.equal(tuned, again)
    assert max(rates) == pytest.approx(config.learning_rate / 10)


def test_weights_that_do_not_belong_are_refused(data: Data, config: SEPConfig, plan: Plan) -> None:
    given = _backbone(data, config)
    with pytest.raises(ValueError, match="expected a state dict with pretrained-tuned, got none"):
        next(_fit(data, config, plan, "pretrained-tuned"))
    with pytest.raises(ValueError, match="expected none with cutout, got one"):
        next(_fit(data, config, plan, "cutout", given))
    first = next(k for k in given if k.endswith(".weight"))
    for wrong in (
        {k: v for k, v in given.items() if k != first},
        given | {first: torch.zeros(1)},
        given | {"another.weight": torch.zeros(1)},
    ):
        with pytest.raises(
            ValueError, match=f"expected the network's state with ({first}|another)"
        ):
            next(_fit(data, config, plan, "pretrained-frozen", wrong))


@pytest.mark.parametrize("images", [1, 7])
def test_channel_statistics_are_those_of_all_pixels(images: int) -> None:
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (images, 3, 5, 5), dtype=torch.uint8, generator=draws)
    pixels[:, 1] //= 2
    mean, std = channel_statistics(pixels)
    values = pixels.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1).float())
    torch.testing.assert_close(std, values.std(1, unbiased=False).float())


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    _, std = channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert std.min() > 0


def test_progress_counts_batches_and_epochs_follow(
    data: Data, config: SEPConfig, plan: Plan
) -> None:
    events = list(_fit(data, config, plan))
    done = [event for event in events if isinstance(event, Progress)]
    assert done == [Progress(n, 9) for n in range(1, 10)]
    assert [n for n, event in enumerate(events) if isinstance(event, Epoch)] == [3, 7, 11]
    assert [event.number for event in events if isinstance(event, Epoch)] == [1, 2, 3]


def test_the_same_seed_trains_the_same_weights(data: Data, config: SEPConfig, plan: Plan) -> None:
    first = _weights(data, config, plan)
    torch.manual_seed(7)
    assert torch.equal(first, _weights(data, config, plan))
    other = replace(config, seed=SEED[::-1])
    assert not torch.equal(first, _weights(data, other, plan))


def test_purposes_draw_apart(data: Data, config: SEPConfig, plan: Plan) -> None:
    *_, last = fit(*data, CLASSES, replace(RECIPE, purpose="x"), config=config, plan=plan)
    assert isinstance(last, Epoch)
    weights = torch.cat([p.detach().flatten() for p in last.network.parameters()])
    assert not torch.equal(weights, _weights(data, config, plan))


def test_bfloat16_is_used_where_planned(data: Data, config: SEPConfig, plan: Plan) -> None:
    coarse = _weights(data, config, replace(plan, precision="bfloat16"))
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, _weights(data, config, plan))


def test_what_it_cannot_train_on_is_refused(data: Data, config: SEPConfig, plan: Plan) -> None:
    pixels, labels = data
    with pytest.raises(ValueError, match="expected at least 2 training images, got 1"):
        next(_fit((pixels[:1], labels[:1]), config, plan))
    with pytest.raises(ValueError, match="seed: expected a resolved"):
        next(_fit(data, replace(config, seed=None), plan))


def test_inference_sees_every_image_once_and_in_order(plan: Plan) -> None:
    count = INFERENCE_BATCH + 3
    pixels = (torch.arange(count) % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    batches = list(infer(lambda images: images.mean((2, 3)), pixels, plan))
    assert len(batches) == inference_batches(count, pixels.shape[-1]) == 2
    torch.testing.assert_close(torch.cat(batches), to_images(pixels).mean((2, 3)))


@pytest.mark.parametrize(("side", "largest"), [(32, 256), (64, 256), (224, 64), (1024, 3)])
def test_inference_takes_fewer_images_where_they_are_large(
    side: int, largest: int, plan: Plan
) -> None:
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(257, 3, side, side)
    taken = [len(means) for means in islice(infer(_corners, pixels, plan), 2)]
    assert largest // 2 < max(taken) <= largest


def _corners(images: Tensor) -> Tensor:
    return images[:, :, 0, 0]
