"""What networks normalise by, against statistics of all pixels at once."""

import pytest
import torch

from sep_core import channels
from sep_core.channels import channel_statistics


@pytest.mark.parametrize("images", [1, 7])
def test_channel_statistics_are_those_of_all_pixels(images: int) -> None:
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (images, 3, 5, 5), dtype=torch.uint8, generator=draws)
    pixels[:, 1] //= 2
    mean, std = channel_statistics(pixels)
    values = pixels.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1).float())
    torch.testing.assert_close(std, values.std(1, unbiased=False).float())


def test_channel_statistics_of_very_many_pixels_are_of_images_evenly_spaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8, generator=draws)
    spaced = channel_statistics(pixels[[0, 3, 6, 9]])
    monkeypatch.setattr(channels, "MOST_COUNTED", 4 * 16)
    assert all(map(torch.equal, channel_statistics(pixels), spaced))


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    _, std = channel_statistics(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert std.min() > 0
