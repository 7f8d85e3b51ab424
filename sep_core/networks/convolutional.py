"""torchvision's VGG, DenseNet and GoogLeNet; below `LARGE_PIXELS` with stems that shrink nothing.

Dropout is off everywhere: a training's randomness is an argument, and dropout would take its own.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.models.googlenet import BasicConv2d

from sep_core.costs import LARGE_PIXELS

VGG_GRID = 7  # cells a side that VGG's first dense layer sees


class AveragePool(nn.Module):
    """Adaptive average pooling to 7 x 7 as two products: (b, c, s, s) to (b, c, 7, 7).

    The gradient of torch's own is not the same twice on a GPU, unless the grid is 1 x 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Each cell is the mean of the pixels that it covers, whole or in part."""
        cells = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        share = functional.adaptive_avg_pool1d(cells, VGG_GRID)
        return share.T @ x @ share


def vgg16(side: int) -> tuple[nn.Module, int]:
    """VGG-16 with batch norm (Simonyan & Zisserman 2015, D): 4,096 features.

    At small sides the 512 channels of the last stage are the features, without the dense layers.
    """
    whole = models.vgg16_bn(init_weights=False, dropout=0.0)
    stages, dense = whole.features, whole.classifier
    if side < LARGE_PIXELS:
        stages[-1] = nn.MaxPool2d(2, ceil_mode=True)  # from 16 px one pixel is left to pool
        return nn.Sequential(stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512
    return nn.Sequential(stages, AveragePool(), nn.Flatten(), dense[:-1]), 4096


def densenet121(side: int) -> tuple[nn.Module, int]:
    """DenseNet-121 (Huang et al. 2017): growth 32, blocks of 6, 12, 24 and 16 layers.

    At small sides the stem is one 3x3 convolution, without pooling.
    """
    whole = models.densenet121()
    if side < LARGE_PIXELS:
        whole.features.conv0 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        del whole.features.pool0
    pooled = nn.Sequential(
        whole.features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return pooled, whole.classifier.in_features


def googlenet(side: int) -> tuple[nn.Module, int]:
    """GoogLeNet with batch norm (Szegedy et al. 2015) and without auxiliary heads.

    torchvision's 5x5 branches have 3x3 kernels, and so have these. At small sides one 3x3
    convolution to 192 channels stands for the stem.
    """
    whole = models.googlenet(aux_logits=False, init_weights=False, dropout=0.0)
    features = cast(nn.Linear, whole.fc).in_features
    whole.fc = nn.Identity()
    if side < LARGE_PIXELS:
        whole.conv1 = BasicConv2d(3, 192, kernel_size=3, padding=1)
        whole.maxpool1 = whole.conv2 = whole.conv3 = whole.maxpool2 = nn.Identity()
    return whole, features
