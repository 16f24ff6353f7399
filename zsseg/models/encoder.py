"""A timm backbone with a light head at stride 8: `lite0`, the default model.

The head joins the backbone's maps at stride 16 with its image-level mean (global context, as in
Howard et al., "Searching for MobileNetV3", ICCV 2019, LR-ASPP, and Liu et al., "ParseNet", 2015), widens
their view with a depthwise convolution, and sharpens borders with the map at stride 8. Two measured choices: the
backbone's maps are normalised over channels (their scale, about 8, otherwise starts a joint embedding at a loss of
80 and kills its ReLUs), and the last layer starts from 0, so that every loss starts at its constant guess.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsseg.config import Precision
from zsseg.models.anchors import Anchors
from zsseg.models.backbone import full_name
from zsseg.models.folding import fold_batch_norms
from zsseg.models.gate import Gate
from zsseg.models.net import SegmentationNet

WIDTH = 256
SKIP_WIDTH = 128
Module = TypeVar("Module", bound=nn.Module)
CLASSIFIER_WIDTH, IMAGENET_CLASSES = 1280, 1000  # of every EfficientNet-Lite0


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every cell, (N, K, h, w) -> the same, whatever the size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def projected(conv: nn.Conv2d, norm: ChannelNorm, maps: Tensor) -> Tensor:
    """Return conv(norm(maps)) of a 1 × 1 convolution, (N, K, h, w) -> (N, L, h, w).

    Where conv and norm learn but the maps do not, the norm's factors and shifts go into kernels and bias: a fifth of a
    frozen step went into the gradient of what the convolution reads, which only these few numbers needed.
    """
    if maps.requires_grad or not torch.is_grad_enabled():
        return conv(norm(maps))  # type: ignore[no-any-return]
    kind = maps.device.type
    if torch.is_autocast_enabled(kind):  # nothing is lost: the backbone has computed them so
        maps = maps.to(torch.get_autocast_dtype(kind))
    cells = F.layer_norm(maps.permute(0, 2, 3, 1), norm.normalized_shape, eps=norm.eps)
    bias = conv.get_parameter("bias") + (conv.weight.flatten(1) * norm.bias).sum(dim=1)
    return F.conv2d(cells.permute(0, 3, 1, 2), conv.weight * norm.weight[:, None, None], bias)


class EncoderNet(SegmentationNet):
    """Any timm backbone with feature maps at stride 8 and 16.

    Args:
        backbone: timm's name of it.
        dim: Output channels.
        gate: Whether it has a gate (`models.gate`).
        anchors: How many classes its anchors speak of (`models.anchors`); 0: it has none.
    """

    stride = 8
    feature_strides = (8, 16, None)
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    gate_stride = 16
    fresh = ("norm", "project", "context", "widen", "mix", "skip", "refine", "out", "gate")

    def __init__(self, backbone: str, dim: int, *, gate: bool = False, anchors: int = 0) -> None:
        import timm

        super().__init__()
        self.backbone_name = full_name(backbone)
        self.backbone = timm.create_model(backbone, features_only=True, output_stride=16)
        *_, fine, middle, deep = self.backbone.feature_info.channels()
        self.norm_fine = ChannelNorm(fine)
        self.norm_coarse = ChannelNorm(middle + deep)
        self.norm_context = ChannelNorm(deep)
        self.project = nn.Conv2d(middle + deep, WIDTH, 1)
        self.context = nn.Conv2d(deep, WIDTH, 1)
        self.widen = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        self.refine = nn.Conv2d(WIDTH, SKIP_WIDTH, 1)
        self.skip = nn.Conv2d(fine, SKIP_WIDTH, 1)
        self.out = nn.Conv2d(SKIP_WIDTH, dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.get_parameter("bias"))
        self.gate = Gate(middle + deep, dim) if gate else None
        self.anchors = Anchors(deep, CLASSIFIER_WIDTH, IMAGENET_CLASSES, anchors) if anchors else None

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps at stride 8, at stride 16, and the image-level mean, (N, K, 1, 1)."""
        *_, fine, middle, deep = self.backbone(images)
        return [fine, torch.cat([middle, deep], dim=1), deep.mean(dim=(2, 3), keepdim=True)]

    def head(self, features: list[Tensor]) -> Tensor:
        """Map the features to outputs at stride 8."""
        fine, coarse, mean = features
        hidden = projected(self.project, self.norm_coarse, coarse)
        hidden = F.relu(hidden + projected(self.context, self.norm_context, mean))
        hidden = F.relu(hidden + self.mix(self.widen(hidden)))
        upsampled = F.interpolate(self.refine(hidden), scale_factor=2, mode="bilinear", align_corners=False)
        outputs: Tensor = self.out(F.relu(upsampled + projected(self.skip, self.norm_fine, fine)))
        return outputs

    def gate_cells(self, features: list[Tensor]) -> Tensor | None:
        """Return the gate's embeddings at stride 16, or None."""
        return None if self.gate is None else self.gate(features[1])

    def gate_branches(self, features: list[Tensor]) -> tuple[Tensor, ...] | None:
        """Return the embeddings of the gate's branches at stride 16, or None."""
        return None if self.gate is None else self.gate.branches(features[1])

    def prior(self, features: list[Tensor]) -> Tensor | None:
        """Return the anchors' prior at stride 16, or None."""
        if self.anchors is None:
            return None
        prior: Tensor = self.anchors(features[1][:, -self.context.in_channels :])
        return prior

    def folded(self, precision: Precision, device: torch.device) -> EncoderNet:
        """Return a twin with an EfficientNet's batch normalisations in its convolutions, otherwise itself."""
        from timm.models.efficientnet import EfficientNetFeatures

        rounds_bias = precision == "bfloat16" and device.type != "cpu"
        if rounds_bias or not isinstance(self.backbone, EfficientNetFeatures):
            return self
        net = _twin(self).eval()
        fold_batch_norms(net.backbone, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        return net

    def backbone_modules(self) -> list[nn.Module]:
        """Return the timm backbone."""
        return [self.backbone]


def _twin(module: Module) -> Module:
    """Return a module with the same parameters, whose layers can be replaced without those of the first."""
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else _twin(child) for name, child in module._modules.items()}
    return twin
