"""How long work takes a worker, by what it has measured of itself."""

from dataclasses import replace

import pytest

from api.models import StepKind
from api.speeds import Device, Speed, Work, seconds
from sep_core.presets import QUICK

SMALL = Speed(32, 40.0, 20.0, "small", 1e6)
LARGE = Speed(32, 900.0, 500.0, "resnet18", 4e6)
MEASURED = Device("cuda", bfloat16=True, threads=1, memory_bytes=1, speeds=(SMALL, LARGE))
WORK = Work("small", gflop=80.0, pixels=2e6), Work("resnet18", gflop=9000.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (StepKind.PERTURB, [80 / 40 + 2, 9000 / 900]),
        (StepKind.TRAIN, [80 / 20, 9000 / 500]),
        (StepKind.EVALUATE, [80 / 20, 9000 / 500]),
        # 333 GFLOP a second on two cores, 2.5e-4 and 2e-5 GFLOP a pixel.
        (StepKind.ENCODE, [2e6 * 2.5e-4 / 333, 0]),
        (StepKind.PACKAGE, [2e6 * 2e-5 / 333, 0]),
    ],
)
def test_each_kind_by_its_own_speed(kind: StepKind, expected: list[float]) -> None:
    assert seconds(kind, WORK, QUICK, MEASURED) == pytest.approx(expected, rel=2e-2)


def test_what_was_not_measured_is_assumed() -> None:
    """By a worker of a version before that measured no pixels, and by one that measured nothing."""
    nothing = replace(MEASURED, device="cpu", speeds=())
    assert seconds(StepKind.PERTURB, WORK[:1], QUICK, nothing) == pytest.approx([80 / 333 + 0.02])
    before = replace(nothing, speeds=(replace(SMALL, walked_pixels=None),))
    assert seconds(StepKind.PERTURB, WORK[:1], QUICK, before) == pytest.approx([80 / 40 + 0.02])
