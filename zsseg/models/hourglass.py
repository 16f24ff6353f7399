"""A stacked hourglass, supervised at each stack: `hourglass`.

Newell, Yang, Deng, "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016. An hourglass pools its input
three times, with a residual bottleneck on every scale, and adds the scales up again on the way back. Each stack ends in
a prediction, which is supervised by itself and fed back into the next stack, so that a later one corrects an earlier
one. Inference takes the last.

The input of the first stack is either a timm backbone's maps at stride 8 and 16, which brings pre-trained features and
works with --frozen, or, with `--backbone none`, the paper's own stem of plain convolutions, from random: no ImageNet
weights of an hourglass exist. Both work at stride 8, where the paper has 4 for joints one pixel wide. Cells are
normalised over their channels instead of over the batch, and predictions start from 0 (see `encoder`).
Odd sizes: pooling rounds up, and the way back doubles and cuts, so that cells stay where they were.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.models.aspp import convolved, zero_convolution
from zsseg.models.backbone import COARSE, FINE, Pyramid, full_name, pretrained_cfg, resized
from zsseg.models.encoder import ChannelNorm
from zsseg.models.net import SegmentationNet

WIDTH = 128  # half of the paper's, a quarter of the cost
DEPTH = 3  # halvings: 320 pixels -> 40 cells -> 5, about the paper's 64 -> 4
NO_BACKBONE = "none"


class HourglassNet(SegmentationNet):
    """Hourglass stacks on a timm backbone or on a stem of their own; outputs at stride 8, one a stack.

    Args:
        backbone: timm's name of it, or "none" for the plain hourglass.
        dim: Output channels.
        stacks: Number of hourglasses, at least 1.

    Raises:
        SettingError: The backbone makes no maps at stride 8 and 16.
    """

    stride = FINE

    def __init__(self, backbone: str, dim: int, *, stacks: int) -> None:
        super().__init__()
        self.fresh = ("norm", "skip", "project", "stem", "stacks")
        self.backbone: Pyramid | None = None
        if backbone == NO_BACKBONE:
            self.feature_strides: tuple[int | None, ...] = (1,)
            self.mean, self.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
            self.stem = _plain_stem()
        else:
            cfg = pretrained_cfg(backbone)
            self.feature_strides = (FINE, COARSE)
            self.mean, self.std = tuple(cfg.mean), tuple(cfg.std)
            self.backbone_name = full_name(backbone)
            self.backbone = Pyramid(backbone)
            fine, coarse = self.backbone.channels
            self.norm_fine, self.skip = ChannelNorm(fine), nn.Conv2d(fine, WIDTH, 1)
            self.norm_coarse, self.project = ChannelNorm(coarse), nn.Conv2d(coarse, WIDTH, 1)
        self.stacks = nn.ModuleList(Stack(WIDTH, dim, last=index == stacks - 1) for index in range(stacks))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps at stride 8 and 16; the plain hourglass has none, and returns the images."""
        return [images] if self.backbone is None else list(self.backbone(images))

    def outputs(self, features: list[Tensor]) -> list[Tensor]:
        """Return the prediction of each stack, first to last, at stride 8."""
        hidden = self._first_input(features)
        predictions = []
        for stack in self.stacks:
            hidden, prediction = stack(hidden)
            predictions.append(prediction)
        return predictions

    def head(self, features: list[Tensor]) -> Tensor:
        """Return the prediction of the last stack."""
        return self.outputs(features)[-1]

    def backbone_modules(self) -> list[nn.Module]:
        """Return the timm backbone; the plain hourglass has none."""
        return [] if self.backbone is None else [self.backbone]

    def _first_input(self, features: list[Tensor]) -> Tensor:
        if self.backbone is None:
            stem: Tensor = self.stem(features[0])
            return stem
        fine, coarse = features
        deep = resized(self.project(self.norm_coarse(coarse)), (fine.shape[2], fine.shape[3]))
        return F.relu(deep + self.skip(self.norm_fine(fine)))


class Stack(nn.Module):
    """One hourglass with its prediction, and what it hands on to the next.

    Args:
        width: Channels of its input.
        dim: Channels of its prediction.
        last: Whether no stack follows.
    """

    def __init__(self, width: int, dim: int, *, last: bool) -> None:
        super().__init__()
        self.hourglass = Hourglass(width, DEPTH)
        self.refine = nn.Sequential(Residual(width), convolved(width, width, 1))
        self.out = zero_convolution(width, dim)
        self.keep = None if last else nn.Conv2d(width, width, 1)
        self.feed_back = None if last else nn.Conv2d(dim, width, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, width, h, w) to the next stack's input, of the same shape, and the prediction, (N, dim, h, w)."""
        hidden = self.refine(self.hourglass(maps))
        prediction = self.out(hidden)
        if self.keep is None or self.feed_back is None:
            return hidden, prediction
        return maps + self.keep(hidden) + self.feed_back(prediction), prediction


class Hourglass(nn.Module):
    """Down by halves and up again, with a residual bottleneck on each scale, (N, width, h, w) -> the same.

    Args:
        width: Channels.
        depth: Halvings.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.beside = Residual(width)
        self.down = Residual(width)
        self.inner = Hourglass(width, depth - 1) if depth > 1 else Residual(width)
        self.up = Residual(width)

    def forward(self, maps: Tensor) -> Tensor:
        """Add the detail of this scale to what the coarser ones say."""
        low = self.up(self.inner(self.down(F.max_pool2d(maps, 2, ceil_mode=True))))
        height, width = maps.shape[-2:]
        beside: Tensor = self.beside(maps)
        return beside + F.interpolate(low, scale_factor=2, mode="nearest")[..., :height, :width]


class Residual(nn.Module):
    """The residual bottleneck 1 × 1, 3 × 3, 1 × 1 with half the channels inside (He et al., ECCV 2016, pre-activation).

    Args:
        width: Channels of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            ChannelNorm(width), nn.ReLU(), nn.Conv2d(width, half, 1),
            ChannelNorm(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            ChannelNorm(half), nn.ReLU(), nn.Conv2d(half, width, 1),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        """Add the bottleneck to its input."""
        changed: Tensor = self.body(maps)
        return maps + changed


def _plain_stem() -> nn.Sequential:
    """Return the paper's stem, (N, 3, H, W) -> (N, WIDTH, H/8, W/8): a wide first convolution, residuals, pooling."""
    half = WIDTH // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 7, stride=2, padding=3), ChannelNorm(half), nn.ReLU(),
        nn.MaxPool2d(2), Residual(half), nn.Conv2d(half, WIDTH, 1),
        nn.MaxPool2d(2), Residual(WIDTH),
    )  # fmt: skip
