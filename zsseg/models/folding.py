"""Weights as prediction wants them: batch normalisation folded in, and rounded to bfloat16 once instead of per photo.

In evaluation batch normalisation is affine, so a convolution before it can do both (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2):

    (w ∗ x − mean) · g / √(var + eps) + b = w' ∗ x + b',  w' = w · g / √(var + eps),  b' = b − mean · g / √(var + eps).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zsseg.models.wide import WideConv2d

M = TypeVar("M", bound=nn.Module)

# Of exactly these types: others do more with their weights than multiply, such as standardise them.
CAST = (nn.Conv2d, nn.Linear, WideConv2d)


def without_batch_norms(module: M) -> M:
    """Return a copy in which timm's batch normalisations are part of the convolutions before them; activations stay.

    What is not changed is shared with the given module, whose own weights stay as they are.

    Args:
        module: In evaluation mode, and such that every batch normalisation that follows a convolution among the
            children of one module reads that convolution's output, and nothing else does, as in EfficientNets.
    """
    from timm.layers import BatchNormAct2d

    folded = _shallow(module)
    before = ""
    for name, child in module.named_children():
        conv = folded._modules.get(before)
        if isinstance(conv, nn.Conv2d) and isinstance(child, BatchNormAct2d):
            statistics = child.running_mean, child.running_var, child.eps, child.weight, child.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            folded._modules[name] = child.act
        else:
            folded._modules[name] = without_batch_norms(child)
        before = name
    return folded


def _shallow(module: M) -> M:
    """Return a module with the same tensors and children, which may be given others."""
    copied = copy.copy(module)
    copied._modules, copied._parameters = dict(module._modules), dict(module._parameters)
    return copied


def to_bfloat16(net: nn.Module) -> None:
    """Round to bfloat16, in place, what autocast would round at every call; the outputs are equal to the bit."""
    for module in net.modules():
        if type(module) in CAST:
            module.to(torch.bfloat16)
