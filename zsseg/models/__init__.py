"""Visual models: images -> pixel embeddings (or class logits) on a coarse grid.

Every model is a `SegmentationNet`. `build` makes one with random parameters, `load_pretrained` fills its
backbone. Sizes: the input is (N, 3, H, W) with any H and W; it is padded at the right and at the bottom to a
multiple of 32, so that cell (i, j) of the output, (N, D, h, w), covers the `stride` × `stride` pixels from
(i·stride, j·stride) on.
"""

from __future__ import annotations

from zsseg.config import LossName, ModelName
from zsseg.models.encoder import EncoderNet
from zsseg.models.fcn import FCN
from zsseg.models.net import SegmentationNet
from zsseg.models.weights import Pretrained, load_pretrained

__all__ = ["FCN", "EncoderNet", "Pretrained", "SegmentationNet", "build", "default_lr", "load_pretrained", "out_dim"]


def build(model: ModelName, dim: int) -> SegmentationNet:
    """Make a model with random parameters (from torch's global generator).

    Args:
        model: Its name.
        dim: Output channels: embedding dims D, or the number of seen classes for softmax.
    """
    match model:
        case "lite0":
            return EncoderNet("tf_efficientnet_lite0", dim)
        case "fcn32s":
            return FCN(32, dim)
        case "fcn16s":
            return FCN(16, dim)
        case "fcn8s":
            return FCN(8, dim)


def out_dim(loss: LossName, *, dim: int, seen: int) -> int:
    """Return the output channels that a loss needs: D for a joint embedding, the seen classes for softmax."""
    return seen if loss == "softmax" else dim


def default_lr(model: ModelName) -> float:
    """Return the default learning rate of freshly initialised layers; docs/training.md has the curves."""
    return 3e-3 if model == "lite0" else 1e-4
