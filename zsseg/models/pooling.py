"""Max pooling with a ReLU, that does not keep its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WINDOW = [2, 2]


class PooledReLU(nn.Module):
    """Largest of every 2 × 2 cells, or 0 where that is larger; an odd last row or column is left out.

    Torch's max pooling keeps its input, though its backward pass only asks for the size; of FCN's these are 48 MB.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Pool, (N, K, h, w) -> (N, K, h // 2, w // 2)."""
        if maps.device.type != "cpu" or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return F.relu(F.max_pool2d(maps, WINDOW))
        pooled: Tensor = _PooledReLU.apply(maps)
        return pooled


class _PooledReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(maps, WINDOW)
        pooled, places = found[0].clamp_(min=0), found[1]
        ctx.save_for_backward(pooled, places)
        ctx.size = maps.shape
        last = pooled.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        pooled, places = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, pooled, 0)
        like_maps = torch.empty(ctx.size, dtype=gradient.dtype, memory_format=ctx.layout)
        of_maps: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, like_maps, WINDOW, WINDOW, [0, 0], [1, 1], False, places
        )
        return of_maps
