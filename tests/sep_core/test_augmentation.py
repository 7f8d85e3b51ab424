"""Crops and mirror images beside a naive loop."""

import torch

from sep_core.augmentation import augment
from tests.sep_core import reference


def test_augmentation_is_a_padded_crop_and_a_mirror() -> None:
    images = torch.rand(9, 3, 8, 8)
    corners = torch.tensor([(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (1, 3), (3, 2), (2, 1), (2, 2)])
    mirrored = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1])
    result = augment(images, torch.cat([corners, mirrored[:, None]], 1), 2)
    for n, image in enumerate(images):
        top, left = corners[n].tolist()
        expected = reference.augment(image, top, left, bool(mirrored[n]), 2)
        assert torch.equal(result[n], expected)
