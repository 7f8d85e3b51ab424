"""How long work takes a worker, by what it has measured of itself."""

from dataclasses import replace

import pytest

from api.models import StepKind
from api.plans.speeds import Device, Load, Speed, costs

SMALL = Speed(32, 40.0, 20.0, "small", 1e6)
LARGE = Speed(32, 900.0, 500.0, "resnet18", 4e6)
MEASURED = Device("cuda", bfloat16=True, threads=1, memory_bytes=1, speeds=(SMALL, LARGE))
LOADS = Load("small", gflop=80.0, pixels=2e6), Load("resnet18", gflop=9000.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (StepKind.PERTURB, [80 / 40 + 2, 9000 / 900]),
        (StepKind.TRAIN, [80 / 20, 9000 / 500]),
        (StepKind.EVALUATE, [80 / 20, 9000 / 500]),
        (StepKind.ENCODE, [1.5, 0]),
        (StepKind.PACKAGE, [0.12, 0]),
    ],
)
def test_each_kind_by_its_own_speed(kind: StepKind, expected: list[float]) -> None:
    assert costs({kind: LOADS}, 32, MEASURED) == {kind: pytest.approx(expected)}


def test_what_was_not_measured_is_assumed() -> None:
    """By a worker of a version before that measured no pixels, and by one that measured nothing."""
    perturb = {StepKind.PERTURB: LOADS[:1]}
    for device, gflops, walked in (("cpu", 333, 1e8), ("cuda", 125_000, 5e9)):
        nothing = replace(MEASURED, device=device, speeds=())
        expected = [80 / gflops + 2e6 / walked]
        assert costs(perturb, 32, nothing)[StepKind.PERTURB] == pytest.approx(expected)
        before = replace(nothing, speeds=(replace(SMALL, walked_pixels=None),))
        expected = [80 / 40 + 2e6 / walked]
        assert costs(perturb, 32, before)[StepKind.PERTURB] == pytest.approx(expected)


def test_networks_that_do_more_than_multiply_train_slower_on_a_cpu() -> None:
    train = {StepKind.TRAIN: [Load(name, gflop=80.0) for name in ("small", "vit", "linear")]}
    here = replace(MEASURED, device="cpu", speeds=(SMALL,))
    assert costs(train, 32, here)[StepKind.TRAIN] == pytest.approx([4, 4 / 0.6, 4 / 0.03])
    assert costs(train, 32, replace(here, device="cuda"))[StepKind.TRAIN] == [4, 4, 4]
