"""The differentiable JPEG against libjpeg."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from sep_core.jpeg import compress

PHOTOGRAPH = data.astronaut()  # type: ignore[no-untyped-call]  # the library has no types


def photograph(height: int, width: int) -> Tensor:
    cut = np.ascontiguousarray(PHOTOGRAPH[100 : 100 + height, 150 : 150 + width])
    return torch.from_numpy(cut).permute(2, 0, 1)[None].float() / 255


def by_pillow(images: Tensor, quality: int) -> Tensor:
    pixels = (images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    decoded = np.array(Image.open(file))
    return torch.from_numpy(decoded).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("shape", [(256, 256), (100, 75), (32, 32), (33, 47)])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 100])
def test_it_leaves_what_libjpeg_leaves(shape: tuple[int, int], quality: int) -> None:
    images = photograph(*shape)
    expected = by_pillow(images, quality)
    lost = float((expected - images).abs().mean())
    # libjpeg rounds to whole levels three times on its way, which a steep quantisation magnifies.
    apart = float((compress(images, quality) - expected).abs().mean())
    assert apart < max(0.45 * lost, 1 / 255)


def test_flat_colours_come_back() -> None:
    images = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 24, 40)
    torch.testing.assert_close(compress(images, 95), images, atol=3 / 255, rtol=0)


def test_gradients_are_those_of_the_transform_without_rounding() -> None:
    images = photograph(16, 16).requires_grad_()
    weights = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((compress(images, 10) * weights).sum(), images)
    # Without rounding luma is passed on as it is; chroma only loses what its averaging loses.
    grey = torch.tensor([0.299, 0.587, 0.114])
    step = torch.full_like(images, 1 / 255)
    assert gradient.abs().min() > 0
    torch.testing.assert_close((gradient * step).sum(), (weights / 255).sum(), rtol=1e-3, atol=0)
    luma = (gradient[0] / grey.view(3, 1, 1)).mean(0)
    assert torch.corrcoef(torch.stack([luma.flatten(), weights[0].sum(0).flatten()]))[0, 1] > 0.5


def test_images_do_not_mix() -> None:
    one, other = photograph(32, 32), photograph(48, 48)[..., 16:, 16:]
    both = compress(torch.cat([one, other]), 50)
    torch.testing.assert_close(both[:1], compress(one, 50))
    torch.testing.assert_close(both[1:], compress(other, 50))
