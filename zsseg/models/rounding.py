"""Weights rounded to bfloat16 once, instead of anew for every photo."""

from __future__ import annotations

import torch
from torch import nn

from zsseg.models.wide import WideConv2d
from zsseg.models.winograd import WinogradConv2d

# Of exactly these types: others do more with their weights than multiply, such as standardise them.
ROUNDED = (nn.Conv2d, nn.Linear, WideConv2d, WinogradConv2d)


def to_bfloat16(net: nn.Module) -> None:
    """Round to bfloat16, in place, what autocast would round at every call; the outputs are equal to the bit.

    Args:
        net: For prediction only: training needs its weights in float32.
    """
    for module in net.modules():
        if type(module) in ROUNDED:
            module.to(torch.bfloat16)
