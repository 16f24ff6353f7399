"""Convolution, batch normalisation and activation in one pass, for prediction.

In evaluation batch normalisation is affine, so a convolution before it can do both (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2):

    (w ∗ x − mean) · g / √(var + eps) + b = w' ∗ x + b',  w' = w · g / √(var + eps),  b' = b − mean · g / √(var + eps).

On a processor, oneDNN adds b' in float32, clips, and only then rounds and writes, where three layers each read and
write all of their outputs.

Rounded to bfloat16, w' is off by δ, and outputs by δ ∗ x. Most of that is the same at every cell, δ ∗ E[x], for x was
clipped and is not negative. It is taken off b' (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, section 4.2): x is what the batch normalisation before makes, normal with its b and g as
mean and deviation, clipped.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

if TYPE_CHECKING:
    from timm.layers import BatchNormAct2d

# Activations that oneDNN does beside a convolution: what it calls them, and their bounds.
CLIPS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class FoldedConv2d(nn.Module):
    """A convolution with the batch normalisation and the activation after it.

    Args:
        conv: torch's or timm's, which may pad by itself.
        norm: timm's.
        dtype: Of weights, inputs and outputs.
        mean: E[x] of the inputs, float32 (K); None: unknown.
    """

    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: BatchNormAct2d, dtype: torch.dtype, mean: Tensor | None) -> None:
        from timm.layers.conv2d_same import Conv2dSame
        from timm.layers.padding import pad_same

        super().__init__()
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        weight, bias = (each.detach() for each in fuse_conv_bn_weights(conv.weight, conv.bias, *statistics))
        rounded = weight.to(dtype)
        if mean is not None:
            off = (rounded - weight).sum(dim=(2, 3))  # (L, K / groups)
            of_inputs = mean.view(conv.groups, 1, -1).expand(-1, len(off) // conv.groups, -1).reshape(off.shape)
            bias = bias - (off * of_inputs).sum(dim=1)
        self.register_buffer("bias", bias)
        self.settings = conv.stride, conv.padding, conv.dilation, conv.groups
        self.pad_same = pad_same if isinstance(conv, Conv2dSame) else None
        self.widened = isinstance(conv, Conv2dSame) and _is_halving(conv)
        if self.widened:
            rounded = F.pad(rounded, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.act = norm.act
        # torch's compiler's operator, which another version may lack
        named = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        at_hand = torch.backends.mkldnn.is_available() and named  # type: ignore[no-untyped-call]
        self.clip = CLIPS.get(type(norm.act)) if at_hand else None

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, normalise and clip, (N, K, H, W) -> (N, L, h, w)."""
        weight: Tensor = self.weight
        bias = self.bias
        stride, padding, dilation, groups = self.settings
        if maps.dtype != weight.dtype:
            maps = maps.to(weight.dtype)
        if self.widened and maps.shape[2] % 2 == maps.shape[3] % 2 == 0:
            padding = (weight.shape[2] // 2 - 1,) * 2
        elif self.pad_same is not None:
            weight = weight[:, :, 1:, 1:] if self.widened else weight
            maps = self.pad_same(maps, weight.shape[2:], stride, dilation)
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # into ONNX, which lacks this
        if self.clip is not None and maps.is_cpu and not tracing:
            # the overload by name, for finding it takes Python's lock as long as the rest of this function
            one_pass = torch.ops.mkldnn._convolution_pointwise.default
            outputs = one_pass(maps, weight, bias, padding, stride, dilation, groups, *self.clip, "")
        else:
            outputs = self.act(F.conv2d(maps, weight, bias.to(maps.dtype), stride, padding, dilation, groups))
        assert isinstance(outputs, Tensor)
        return outputs


def _is_halving(conv: nn.Conv2d) -> bool:
    """Return whether a convolution that pads as TensorFlow does halves even sizes by a kernel of odd size.

    It pads one cell less before than behind, and torch's convolution the same on both sides. With a row and a column of
    zeros before the kernel, that is the same, and no copy of the maps is padded: a tenth of lite0's time.
    """
    size = conv.kernel_size
    return conv.stride == (2, 2) and conv.dilation == (1, 1) and size[0] == size[1] and size[0] % 2 == 1


def fold_batch_norms(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Fold timm's batch normalisations and their activations into the convolutions before them, in place.

    Args:
        backbone: In evaluation mode, and such that, of layers in the order of their names, a batch normalisation next
            to a convolution reads that one's outputs, a convolution next to a batch normalisation that ends in ReLU6
            reads that one's, and nothing else does, as in EfficientNets.
        dtype: Of the weights, and of what is computed.
    """
    from timm.layers import BatchNormAct2d

    layers = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, BatchNormAct2d) or not list(module.children())
    ]
    mean = None
    for (name, layer), (after, norm) in itertools.pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
            _put(backbone, name, FoldedConv2d(layer, norm, dtype, mean))
            _put(backbone, after, nn.Identity())
            mean = _mean_of_clipped(norm)
        elif not isinstance(layer, (BatchNormAct2d, *CLIPS)):  # that one is folded by now, and has its own activation
            mean = None


def _put(backbone: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, layer)


def _mean_of_clipped(norm: BatchNormAct2d) -> Tensor | None:
    """Return the mean of what ReLU6 makes of a batch normalisation's outputs, float32 (L); None for another one.

    Of m + s z, z a standard normal number with the density φ and the distribution Φ, between 0 and 6 (at z = a and b):
    m (Φ(b) − Φ(a)) + s (φ(a) − φ(b)) + 6 (1 − Φ(b)).
    """
    if not isinstance(norm.act, nn.ReLU6):
        return None
    mean, deviation = norm.bias.detach(), norm.weight.detach().abs().clamp(min=1e-6)
    ends = torch.stack([-mean, 6 - mean]) / deviation
    before = torch.special.ndtr(ends)
    density = (-ends.square() / 2).exp() / math.sqrt(2 * math.pi)
    inside = mean * (before[1] - before[0]) + deviation * (density[0] - density[1])
    clipped: Tensor = inside + 6 * (1 - before[1])
    return clipped
