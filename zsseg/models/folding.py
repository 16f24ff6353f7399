"""Batch normalisation as a part of the convolutions before it, for prediction in float32.

In evaluation batch normalisation is affine, so a convolution before it can do both (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2):

    (w ∗ x − mean) · g / √(var + eps) + b = w' ∗ x + b',  w' = w · g / √(var + eps),  b' = b − mean · g / √(var + eps).

In bfloat16 that costs accuracy: w' is rounded where g / √(var + eps) was not (docs/performance.md).
"""

from __future__ import annotations

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norms(backbone: nn.Module) -> None:
    """Fold timm's batch normalisations into the convolutions before them, in place; their activations stay.

    Args:
        backbone: In evaluation mode, and such that a batch normalisation that follows a convolution among the children
            of one module reads that convolution's output, and nothing else does, as in EfficientNets.
    """
    from timm.layers import BatchNormAct2d

    for module in list(backbone.modules()):
        for (_, conv), (name, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
                setattr(module, name, norm.act)
