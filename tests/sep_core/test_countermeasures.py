"""Every countermeasure against its formula, written out with loops, NumPy or Pillow."""

import io
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

from sep_core.config import COUNTERMEASURES, Countermeasure
from sep_core.countermeasures import PREPROCESSING, RADIUS_LEVELS, change_batch
from sep_core.countermeasures.randaugment import OPERATIONS, apply, rand_augment
from sep_core.pixels import to_images, to_pixels
from sep_core.randomness import generator
from tests.sep_core.conftest import CLASSES, SEED

BATCHES: tuple[Countermeasure, ...] = ("cutout", "mixup", "cutmix", "randaugment")


def _draws(number: int = 0) -> torch.Generator:
    return generator(SEED, "test", number)


@pytest.fixture(params=[16, 32])
def pixels(request: pytest.FixtureRequest) -> Tensor:
    """Five images, part noise and part ramp, with black and white in them."""
    side = request.param
    ramp = torch.linspace(0, 255, side)
    noise = torch.randint(0, 256, (5, 3, side, side), generator=torch.Generator().manual_seed(5))
    return ((noise + ramp[:, None] + 2 * ramp) / 4).round().to(torch.uint8)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(6))


def _agree(pixels: Tensor, values: Tensor | np.ndarray) -> None:
    """Pixels are `values`, in levels, rounded to the nearest."""
    assert pixels.dtype == torch.uint8
    assert (pixels.double() - torch.as_tensor(values).double()).abs().max() <= 0.5 + 1e-3


def test_every_countermeasure_has_one_place() -> None:
    plain = {"none", "crop-flip", "projection", "short", "pretrained-frozen", "pretrained-tuned"}
    parts: list[set[str]] = [set(PREPROCESSING), set(BATCHES), set(RADIUS_LEVELS), plain]
    assert sum(len(part) for part in parts) == len(COUNTERMEASURES)
    assert set[str]().union(*parts) == set(COUNTERMEASURES)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_repeats_keeps_its_input_and_takes_images_one_by_one(
    name: Countermeasure, pixels: Tensor
) -> None:
    before = pixels.clone()
    result = PREPROCESSING[name](pixels)
    assert torch.equal(pixels, before)
    assert not torch.equal(result, pixels)
    assert torch.equal(torch.cat([PREPROCESSING[name](image[None]) for image in pixels]), result)


def test_grey_is_luma_in_every_channel(pixels: Tensor) -> None:
    red, green, blue = pixels.double().unbind(1)
    luma = 0.2989 * red + 0.587 * green + 0.114 * blue
    _agree(PREPROCESSING["grey"](pixels), luma[:, None].expand(-1, 3, -1, -1))


def test_bit_depth_takes_the_nearest_of_four_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    result = PREPROCESSING["bit-depth"](levels.view(1, 1, 16, 16).expand(1, 3, 16, 16))
    nearest = [min((0, 85, 170, 255), key=lambda kept: abs(kept - level)) for level in range(256)]
    assert result[0, 0].flatten().tolist() == nearest


