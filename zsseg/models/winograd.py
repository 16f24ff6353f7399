"""3 × 3 convolutions of training with fewer products: 16 for every four outputs instead of 36.

F(2 × 2, 3 × 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. With d a tile of
4 × 4 inputs, tiles overlapping by two, g a kernel and Y the tile's 2 × 2 outputs,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A,

where the sum over input channels of the elementwise product ⊙ is, over all tiles, 16 products of matrices. The
transforms add and halve. A step does the same thrice: forward, for the gradient of the input, which is a convolution
with the kernel turned round, and for that of the kernel, Gᵀ [Σ over tiles (A dY Aᵀ) ⊙ (Bᵀ d B)] G.

Sums of four numbers are rounded where a direct convolution has the numbers themselves: in bfloat16 the outputs of a
layer are off by 0.6 % of their norm instead of 0.24 %. So it is for training alone, whose gradients are noisier by far.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zsseg.hardware import multiplies_tiles

TILES = 768  # at a time, so that what is made of them stays in the processor's cache
LEAST = 128 * 256  # input times output channels; with fewer, transforms cost more than products save
FEWEST = 196  # tiles of an image, as of 28 × 28 cells; products of smaller matrices are no quicker than a convolution


class WinogradConv2d(nn.Conv2d):
    """A convolution of 3 × 3 with the stride 1 and a border of zeros, quicker in training mode on a processor.

    Args:
        in_channels: Of the maps.
        out_channels: Of the outputs.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, (N, K, h, w) -> (N, L, h, w)."""
        if not self._pays(maps):
            return super().forward(maps)
        if torch.is_autocast_enabled("cpu"):
            maps = maps.to(torch.get_autocast_dtype("cpu"))
        outputs: Tensor = _Convolution.apply(maps.permute(0, 2, 3, 1), self.weight, self.bias)
        return outputs.permute(0, 3, 1, 2)

    def _pays(self, maps: Tensor) -> bool:
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad) or maps.device.type != "cpu":
            return False
        narrow = torch.is_autocast_enabled("cpu") or maps.dtype != torch.float32
        height, width = maps.shape[2:]
        if height % 2 or width % 2 or height * width < 4 * FEWEST:
            return False
        return self.weight[:, :, 0, 0].numel() >= LEAST and not (narrow and multiplies_tiles())


class _Convolution(torch.autograd.Function):
    """Maps (N, h, w, K), kernels (L, K, 3, 3), bias (L) -> (N, h, w, L), in the precision of the maps."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(maps, kernels)  # transformed again backward, for that takes less than 52 MB are worth
        return _convolved(maps, _of_kernels(kernels, maps.dtype).transpose(1, 2)).add_(bias.to(maps.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, kernels = ctx.saved_tensors
        gradient = gradient.to(maps.dtype).contiguous()
        of_maps = None
        if ctx.needs_input_grad[0]:
            of_maps = _convolved(gradient, _of_kernels(kernels.flip(2, 3), maps.dtype))
        summed: Tensor | None = None
        for tiles, outputs in zip(_strips(maps, border=1), _strips(gradient, border=0), strict=True):
            product = torch.bmm(_of_outputs(outputs).transpose(1, 2), _of_inputs(tiles))
            summed = product.float() if summed is None else summed.add_(product)
        assert summed is not None
        return of_maps, _to_kernels(summed), gradient.sum(dim=(0, 1, 2), dtype=torch.float32)


def _convolved(maps: Tensor, of_kernels: Tensor) -> Tensor:
    """Convolve (N, h, w, K) by transformed kernels, (16, K, L)."""
    count, height, width, _ = maps.shape
    outputs = maps.new_empty(count, height, width, of_kernels.shape[2])
    for tiles, to_fill in zip(_strips(maps, border=1), _strips(outputs, border=0), strict=True):
        _to_outputs(torch.bmm(_of_inputs(tiles), of_kernels), to_fill)
    return outputs


def _strips(maps: Tensor, *, border: int) -> list[Tensor]:
    """Cut (N, h, w, K) into strips of whole tiles, (rows + 2 · border, w + 2 · border, K) each."""
    height, width = maps.shape[1:3]
    rows = 2 * max(1, TILES // (width // 2))
    padded = F.pad(maps, (0, 0, border, border, border, border)) if border else maps
    return [
        image[start : min(start + rows, height) + 2 * border] for image in padded for start in range(0, height, rows)
    ]


def _of_inputs(strip: Tensor) -> Tensor:
    """Return Bᵀ d B of all tiles, (2p + 2, 2q + 2, K) -> (16, p · q, K)."""
    p, q = (length // 2 - 1 for length in strip.shape[:2])
    out = strip.new_empty(4, 4, p, q, strip.shape[2])
    rows = strip[0 : 2 * p : 2], strip[1 : 2 * p : 2], strip[2::2], strip[3::2]
    for place, row in enumerate((rows[0] - rows[2], rows[1] + rows[2], rows[2] - rows[1], rows[1] - rows[3])):
        first, second, third, fourth = row[:, 0 : 2 * q : 2], row[:, 1 : 2 * q : 2], row[:, 2::2], row[:, 3::2]
        torch.sub(first, third, out=out[place, 0])
        torch.add(second, third, out=out[place, 1])
        torch.sub(third, second, out=out[place, 2])
        torch.sub(second, fourth, out=out[place, 3])
    return out.view(16, p * q, -1)


def _to_outputs(products: Tensor, out: Tensor) -> None:
    """Write Aᵀ m A of all tiles, (16, p · q, L) -> (2p, 2q, L)."""
    p, q = (length // 2 for length in out.shape[:2])
    m = products.view(4, 4, p, q, -1)
    to_fill = out.view(p, 2, q, 2, -1)
    total, difference = m[1] + m[2], m[1] - m[2]
    for place, row in enumerate((m[0] + total, difference - m[3])):
        torch.add(row[0], row[1] + row[2], out=to_fill[:, place, :, 0])
        torch.sub(row[1] - row[2], row[3], out=to_fill[:, place, :, 1])


def _of_outputs(strip: Tensor) -> Tensor:
    """Return A y Aᵀ of all tiles, (2p, 2q, L) -> (16, p · q, L)."""
    p, q = (length // 2 for length in strip.shape[:2])
    out = strip.new_empty(4, 4, p, q, strip.shape[2])
    upper, lower = strip[0::2], strip[1::2]
    for place, row in enumerate((upper, upper + lower, upper - lower, -lower)):
        left, right = row[:, 0::2], row[:, 1::2]
        out[place, 0] = left
        torch.add(left, right, out=out[place, 1])
        torch.sub(left, right, out=out[place, 2])
        torch.neg(right, out=out[place, 3])
    return out.view(16, p * q, -1)


def _of_kernels(kernels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return G g Gᵀ, (L, K, 3, 3) -> (16, L, K) of some precision."""
    g = kernels.permute(2, 3, 0, 1)
    out = kernels.new_empty(4, 4, *g.shape[2:], dtype=dtype)
    outer, inner = (g[0] + g[2]) / 2, g[1] / 2
    for place, row in enumerate((g[0], outer + inner, outer - inner, g[2])):
        outer_of_row, inner_of_row = (row[0] + row[2]) / 2, row[1] / 2
        out[place, 0] = row[0]
        torch.add(outer_of_row, inner_of_row, out=out[place, 1])
        torch.sub(outer_of_row, inner_of_row, out=out[place, 2])
        out[place, 3] = row[2]
    return out.flatten(0, 1)


def _to_kernels(summed: Tensor) -> Tensor:
    """Return Gᵀ u G, (16, L, K) -> (L, K, 3, 3)."""
    u = summed.view(4, 4, *summed.shape[1:])
    outer, inner = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
    rows = u[0] + outer, inner, outer + u[3]  # (4, L, K) each
    kernels = summed.new_empty(summed.shape[1], 3, 3, summed.shape[2])  # channels last, as the kernels lie
    for place, row in enumerate(rows):
        outer, inner = (row[1] + row[2]) / 2, (row[1] - row[2]) / 2
        torch.add(row[0], outer, out=kernels[:, place, 0])
        kernels[:, place, 1] = inner
        torch.add(outer, row[3], out=kernels[:, place, 2])
    return kernels.permute(0, 3, 1, 2)
