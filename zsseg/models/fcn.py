"""VGG-16 fully convolutional networks FCN-32s, FCN-16s and FCN-8s, for embeddings of any dimension.

Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. Three things differ
from the well-known pytorch-fcn. Upsampling is bilinear instead of a D × D transposed convolution, whose cost is
quadratic in the embedding dims although its off-diagonal weights are 0 when it starts. fc6 pads by 3 instead of padding
the image by 100, which more than doubled the pixels of a photo. The finer maps are normalised over channels before
they are scored (Liu et al., "ParseNet", 2015), where pytorch-fcn trains in stages or scales them by 0.01 and 1e-4:
VGG-16's maps have scales of hundreds, and without it the loss of FCN-8s rose to 6.9 in its first steps at 50 dims.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.models.net import BatchDropout, SegmentationNet
from zsseg.models.pooling import PooledReLU
from zsseg.models.wide import WideConv2d
from zsseg.models.winograd import WinogradConv2d

# Output channels of VGG-16's convolutions, "M" = max pooling (Simonyan and Zisserman, ICLR 2015, configuration D).
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
POOL3, POOL4 = 17, 24  # index in `trunk` just after the third and the fourth pooling


class ChannelDropout(nn.Dropout2d, BatchDropout):
    """Dropout of whole channels, also of a part of a batch."""

    def mask(self, maps: Tensor, channels: int) -> Tensor | None:
        """Draw what outputs (N, channels, h, w) for maps (N, ...) are multiplied with, (N, channels, 1, 1).

        Returns:
            0 or 1 / (1 - p), None unless training.
        """
        if not self.training:
            return None
        mask = super().forward(maps.new_ones(len(maps) if self.part is None else self.part.whole, channels, 1, 1))
        return mask if self.part is None else mask[self.part.rows]

    def forward(self, maps: Tensor) -> Tensor:
        """Drop channels of (N, K, h, w) while training."""
        mask = self.mask(maps, maps.shape[1])
        return maps if mask is None else maps * mask


class FCN(SegmentationNet):
    """FCN on VGG-16; the names inside `trunk` are those of torchvision's `vgg16().features`.

    Args:
        stride: 32, 16 or 8: of the finest map that is scored.
        dim: Output channels.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, stride: Literal[32, 16, 8], dim: int) -> None:
        super().__init__()
        self.stride = stride
        self.feature_strides = {32: (32,), 16: (16, 32), 8: (8, 16, 32)}[stride]
        self.fresh = ("score", "fc6", "fc7")
        self.trunk = _trunk()
        self.fc6 = WideConv2d(512, 4096, 7, padding=3)
        self.fc7 = WideConv2d(4096, 4096, 1)
        self.dropout = ChannelDropout(0.5)
        self.score = nn.Conv2d(4096, dim, 1)
        self.score_pool4 = nn.Conv2d(512, dim, 1) if stride <= 16 else None
        self.score_pool3 = nn.Conv2d(256, dim, 1) if stride <= 8 else None
        for layer in (self.score, self.score_pool4, self.score_pool3):
            if layer is not None:  # start from an output of 0, as FCN does
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.get_parameter("bias"))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return pool3 (FCN-8s), pool4 (FCN-16s and 8s) and pool5."""
        pool3 = self.trunk[:POOL3](images)
        pool4 = self.trunk[POOL3:POOL4](pool3)
        pool5 = self.trunk[POOL4:](pool4)
        return {32: [pool5], 16: [pool4, pool5], 8: [pool3, pool4, pool5]}[self.stride]

    def head(self, features: list[Tensor]) -> Tensor:
        """Score pool5 through fc6 and fc7, then add the scores of the finer maps on the way up."""
        *finer, pool5 = features
        hidden = F.relu(self.fc6(pool5, self.dropout.mask(pool5, self.fc6.out_channels)))
        hidden = F.relu(self.fc7(hidden, self.dropout.mask(hidden, self.fc7.out_channels)))
        outputs: Tensor = self.score(hidden)
        skips = [layer for layer in (self.score_pool3, self.score_pool4) if layer is not None]
        for layer, pool in zip(reversed(skips), reversed(finer), strict=True):
            outputs = F.interpolate(outputs, scale_factor=2, mode="bilinear", align_corners=False)
            outputs = outputs + layer(_normalised(pool, layer.in_channels))
        return outputs

    def backbone_modules(self) -> list[nn.Module]:
        """Return VGG-16's convolutions."""
        return [self.trunk]


def _normalised(maps: Tensor, channels: int) -> Tensor:
    """Bring the channels of every cell to mean 0 and variance 1, (N, K, h, w) -> the same; ONNX wants K as a number."""
    return F.layer_norm(maps.permute(0, 2, 3, 1), (channels,)).permute(0, 3, 1, 2)


def _trunk() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for item in VGG16:
        if item == "M":
            layers[-1:] = [nn.Identity(), PooledReLU()]  # in the places of ReLU and pooling, so that names stay
        else:
            layers += [WinogradConv2d(channels, int(item)), nn.ReLU(inplace=True)]
            channels = int(item)
    return nn.Sequential(*layers)
