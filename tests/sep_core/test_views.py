"""What checkpoints are shown while images are perturbed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from sep_core.config import SEPConfig
from sep_core.jpeg import compress
from sep_core.views import CHANGES, HARDENED, View, draw, show
from tests.sep_core.conftest import SEED, SIDE


@pytest.mark.parametrize(
    "view", [View("plain", 0, 0, False), View("plain", 4, 1, True), View("plain", 2, 2, True)]
)
def test_a_view_is_a_crop_of_the_padded_image(view: View) -> None:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    expected = padded[:, :, view.top : view.top + SIDE, view.left : view.left + SIDE]
    if view.mirrored:
        expected = expected[..., ::-1]
    assert np.array_equal(show(images, view, 2).numpy(), expected)


def test_no_view_is_the_image_itself(config: SEPConfig) -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    assert draw(config, 0, 0) is None
    assert show(images, None, 2) is images


def test_views_are_drawn_from_seed_step_and_checkpoint(config: SEPConfig) -> None:
    crops = replace(config, views="crop")
    other = replace(crops, seed=SEED[::-1])
    drawn = [draw(crops, step, k) for step in range(10) for k in range(4)]
    assert drawn == [draw(crops, step, k) for step in range(10) for k in range(4)]
    assert drawn != [draw(other, step, k) for step in range(10) for k in range(4)]
    views = [view for view in drawn if view is not None]
    assert len(views) == len(drawn)
    assert len(set(views)) > 20
    corners = range(2 * config.crop_padding + 1)
    assert {view.top for view in views} == {view.left for view in views} == set(corners)
    assert {view.mirrored for view in views} == {False, True}


def test_nothing_is_mirrored_where_training_mirrors_nothing(config: SEPConfig) -> None:
    crops = replace(config, views="crop", flip=False)
    views = [draw(crops, step, 0) for step in range(20)]
    assert not any(view.mirrored for view in views if view is not None)
    assert None not in views


def test_hardened_views_are_those_crops_of_changed_images(config: SEPConfig) -> None:
    crops = [draw(replace(config, views="crop"), step, 0) for step in range(60)]
    hardened = [draw(replace(config, views="hardened"), step, 0) for step in range(60)]
    assert all(view is not None for view in hardened)
    assert {view.change for view in hardened if view} == set(HARDENED)
    assert [view and replace(view, change="plain") for view in hardened] == crops


def test_changes_are_what_they_are_called() -> None:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    red, green, blue = images.double().unbind(1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.testing.assert_close(CHANGES["grey"](images).double()[:, 2], grey, atol=2e-4, rtol=0)
    assert torch.equal(CHANGES["jpeg-10"](images), compress(images, 10))
    smooth = functional.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    whole = functional.interpolate(smooth, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(CHANGES["halved"](images), whole)


@pytest.mark.parametrize("change", CHANGES)
def test_gradients_come_through_every_change(change: str) -> None:
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images.requires_grad_()
    weights = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    seen = show(images, View(change, 1, 3, True), 2)
    (gradient,) = torch.autograd.grad((seen * weights).sum(), images)
    assert gradient[..., 2:-2, 2:-2].abs().min() > 0