@pytest.mark.parametrize("quality", [90, 50, 10])
def test_jpeg_is_what_pillow_writes_and_reads(quality: int, pixels: Tensor) -> None:
    name: Countermeasure = f"jpeg-{quality}"  # type: ignore[assignment]
    for image, result in zip(pixels, PREPROCESSING[name](pixels), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert (result.int() - expected.int()).abs().max() <= 1


def test_rescaling_goes_through_half_the_side(pixels: Tensor) -> None:
    side = pixels.shape[-1]
    values = pixels.double()
    for size in (side // 2, side):
        values = functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
    _agree(PREPROCESSING["rescale"](pixels), values)


def test_blur_is_a_gaussian(pixels: Tensor) -> None:
    side = pixels.shape[-1]
    sigma, reach = side / 32, math.ceil(3 * side / 32)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(
        pixels.numpy().astype(float),
        [(0, 0), (0, 0), (reach, reach), (reach, reach)],
        mode="reflect",
    )
    blurred = np.zeros(pixels.shape)
    for row, column in itertools.product(range(side), repeat=2):
        window = padded[:, :, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
        blurred[:, :, row, column] = (window * kernel).sum((2, 3))
    _agree(PREPROCESSING["blur"](pixels), blurred)


def test_blur_blurs() -> None:
    stripes = torch.full((1, 3, 32, 32), 28, dtype=torch.uint8)
    stripes[..., ::2] = 228
    inside = PREPROCESSING["blur"](stripes)[..., 4:-4]
    assert (inside.int() - 128).abs().max() <= 1


@pytest.mark.parametrize("name", BATCHES)
def test_batches_come_from_the_draws_alone(name: Countermeasure, images: Tensor) -> None:
    def change(number: int) -> Tensor:
        return change_batch(name, images, labels, CLASSES, _draws(number))[0]

    labels, before = torch.arange(12) % CLASSES, images.clone()
    first = change(0)
    torch.manual_seed(9)
    assert torch.equal(change(0), first)
    assert not torch.equal(change(1), first)
    assert torch.equal(images, before)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("name", sorted(set(COUNTERMEASURES) - set(BATCHES)))
def test_the_others_leave_batches_alone(name: Countermeasure, images: Tensor) -> None:
    labels = torch.arange(12) % CLASSES
    result = change_batch(name, images, labels, CLASSES, _draws())
    assert result[0] is images
    assert result[1] is labels


def test_cutout_hides_a_clipped_square_of_half_the_side(images: Tensor) -> None:
    labels = torch.arange(12) % CLASSES
    result, targets = change_batch("cutout", images, labels, CLASSES, _draws())
    assert torch.equal(torch.as_tensor(targets), labels)
    mean = images.double().mean((0, 2, 3)).float()
    centres = torch.randint(16, (12, 2), generator=_draws()).tolist()
    for image, changed, (row, column) in zip(images, result, centres, strict=True):
        expected = image.clone()
        for i, j in itertools.product(range(row - 4, row + 4), range(column - 4, column + 4)):
            if 0 <= i < 16 and 0 <= j < 16:
                expected[:, i, j] = mean
        torch.testing.assert_close(changed, expected)
    assert len({tuple(centre) for centre in centres}) > 6


def test_mixup_weighs_images_and_labels_alike(images: Tensor) -> None:
    labels = torch.arange(12) % CLASSES
    mixed, shares = change_batch("mixup", images, labels, CLASSES, _draws())
    draws = _draws()
    kept = float(torch.rand((), generator=draws))
    partners = torch.randperm(12, generator=draws).tolist()
    assert partners != list(range(12))
    for i, j in enumerate(partners):
        blend = kept * images[i].double() + (1 - kept) * images[j].double()
        torch.testing.assert_close(mixed[i], blend.float())
        expected = [kept * (labels[i] == y) + (1 - kept) * (labels[j] == y) for y in range(CLASSES)]
        torch.testing.assert_close(shares[i], torch.stack(expected).float())


def _flat_images(count: int, side: int) -> Tensor:
    """Image i is i / count everywhere, so that every pixel says where it is from."""
    return (torch.arange(count) / count).view(-1, 1, 1, 1).expand(-1, 3, side, side).clone()


@pytest.mark.parametrize("number", range(20))
def test_cutmix_shares_labels_by_area(number: int) -> None:
    count, side = 6, 16
    mixed, shares = change_batch(
        "cutmix", _flat_images(count, side), torch.arange(count), count, _draws(number)
    )
    origin = (mixed * count).round().long()
    boxes = origin != torch.arange(count).view(-1, 1, 1, 1)
    for i in range(count):
        areas = torch.bincount(origin[i, 0].flatten(), minlength=count) / side**2
        torch.testing.assert_close(shares[i], areas)
    box = boxes.flatten(0, 1).any(0)
    assert all(torch.equal(part, box) or not part.any() for part in boxes.flatten(0, 1))
    assert torch.equal(box, box.any(1)[:, None] & box.any(0))  # a rectangle


def test_cutmix_boxes_follow_lambda_and_centre() -> None:
    side = 16
    areas = []
    for number in range(200):
        mixed, _ = change_batch("cutmix", _flat_images(2, side), torch.arange(2), 2, _draws(number))
        draws = _draws(number)
        kept = float(torch.rand((), generator=draws))
        if torch.randperm(2, generator=draws).tolist() == [0, 1]:
            assert torch.equal(mixed, _flat_images(2, side))
            continue
        row, column = torch.randint(side, (2,), generator=draws).tolist()
        half = int(side * (1 - kept) ** 0.5) // 2
        for i, j in itertools.product(range(side), repeat=2):
            inside = row - half <= i < row + half and column - half <= j < column + half
            assert mixed[0, 0, i, j] == (0.5 if inside else 0)
        areas.append(1 - kept)
    assert 0.4 < sum(areas) / len(areas) < 0.6


def _affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix)


def _paper_operations(
    strength: float, side: int
) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """RandAugment's operations as its authors have them from Pillow."""
    shift, factor = int(150 / 331 * strength * side), 1 + 0.9 * strength
    return {
        "identity": lambda image: image,
        "shear-x": _affine(1, 0.3 * strength, 0, 0, 1, 0),
        "shear-y": _affine(1, 0, 0, 0.3 * strength, 1, 0),
        "translate-x": _affine(1, 0, -shift, 0, 1, 0),
        "translate-y": _affine(1, 0, 0, 0, 1, -shift),
        "rotate": lambda image: image.rotate(30 * strength),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "colour": lambda image: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": lambda image: ImageOps.posterize(image, 7),
        "solarize": lambda image: ImageOps.solarize(image, 179),
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }


@pytest.mark.parametrize("number", range(2 * len(OPERATIONS)))
def test_randaugments_operations_are_the_papers(number: int, pixels: Tensor) -> None:
    name = list(OPERATIONS)[number // 2]
    operations = _paper_operations(-0.3 if number % 2 else 0.3, pixels.shape[-1])
    assert list(operations) == list(OPERATIONS)
    results = apply(pixels, torch.full((5,), number))
    for image, result in zip(pixels, results, strict=True):
        drawn = operations[name](Image.fromarray(image.permute(1, 2, 0).numpy()))
        expected = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)
        assert (result.int() - expected.int()).abs().max() <= 1
    assert torch.equal(results, pixels) == (name == "identity")


def test_randaugment_does_to_every_image_what_it_drew(pixels: Tensor) -> None:
    many = pixels.repeat(20, 1, 1, 1)
    draws = _draws()
    rounds = [torch.randint(28, (100,), generator=draws) for _ in range(2)]
    result = to_pixels(rand_augment(to_images(many), _draws()))
    for i, (first, second) in enumerate(zip(*rounds, strict=True)):
        once = apply(many[i : i + 1], first[None])
        assert torch.equal(apply(once, second[None])[0], result[i])
    assert set(rounds[0].tolist()) | set(rounds[1].tolist()) == set(range(28))
