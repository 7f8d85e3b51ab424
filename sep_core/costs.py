"""What trainings and gradient passes cost, in GFLOP and in memory. Imports no torch."""

from sep_core.config import Countermeasure, NetworkName, SEPConfig

# From this side on networks have the form that torchvision gives them, below it one for 32 pixels.
LARGE_PIXELS = 64

# GFLOP of one forward pass of one image, a multiply-add counted as two (measured with
# torch.utils.flop_counter, ten classes): a fixed part, and one for every 32 x 32 pixels. A training
# image costs three of them, an input gradient two.
FORWARD_GFLOP: dict[NetworkName, tuple[float, float]] = {
    "resnet18": (0.0, 1.11),
    "senet18": (0.0, 1.11),
    "vgg16": (0.0, 0.626),
    "densenet121": (0.0, 1.777),
    "googlenet": (0.0, 2.674),
    "vit": (0.3645, 0.00118),
    "mlp": (0.000534, 0.003146),
    "linear": (0.0, 0.00006144),
    "small": (0.0, 0.07),
}
LARGE_FORWARD_GFLOP: dict[NetworkName, tuple[float, float]] = FORWARD_GFLOP | {
    "resnet18": (0.0, 0.0740),
    "senet18": (0.0, 0.0741),
    "vgg16": (0.239, 0.626),
    "densenet121": (0.0, 0.1156),
    "googlenet": (0.0, 0.0611),
    "small": (0.0, 0.00553),
}


SHORT_SHARE = 1 / 7
"""Of an appropriator's epochs. Data that are protected teach most in the first ones, and a schedule
that ends there makes more of that than one that is broken off."""


def held_out_images(members: int, percent: int) -> int:
    """Images of a class that are set aside to judge by: one at least where there are two."""
    return min(max(1, round(members * percent / 100)), members - 1)


def forward_gflop(name: NetworkName, side: int) -> float:
    """GFLOP of one forward pass of one square image of `side` pixels, to 2 % at multiples of 32."""
    fixed, growing = (LARGE_FORWARD_GFLOP if side >= LARGE_PIXELS else FORWARD_GFLOP)[name]
    return fixed + growing * (side / 32) ** 2


# MiB that a gradient pass of one image holds at its fullest, in float32 (counted tensor by tensor,
# of frozen networks): a fixed part, and one for every 32 x 32 pixels. bfloat16 takes about half.
GRADIENT_MIB: dict[NetworkName, tuple[float, float]] = {
    "resnet18": (0.0, 2.20),
    "senet18": (0.0, 3.15),
    "vgg16": (0.0, 1.44),
    "densenet121": (0.0, 32.9),
    "googlenet": (0.0, 31.1),
    "vit": (3.85, 0.034),
    "mlp": (0.002, 0.0352),
    "linear": (0.0, 0.0469),
    "small": (0.0, 0.562),
}
LARGE_GRADIENT_MIB: dict[NetworkName, tuple[float, float]] = GRADIENT_MIB | {
    "resnet18": (0.0, 0.252),
    "senet18": (0.0, 0.312),
    "vgg16": (0.12, 1.437),
    "densenet121": (0.0, 2.15),
    "googlenet": (0.0, 0.702),
    "small": (0.0, 0.0806),
}


def gradient_bytes(name: NetworkName, side: int) -> int:
    """Memory of a gradient pass of one square image of `side` pixels, to 5 %; see GRADIENT_MIB."""
    fixed, growing = (LARGE_GRADIENT_MIB if side >= LARGE_PIXELS else GRADIENT_MIB)[name]
    return round((fixed + growing * (side / 32) ** 2) * 2**20)


def gradient_passes(config: SEPConfig) -> int:
    """Gradient passes through one network that every image costs (paper, section 4.1)."""
    inner = config.inner_steps if config.variant == "sep-fa-vr" else 0
    return config.steps * ((config.checkpoints_per_step or config.checkpoints) + inner)


def walks(config: SEPConfig) -> int:
    """How often every image is moved a step at its own size."""
    return config.steps * (1 + (config.inner_steps if config.variant == "sep-fa-vr" else 0))


# A step towards the patterns (`sep_core.patterns`) looks at so many images, or at so many a
# class on average, whichever are more, through so many checkpoints.
PATTERN_IMAGES, PATTERN_IMAGES_A_CLASS = 512, 8
PATTERN_CHECKPOINTS = 2


def pattern_images(images: int, classes: int) -> int:
    """Of `images` those that a step towards the classes' patterns looks at."""
    return min(images, max(PATTERN_IMAGES, PATTERN_IMAGES_A_CLASS * classes))


def pattern_passes(config: SEPConfig, images: int, classes: int) -> int:
    """Gradient passes for the classes' patterns, of all images together."""
    return config.class_steps * PATTERN_CHECKPOINTS * pattern_images(images, classes)


def trained_epochs(epochs: int, countermeasure: Countermeasure) -> int:
    """How many an appropriator trains for: by `short` a whole schedule in a seventh of them."""
    return max(1, round(epochs * SHORT_SHARE)) if countermeasure == "short" else epochs


def training_cost(countermeasure: Countermeasure) -> float:
    """Work of a training in plain trainings, three forward passes an image.

    An adversarial one looks for the worst image first: `adversarial.STEPS` gradient passes of two.
    A frozen backbone is passed forward alone.
    """
    if countermeasure == "pretrained-frozen":
        return 1 / 3
    if countermeasure == "short":
        return SHORT_SHARE
    return 3.0 if countermeasure.startswith("adversarial") else 1.0
