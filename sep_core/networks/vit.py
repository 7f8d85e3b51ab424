"""A small vision transformer."""

from torch import nn
from torchvision.models import VisionTransformer

GRID = 8
WIDTH = 192


def trunk(side: int) -> tuple[nn.Module, int]:
    """A vision transformer (Dosovitskiy et al. 2021) of 2.7 million parameters.

    Six layers, three heads, 192 features, dense layers of 768: ViT-Tiny (Touvron et al. 2021) at
    half its depth. It sees 8 x 8 patches and a class token at every side, so 4 x 4 pixels a patch
    at 32. Where 8 does not divide the side, the right and lower edges are padded with the mean.
    """
    patch = -(-side // GRID)
    margin = patch * GRID - side
    whole = VisionTransformer(patch * GRID, patch, 6, 3, WIDTH, 4 * WIDTH)
    whole.heads = nn.Sequential()
    return nn.Sequential(nn.ZeroPad2d((0, margin, 0, margin)), whole), WIDTH
