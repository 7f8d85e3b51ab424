"""What any network must beat: pixels into a linear layer, and into two dense layers before it."""

from torch import Tensor, nn

CHANNELS = 3
HIDDEN = 512


class Pixels(nn.Module):
    """The pixels in a row, divided by the side: (b, 3, s, s) to (b, 3 s s).

    So a row is as long at every side, and learning rates that suit the other networks suit it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Row by row of each channel."""
        return x.flatten(1) / x.shape[-1]


def linear(side: int) -> tuple[nn.Module, int]:
    """No layer before the head: what class means and lines tell apart."""
    return Pixels(), CHANNELS * side**2


def mlp(side: int) -> tuple[nn.Module, int]:
    """Two hidden layers of 512 with batch norm, so that it trains by the other networks' recipe."""
    return nn.Sequential(nn.Flatten(), *_dense(CHANNELS * side**2), *_dense(HIDDEN)), HIDDEN


def _dense(inputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True)
