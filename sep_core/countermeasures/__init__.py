"""What an appropriator does to get round a protection, each a row of the evidence matrix.

`none` trains without augmentation, `crop-flip` with the recipe's own; all others come on top of
crop-flip. Those in `PREPROCESSING` change all pixels once, before training; `change_batch` and
`attack` change every training batch; the `pretrained` ones begin with weights from elsewhere.
Early stopping needs no training of its own: it is the peak of any row's curve.
"""

from dataclasses import replace

from sep_core.config import Countermeasure, SEPConfig
from sep_core.countermeasures.adversarial import RADIUS_LEVELS, attack
from sep_core.countermeasures.batches import change_batch
from sep_core.countermeasures.preprocessing import PREPROCESSING
from sep_core.countermeasures.pretrained import begin, set_trainable

__all__ = [
    "PREPROCESSING",
    "RADIUS_LEVELS",
    "attack",
    "begin",
    "change_batch",
    "set_trainable",
    "training_config",
]


def training_config(config: SEPConfig, countermeasure: Countermeasure) -> SEPConfig:
    """The configuration that a countermeasure trains by.

    `none` crops and flips nothing. `pretrained-tuned` takes a tenth of the learning rate, since the
    whole rate would wash the given weights away (Kornblith et al. 2019 find 0.01 best for most).
    """
    match countermeasure:
        case "none":
            return replace(config, crop_padding=0, flip=False)
        case "pretrained-tuned":
            return replace(config, learning_rate=config.learning_rate / 10)
        case _:
            return config
