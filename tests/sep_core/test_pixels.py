import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sep_core.config import SEPConfig
from sep_core.pixels import Resize, project, to_images, to_input, to_pixels
from sep_core.protection import step_along

LEVELS = st.lists(st.one_of(st.sampled_from([0, 1, 254, 255]), st.integers(0, 255)), min_size=12)
EPSILON = st.integers(1, 64)


def _pixels(levels: list[int]) -> Tensor:
    return torch.tensor(levels[: len(levels) // 12 * 12], dtype=torch.uint8).view(-1, 3, 2, 2)


def _distance(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@given(levels=LEVELS)
def test_pixels_survive_the_way_to_images_and_back(levels: list[int]) -> None:
    assert torch.equal(to_pixels(to_images(_pixels(levels))), _pixels(levels))


def test_every_level_comes_back_from_anywhere_nearer_to_it_than_to_another() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for shift in (-0.49, 0.0, 0.49):
        moved = (levels.double() + shift).div(255).float().clamp(0, 1)
        assert torch.equal(to_pixels(moved), levels)


@given(
    levels=LEVELS,
    epsilon=EPSILON,
    push=st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12),
)
def test_the_projection_keeps_the_budget_in_whole_levels(
    levels: list[int], epsilon: int, push: list[float]
) -> None:
    originals = to_images(_pixels(levels))
    moved = originals + torch.tensor(push, dtype=torch.float32).view(1, 3, 2, 2)
    projected = project(moved, originals, epsilon)
    assert 0 <= projected.min() <= projected.max() <= 1
    assert _distance(to_pixels(projected), _pixels(levels)) <= epsilon


@given(levels=LEVELS, epsilon=EPSILON, sign=st.sampled_from([-1.0, 1.0]))
def test_the_projection_uses_the_whole_budget(levels: list[int], epsilon: int, sign: float) -> None:
    originals = to_images(_pixels(levels))
    projected = to_pixels(project(originals + sign, originals, epsilon))
    expected = (_pixels(levels).int() + int(sign) * epsilon).clamp(0, 255)
    assert torch.equal(projected.int(), expected)


def test_the_projection_leaves_alone_what_is_inside() -> None:
    originals = torch.full((1, 1, 2, 2), 0.5)
    inside = originals + torch.tensor([[-3.5, 0.0], [2.0, 3.9]]) / 255
    assert torch.equal(project(inside, originals, 4), inside)


@given(
    levels=LEVELS,
    epsilon=EPSILON,
    step_levels=st.floats(0.01, 64),
    signs=st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12),
    steps=st.integers(1, 5),
)
def test_steps_keep_the_budget(
    levels: list[int], epsilon: int, step_levels: float, signs: list[float], steps: int
) -> None:
    config = SEPConfig(epsilon_levels=epsilon, step_levels=step_levels)
    originals = images = to_images(_pixels(levels))
    direction = torch.tensor(signs, dtype=torch.float32).view(1, 3, 2, 2).expand_as(images)
    for _ in range(steps):
        images = step_along(direction, images, originals, config)
    assert _distance(to_pixels(images), _pixels(levels)) <= epsilon


def test_a_step_goes_against_the_gradient_by_the_step_size() -> None:
    pixels = torch.full((1, 1, 1, 3), 100, dtype=torch.uint8)
    direction = torch.tensor([[[[-0.1, 0.0, 7.0]]]])
    config = SEPConfig(epsilon_levels=8, step_levels=3)
    moved = step_along(direction, to_images(pixels), to_images(pixels), config)
    assert to_pixels(moved).flatten().tolist() == [103, 100, 97]


def test_an_input_of_the_right_size_is_left_alone() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(to_input(images, 16), images)


def test_a_grey_image_becomes_three_equal_channels() -> None:
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(to_input(images, 16), images.repeat(1, 3, 1, 1))


def test_a_native_size_image_becomes_its_local_means() -> None:
    blocks = torch.rand(1, 3, 1, 1).expand(-1, -1, 40, 24)
    torch.testing.assert_close(to_input(blocks, 16), blocks[:, :, :16, :16])
    halves = torch.cat([torch.zeros(1, 3, 32, 16), torch.ones(1, 3, 32, 16)], dim=3)
    seen = to_input(halves, 16)
    assert seen[..., :7].max() == 0
    assert seen[..., 9:].min() > 1 - 1e-6


@pytest.mark.parametrize("shape", [(40, 24), (16, 50), (7, 9), (100, 100), (224, 130)])
def test_the_resize_is_the_librarys_antialiased_bilinear_one(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    expected = functional.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(to_input(images, 16), expected)


def test_every_native_pixel_has_a_gradient() -> None:
    images = torch.rand(1, 3, 50, 37, requires_grad=True)
    (gradient,) = torch.autograd.grad(to_input(images, 16).sum(), images)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("shape", [(40, 24), (16, 16), (7, 9), (16, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_way_back_is_the_resizes_own_gradient(channels: int, shape: tuple[int, int]) -> None:
    draws = torch.Generator().manual_seed(2)
    images = torch.rand(2, channels, *shape, generator=draws).requires_grad_()
    resize = Resize.of(images, 16)
    seen = resize(images)
    gradients = torch.randn(seen.shape, generator=draws)
    (expected,) = torch.autograd.grad(seen, images, gradients)
    torch.testing.assert_close(resize.pull_back(gradients), expected)
