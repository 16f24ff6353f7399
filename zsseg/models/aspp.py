"""Atrous spatial pyramid pooling on any timm backbone: `aspp`.

Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation" (DeepLabV3+), ECCV 2018: the map at stride 16 goes through a 1 × 1 convolution, three 3 × 3 convolutions
of rates 6, 12, 18 and the image-level mean, side by side; the decoder joins a finer map. All 3 × 3 convolutions are
depthwise separable, the paper's choice and the quicker one on a CPU as well (docs/models.md).

Four things differ. The backbone's map is brought to 256 channels before the pyramid, which bounds the cost for wide
backbones. The finer map is that of stride 8, not 4: a quarter of the cells to compute, to keep for --frozen, and to
score. Every cell is normalised over its channels instead of batch normalisation, whose statistics of a batch of 4 to
16 would be noise and would tie a cell to its batch. The last layer starts from 0, as in `encoder`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.models.backbone import COARSE, FINE, Pyramid, full_name, pretrained_cfg, resized
from zsseg.models.encoder import ChannelNorm
from zsseg.models.net import SegmentationNet

WIDTH = 256
DECODER_WIDTH = 128
SKIP_WIDTH = 48  # the paper's: few, so that the finer map does not outweigh the pyramid
RATES = (6, 12, 18)  # of stride 16, in cells


class AsppNet(SegmentationNet):
    """A timm backbone with an atrous pyramid head; output at stride 8.

    Args:
        backbone: timm's name of it.
        dim: Output channels.

    Raises:
        SettingError: The backbone makes no maps at stride 8 and 16.
    """

    stride = FINE
    feature_strides = (FINE, COARSE, None)
    fresh = ("norm", "project", "point", "atrous", "context", "join", "skip", "decode", "out")

    def __init__(self, backbone: str, dim: int) -> None:
        super().__init__()
        cfg = pretrained_cfg(backbone)
        self.mean, self.std = tuple(cfg.mean), tuple(cfg.std)
        self.backbone_name = full_name(backbone)
        self.backbone = Pyramid(backbone)
        fine, coarse = self.backbone.channels
        self.norm_fine = ChannelNorm(fine)
        self.norm_coarse = ChannelNorm(coarse)
        self.norm_context = ChannelNorm(coarse)
        self.project = nn.Conv2d(coarse, WIDTH, 1)
        self.point = convolved(WIDTH, WIDTH, 1)
        self.atrous = nn.ModuleList(separable(WIDTH, WIDTH, rate) for rate in RATES)
        self.context = nn.Conv2d(coarse, WIDTH, 1)
        self.join = convolved((len(RATES) + 2) * WIDTH, DECODER_WIDTH, 1)
        self.skip = convolved(fine, SKIP_WIDTH, 1)
        self.decode = separable(DECODER_WIDTH + SKIP_WIDTH, DECODER_WIDTH, 1)
        self.out = zero_convolution(DECODER_WIDTH, dim)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps at stride 8, at stride 16, and the image-level mean, (N, K, 1, 1)."""
        fine, coarse = self.backbone(images)
        return [fine, coarse, coarse.mean(dim=(2, 3), keepdim=True)]

    def head(self, features: list[Tensor]) -> Tensor:
        """Map the features to outputs at stride 8."""
        fine, coarse, mean = features
        hidden = F.relu(self.project(self.norm_coarse(coarse)))
        context = F.relu(self.context(self.norm_context(mean))).expand(-1, -1, *hidden.shape[2:])
        branches = [self.point(hidden), *(branch(hidden) for branch in self.atrous), context]
        joined = resized(self.join(torch.cat(branches, dim=1)), (fine.shape[2], fine.shape[3]))
        outputs: Tensor = self.out(self.decode(torch.cat([joined, self.skip(self.norm_fine(fine))], dim=1)))
        return outputs

    def backbone_modules(self) -> list[nn.Module]:
        """Return the timm backbone."""
        return [self.backbone]


def convolved(channels: int, width: int, size: int) -> nn.Sequential:
    """Return a convolution, normalisation over channels and ReLU, (N, channels, h, w) -> (N, width, h, w)."""
    return nn.Sequential(nn.Conv2d(channels, width, size, padding=size // 2), ChannelNorm(width), nn.ReLU())


def separable(channels: int, width: int, rate: int) -> nn.Sequential:
    """Return a 3 × 3 depthwise convolution of a rate, then `convolved` 1 × 1."""
    depthwise = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels)
    return nn.Sequential(depthwise, convolved(channels, width, 1))


def zero_convolution(channels: int, width: int) -> nn.Conv2d:
    """Return a 1 × 1 convolution that starts from an output of 0."""
    layer = nn.Conv2d(channels, width, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer
