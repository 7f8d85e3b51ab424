"""The walk of every variant against the reference, and what must hold of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep_core.config import Plan, SEPConfig, Variant
from sep_core.costs import gradient_passes
from sep_core.networks import Network
from sep_core.pixels import Resize, to_images, to_pixels
from sep_core.presets import PAPER
from sep_core.protection import protect, target_classes
from sep_core.surrogate import Checkpoint
from tests.sep_core import reference
from tests.sep_core.beside import (
    AGREEMENT,
    KINK,
    ROUNDING,
    Case,
    agree,
    differences,
    drawn,
    interpolate,
)
from tests.sep_core.conftest import SEED, SIDE, Data
from tests.sep_core.reference import Member

VARIANTS: list[Variant] = ["sep", "sep-fa", "sep-fa-vr"]
Make = Callable[..., Case]


@pytest.fixture
def make(
    data: Data, networks: list[Network], ensemble: list[Checkpoint], config: SEPConfig, plan: Plan
) -> Make:
    members = [
        Member(network, kept.class_means) for network, kept in zip(networks, ensemble, strict=True)
    ]

    def make(variant: Variant, pixels: Tensor | None = None, images: int = 4) -> Case:
        chosen = data[0][:images] if pixels is None else pixels
        asked = replace(config, variant=variant)
        return Case(chosen, data[1][: len(chosen)], ensemble, members, asked, plan)

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_every_checkpoint_agree_with_the_reference(
    make: Make, variant: Variant
) -> None:
    case = make(variant, images=12)
    images = to_images(case.pixels)
    targets = target_classes(case.labels, case.config).tolist()
    bounds = []
    for k, member in enumerate(case.members):
        actual = case.gradient(k, images)
        for n, (image, target) in enumerate(zip(images, targets, strict=True)):
            with reference.Kinks() as kinks:
                expected = reference.gradient(variant, member, image, target, interpolate)
            bound = KINK if kinks.margin < ROUNDING else AGREEMENT
            assert differences(actual[n : n + 1], expected[None]) < bound
            bounds.append(bound)
    assert sum(bound == AGREEMENT for bound in bounds) > 0.5 * len(bounds)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("shape", [(1, SIDE, SIDE), (3, 40, 27), (1, 21, 33), (3, 9, 12)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_directions_agree_with_the_reference(
    make: Make, variant: Variant, shape: tuple[int, int, int], equal: bool
) -> None:
    draws = torch.Generator().manual_seed(8)
    drawn = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=draws)
    case = make(variant, drawn)
    case = replace(case, config=replace(case.config, normalise_gradients=equal))
    images = to_images(drawn)
    actual = case.directions(images, 1)
    assert agree(actual, case.reference_directions(images, 1, actual))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_agrees_with_the_reference(make: Make, variant: Variant) -> None:
    case = make(variant)
    images = to_images(case.pixels)  # x_t, common to both; whole levels, since the step is one
    for step in range(case.config.steps):
        actual = case.directions(images, step)
        expected = case.reference_directions(images, step, actual)
        assert agree(actual, expected)
        exact = expected.directions[-1]
        after = case.protected(steps=step + 1)
        moved = torch.stack(
            [
                reference.step(direction, image, original, 1.0, case.config.epsilon_levels)
                for direction, image, original in zip(
                    exact, images, to_images(case.pixels), strict=True
                )
            ]
        )
        decided = exact.abs() > (actual[-1].double() - exact).abs().max()
        assert decided.double().mean() > 0.95
        assert torch.equal(after[decided], to_pixels(moved.float())[decided])
        images = to_images(after)


def test_variance_reduction_uses_the_class_means_of_the_checkpoint_drawn(make: Make) -> None:
    case = make("sep-fa-vr")
    images = to_images(case.pixels)
    last = case.members[-1].means
    mistaken = replace(case, members=[Member(m.network, last) for m in case.members])
    actual = case.directions(images, 0)
    assert agree(actual, case.reference_directions(images, 0, actual))
    wrong = mistaken.reference_directions(images, 0, actual)
    assert differences(actual[-1], wrong.directions[-1]).min() > 3 * KINK


def test_the_walk_of_every_step_visits_checkpoints_of_its_own(make: Make) -> None:
    case = make("sep-fa-vr")
    visits = [drawn(case.config, 3, step) for step in range(3)]
    assert visits[0] != visits[1] != visits[2]
    assert {k for visit in visits for k in visit} == {0, 1, 2}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_checkpoint_counts(make: Make, variant: Variant) -> None:
    case = make(variant)
    images = to_images(case.pixels)
    for k in range(3):
        fewer = replace(case, ensemble=[m for j, m in enumerate(case.ensemble) if j != k])
        whole, part = case.directions(images, 0)[-1], fewer.directions(images, 0)[-1]
        assert differences(whole, part.double()).min() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_lower_the_loss(make: Make, variant: Variant) -> None:
    case = make(variant, images=6)
    targets = target_classes(case.labels, case.config)

    def loss(pixels: Tensor) -> float:
        total = torch.zeros(())
        for kept in case.ensemble:
            features = kept.network.features(to_images(pixels))
            if variant == "sep":
                logits = kept.network.head(features)
                total += functional.cross_entropy(logits, targets)
            else:
                total += (features - kept.class_means[targets]).square().sum(1).mean()
        return float(total)

    assert loss(case.protected(steps=6)) < loss(case.protected(steps=1)) < loss(case.pixels)


def test_the_papers_passes_are_counted_and_yielded(make: Make) -> None:
    case = make("sep-fa-vr", images=1)
    config = replace(
        PAPER, surrogate="small", input_pixels=SIDE, crop_padding=2, target_map=(1, 2, 0), seed=SEED
    )
    ensemble = [case.ensemble[k % 3] for k in range(15)]
    *passes, protected = protect([case.pixels], case.labels, ensemble, config, case.plan)
    assert passes == list(range(1, 901))
    assert gradient_passes(config) == gradient_passes(PAPER) == 900
    assert isinstance(protected, Tensor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_are_those_that_the_configuration_promises(make: Make, variant: Variant) -> None:
    case = make(variant, images=1)
    config = replace(case.config, checkpoints=3)
    *passes, _ = protect([case.pixels], case.labels, case.ensemble, config, case.plan)
    assert passes == list(range(1, gradient_passes(config) + 1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(3, SIDE, SIDE), (1, SIDE, SIDE), (3, 23, 31)])
def test_the_budget_is_kept_and_used(
    make: Make, variant: Variant, shape: tuple[int, int, int]
) -> None:
    draws = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=draws)
    pixels[0], pixels[1] = 0, 255
    case = make(variant, pixels)
    protected = case.protected(steps=5)
    assert protected.dtype == torch.uint8
    assert protected.shape == pixels.shape
    assert int((protected.int() - pixels.int()).abs().max()) == case.config.epsilon_levels


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_request_gives_the_same_bytes(make: Make, variant: Variant) -> None:
    case = make(variant)
    first = case.protected()
    torch.manual_seed(3)
    assert torch.equal(first, case.protected())


def test_another_seed_gives_other_bytes(make: Make) -> None:
    case = make("sep-fa-vr")
    other = replace(case, config=replace(case.config, seed=SEED[::-1]))
    assert not torch.equal(case.protected(), other.protected())


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_does_not_depend_on_its_neighbours(make: Make, variant: Variant) -> None:
    case = make(variant, images=4)
    others = case.pixels.clone()
    others[1:] = 255 - others[1:]
    neighbours = replace(case, pixels=others)
    assert torch.equal(case.protected()[0], neighbours.protected()[0])
    assert not torch.equal(case.protected()[1], neighbours.protected()[1])


def test_nothing_that_came_in_is_changed(make: Make) -> None:
    case = make("sep-fa")
    before = case.pixels.clone()
    case.protected()
    assert torch.equal(case.pixels, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_grey_stays_grey_in_three_channels(make: Make, variant: Variant) -> None:
    """Else each channel shows the same hidden value once more; others of the batch are in colour.

    The walk is that of one channel, whose gradient is the sum over three.
    """
    case = make(variant)
    single = case.pixels[:2, :1]
    mixed = torch.cat([single.expand(-1, 3, -1, -1), case.pixels[2:]])

    def protected(pixels: Tensor) -> Tensor:
        known = case.labels[: len(pixels)]
        *_, last = protect([pixels], known, case.ensemble, case.config, case.plan)
        assert isinstance(last, Tensor)
        return last

    found, coloured, alone = protected(mixed), protected(case.pixels), protected(single)
    assert torch.equal(found[:2], found[:2, :1].expand(-1, 3, -1, -1))
    assert torch.equal(found[2:], coloured[2:])
    assert (found[:2, :1] != alone).double().mean() < 0.02
    assert (found[:2, :1] != single).double().mean() > 0.5


def test_bfloat16_comes_near(make: Make) -> None:
    case = make("sep-fa")
    coarse = replace(case, plan=replace(case.plan, precision="bfloat16"))
    images = to_images(case.pixels)
    fine = [direction.double() for direction in case.directions(images, 0)]
    error = differences(coarse.directions(images, 0)[-1], fine[-1])
    assert AGREEMENT < error.max() < 0.2


def test_targets_are_those_of_the_map(config: SEPConfig) -> None:
    assert target_classes(torch.tensor([0, 1, 2, 0]), config).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_map_are_refused(config: SEPConfig, label: int) -> None:
    with pytest.raises(ValueError, match="labels: expected 0 to 2"):
        target_classes(torch.tensor([0, label]), config)


def test_an_open_target_map_is_refused(config: SEPConfig) -> None:
    with pytest.raises(ValueError, match="target_map: expected a resolved one, got 'shift'"):
        target_classes(torch.tensor([0]), replace(config, target_map="shift"))


def test_the_reference_resizes_as_the_networks_do() -> None:
    images = torch.rand(2, 1, 29, 41)
    torch.testing.assert_close(interpolate(images), Resize.of(images, SIDE)(images))
