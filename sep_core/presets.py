"""Named configurations, whole. Imports no torch."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sep_core.config import SEPConfig, Variant

PAPER = SEPConfig(precision="float32")
"""The paper's headline: CIFAR-10, ResNet-18, 2/255, sep-fa-vr, n = M = 15."""

FAST = SEPConfig(
    variant="sep",
    epsilon_levels=8,
    class_steps=100,
    steps=4,
    step_levels=1.0,
    checkpoints=15,
    checkpoints_per_step=4,
    perturb_momentum=0.9,
    normalise_gradients=True,
    views="crop",
    surrogate="small",
    appropriator="resnet18",
    epochs=30,
    appropriator_epochs=30,
    schedule="cosine",
    target_map="random",
)
"""16 gradient passes an image through a small network, and 102,400 for the patterns (of ten
classes), where the paper takes 900 an image."""

QUICK = replace(FAST, appropriator="small")
"""`fast` for two CPU cores: judged by the small network, and at 32 pixels whatever the data."""

HARDENED = replace(FAST, views="hardened")
"""`fast`, patterns and walk through what appropriators do before they train."""

PRESETS: Mapping[str, SEPConfig] = MappingProxyType(
    {"paper": PAPER, "quick": QUICK, "fast": FAST, "hardened": HARDENED}
)


TRAINING_IMAGES = 150_000
FEWEST_EPOCHS, MOST_EPOCHS = 10, 40
SMALLEST_BATCH = 32


def for_images(config: SEPConfig, images: int) -> SEPConfig:
    """With epochs enough that small data are learned and large data do not take all day.

    At most a checkpoint an epoch is kept.

    Args:
        images: of the training part; an appropriator is shown about 150,000, in 10 to 40 epochs of
            a dozen batches or more, or else a few hundred images would be learned by luck alone.
    """
    epochs = min(max(TRAINING_IMAGES // max(images, 1), FEWEST_EPOCHS), MOST_EPOCHS)
    batch_size = min(max(images // 12, SMALLEST_BATCH), config.batch_size)
    return replace(
        config,
        epochs=epochs,
        appropriator_epochs=epochs,
        batch_size=batch_size,
        checkpoints=min(config.checkpoints, epochs),
    )


INPUT_SIDES = (32, 64, 128, 224)


def input_side(median_side: int) -> int:
    """What networks are to see of images whose shorter sides have this median.

    The largest of INPUT_SIDES that most images fill; smaller ones are enlarged to 32 pixels.
    """
    return max((side for side in INPUT_SIDES if side <= median_side), default=INPUT_SIDES[0])


def at_side(config: SEPConfig, side: int) -> SEPConfig:
    """The same recipe at another input size: its crops grow and shrink with the image."""
    return replace(config, input_pixels=side, crop_padding=side // 8)


def at_budget(config: SEPConfig, epsilon_levels: int) -> SEPConfig:
    """The same recipe within another budget: its steps grow and shrink with the ball."""
    step_levels = config.step_levels * epsilon_levels / config.epsilon_levels
    return replace(config, epsilon_levels=epsilon_levels, step_levels=step_levels)


def paper_for(variant: Variant) -> SEPConfig:
    """The paper's configuration of a variant: 15 checkpoints with variance reduction, else 30."""
    return replace(PAPER, variant=variant, checkpoints=15 if variant == "sep-fa-vr" else 30)
