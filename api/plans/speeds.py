"""How long work takes, by how fast a worker was seen to be. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from api.models import StepKind
from sep_core.config import NetworkName
from sep_core.presets import INPUT_SIDES

GFLOPS: Mapping[str, float] = {"cpu": 333, "cuda": 125_000}
"""Where nothing was measured: of two AVX-512 cores with bfloat16, and of a data-centre GPU."""
WALKED_PIXELS: Mapping[str, float] = {"cpu": 1e8, "cuda": 5e9}
"""Likewise."""
# Of one CPU worker, whatever it is: decoding, encoding and comparing a pixel, and joining what was
# encoded and reading it again, most of which is a matter of each image where they are small.
SECONDS_A_PIXEL: Mapping[StepKind, float] = {StepKind.ENCODE: 7.5e-7, StepKind.PACKAGE: 6e-8}
MEASURED_SIDES = INPUT_SIDES[:2]
"""Where workers measure their speed. From the second on networks begin with other layers, whose
speed is much the same at all sizes: on two CPU cores a third of that at 32 pixels."""
MEASURED_NETWORKS: Mapping[str, tuple[NetworkName, ...]] = {
    "cpu": ("small",),
    "cuda": ("small", "resnet18"),
}
"""Which networks' speed they measure. A GPU is many times as fast through a large network as
through a small one, whose layers are done before the next are launched."""
SHARES: Mapping[str, Mapping[NetworkName, float]] = {
    "cpu": {"linear": 0.03, "mlp": 0.6, "vit": 0.6},
    "cuda": {},
}
"""Of the speed of training that was measured, what networks get that do more than multiply large
matrices: of `small`'s in docs/results, on one core and 2,500 images of 32 pixels."""
SMALL_NETWORKS: frozenset[NetworkName] = frozenset({"small", "linear", "mlp"})


@dataclass(frozen=True)
class Load:
    """Of a step, as far as it can be told beforehand.

    Attributes:
        network: through which the images are passed.
        gflop: of these passes.
        pixels: of images at their own size: moved a step by `perturb`, once for each of its steps;
            encoded; joined.
    """

    network: NetworkName
    gflop: float = 0.0
    pixels: float = 0.0


@dataclass(frozen=True)
class Speed:
    """How fast a worker has been seen to be, where networks see images of `input_pixels`.

    Attributes:
        gradient_gflops, training_gflops: a second, of gradient passes and of training.
        network: through which it was measured.
        walked_pixels: a second, of large images that are moved a step at their own size, a few
            passes of so few images and the ways there and back included; None where it was
            measured by a version that did not ask for it.
    """

    input_pixels: int
    gradient_gflops: float
    training_gflops: float
    network: NetworkName = "small"
    walked_pixels: float | None = None


@dataclass(frozen=True)
class Device:
    """What a worker registered of itself."""

    device: str
    bfloat16: bool
    threads: int
    memory_bytes: int
    speeds: tuple[Speed, ...] = ()

    def speed(self, network: NetworkName, input_pixels: int) -> Speed:
        """Measured through a like network, at the largest side that is not above the asked one.

        Through any network, and at the smallest side, where there is no other.
        """
        assumed = GFLOPS[self.device]
        known = self.speeds or (Speed(input_pixels, assumed, assumed),)
        small = network in SMALL_NETWORKS
        alike = [each for each in known if (each.network in SMALL_NETWORKS) == small] or known
        ordered = sorted(alike, key=attrgetter("input_pixels"))
        return [ordered[0], *(each for each in ordered if each.input_pixels <= input_pixels)][-1]


def costs(
    loads: Mapping[StepKind, Sequence[Load]], input_pixels: int, device: Device
) -> dict[StepKind, list[float]]:
    """Seconds that every step takes such a worker."""
    return {
        kind: [seconds(kind, load, input_pixels, device) for load in of_kind]
        for kind, of_kind in loads.items()
    }


def seconds(kind: StepKind, load: Load, input_pixels: int, device: Device) -> float:
    """That a step takes such a worker; `encode` and `package` as they take any CPU worker.

    Pixels of images no larger than networks see them are counted twice, since a pass was measured
    with its step: some percent too much.
    """
    if kind in SECONDS_A_PIXEL:
        return load.pixels * SECONDS_A_PIXEL[kind]
    speed = device.speed(load.network, input_pixels)
    if kind is StepKind.PERTURB:
        walked = speed.walked_pixels or WALKED_PIXELS[device.device]
        return load.gflop / speed.gradient_gflops + load.pixels / walked
    share = SHARES[device.device].get(load.network, 1.0)
    return load.gflop / (share * speed.training_gflops)
