"""What is tried, in order of worth, and by which configurations."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from benchmarks.strength.recipes import CLEAN, OWN, hex_seed
from sep_core.config import NetworkName, SEPConfig
from sep_core.optimisation import SGD_RATES
from sep_core.presets import FAST, at_budget, at_side, for_images

SURROGATE_SEED, APPROPRIATOR_SEED = 1, 11
CIFAR_IMAGES = 50_000
OTHERS: tuple[NetworkName, ...] = ("senet18", "vgg16", "densenet121", "googlenet")
# What `fast` does to the images through the surrogate of all other recipes.
WALK = (
    "variant",
    "class_steps",
    "steps",
    "step_levels",
    "checkpoints_per_step",
    "perturb_momentum",
    "normalise_gradients",
    "views",
)


@dataclass(frozen=True)
class Trial:
    """A network trained on what a recipe made of the images; None is the configuration's own."""

    recipe: str
    levels: int
    network: NetworkName | None = None

    @property
    def release(self) -> str:
        """Names the images."""
        return f"{self.recipe}-{self.levels}-{self.surrogate_seed}"

    @property
    def surrogate_seed(self) -> int:
        """0 where there is no surrogate."""
        return 0 if self.recipe == CLEAN else SURROGATE_SEED


AT_TWO = [Trial(CLEAN, 0), Trial("fast", 2), Trial("sep-fa-vr", 2), Trial(OWN, 2)]
AT_EIGHT = [Trial("fast", 8), Trial("sep-fa-vr", 8), Trial(OWN, 8)]
STAGES: dict[str, list[Trial]] = {
    "two": AT_TWO,
    "eight": AT_EIGHT,
    "networks": [
        replace(trial, network=network)
        for trials in (AT_TWO, AT_EIGHT)
        for network, trial in product(OTHERS, trials)
    ],
    "rest": [Trial(recipe, levels) for levels in (2, 8) for recipe in ("last", "sep-fa", "sep")],
}


def configure(trial: Trial, base: SEPConfig) -> SEPConfig:
    """The configuration of a trial.

    Args:
        base: the paper's for `sep`, resolved; n = 30. Variance reduction and `fast` take every
            second of these checkpoints, `last` the last, and OWN none of them.

    Raises:
        ValueError: no such recipe.
    """
    config = replace(base, epsilon_levels=trial.levels or 1)
    half = base.checkpoints // 2
    match trial.recipe:
        case "clean" | "sep":
            return config
        case "sep-fa":
            return replace(config, variant="sep-fa")
        case "sep-fa-vr":
            return replace(config, variant="sep-fa-vr", checkpoints=half)
        case "last":
            return replace(config, checkpoints=1)
        case "fast":
            fast = at_budget(FAST, trial.levels)
            walk: dict[str, Any] = {name: getattr(fast, name) for name in WALK}
            return replace(config, checkpoints=half, **walk)
        case "fast-own":
            own = for_images(at_budget(FAST, trial.levels), CIFAR_IMAGES)
            sized = at_side(own, base.input_pixels)
            return replace(sized, seed=base.seed, target_map=base.target_map)
    raise ValueError(f"recipe: expected one of those in STAGES, got {trial.recipe!r}")


def trained_by(trial: Trial, base: SEPConfig) -> SEPConfig:
    """Of the appropriator's training, at the paper's rate for every network."""
    network = trial.network or base.appropriator
    own_rate = SGD_RATES.get(network, 1.0)
    return replace(
        base,
        appropriator=network,
        learning_rate=base.learning_rate / own_rate,
        warmup_learning_rate=base.warmup_learning_rate / own_rate,
        seed=hex_seed(APPROPRIATOR_SEED),
    )


def surrogate_of(trial: Trial, base: SEPConfig) -> tuple[str, SEPConfig]:
    """By which configuration a trial's surrogate is trained, and its name."""
    if trial.recipe == OWN:
        return "surrogate-fast", configure(trial, base)
    return "surrogate", base
