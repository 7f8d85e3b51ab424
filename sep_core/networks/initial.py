"""Initial weights, every one from the generator that is passed."""

import torch
from torch import nn
from torchvision.models import VisionTransformer

EMBEDDING_STD = 0.02


def draw_weights(module: nn.Module, draws: torch.Generator) -> None:
    """He et al. 2015, fan-in; in a transformer what Dosovitskiy et al. 2021 took over from BERT.

    Norms begin as the identity and biases at 0. Overwrites every parameter and running statistic.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draws)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        module.reset_parameters()
    elif isinstance(module, VisionTransformer):
        _draw_transformer(module, draws)
    else:
        for child in module.children():
            draw_weights(child, draws)


def _draw_transformer(whole: VisionTransformer, draws: torch.Generator) -> None:
    nn.init.zeros_(whole.class_token)
    draw_weights(whole.conv_proj, draws)
    for name, parameter in whole.encoder.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=EMBEDDING_STD, generator=draws)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
