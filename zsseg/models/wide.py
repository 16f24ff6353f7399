"""FCN's fc6 and fc7: convolutions with many channels over few cells, as products of matrices on a processor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS, MANY_ROWS = 256, 512  # of the weights that are multiplied at a time; many where the products are added up

Products = list[tuple[Tensor, Tensor]]


class WideConv2d(nn.Conv2d):
    """Convolution with the stride 1 and zeros around.

    On a processor a product of matrices took half the time of oneDNN's convolution in a step of training. Channels
    last, the weights are the matrix as they lie.

    Attributes:
        products: Where the gradient of the weights goes in place of `weight.grad`: pairs of float (P, L) and (P, K) for
            P cells, whose products left.T @ right add up to the gradient of the matrix, (L, K). None: to `weight.grad`.
    """

    products: Products | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, (N, K, h, w) -> (N, L, h, w)."""
        if maps.is_cuda or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return super().forward(maps)
        height, width = self.kernel_size
        rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, width // 2, width // 2, height // 2, height // 2))
        windows = rows.unfold(1, height, 1).unfold(2, width, 1)  # (N, h, w, K, 7, 7)
        cells = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
        if torch.is_autocast_enabled("cpu"):
            cells = cells.to(torch.get_autocast_dtype("cpu"))
        outputs: Tensor = _Product.apply(cells.flatten(0, 2), self.weight, self.products)
        outputs = outputs.view(*cells.shape[:3], -1) + self.get_parameter("bias").to(outputs.dtype)
        return outputs.permute(0, 3, 1, 2)


def as_matrix(kernels: Tensor) -> Tensor:
    """Return kernels, (L, K, y, x), as the matrix that windows are multiplied with, (L, y · x · K)."""
    return kernels.permute(0, 2, 3, 1).flatten(1)


class _Product(torch.autograd.Function):
    """cells @ weight.T, (P, K), (L, K) -> (P, L), in the precision of the cells, a few rows of the weights at a time.

    So no copy of all weights or of their gradient exists in that precision: 200 MB each for fc6.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, kernels: Tensor, products: Products | None) -> Tensor:
        ctx.save_for_backward(cells, kernels)
        ctx.products = products
        return torch.cat([cells @ part.to(cells.dtype).T for part in torch.split(as_matrix(kernels), ROWS)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, kernels = ctx.saved_tensors
        of_cells = of_kernels = None
        if ctx.needs_input_grad[0]:
            of_cells = torch.zeros_like(cells, dtype=torch.float32)
            parts = torch.split(as_matrix(kernels), MANY_ROWS)
            for few, part in zip(torch.split(gradient, MANY_ROWS, dim=1), parts, strict=True):
                of_cells += few @ part.to(cells.dtype)
            of_cells = of_cells.to(cells.dtype)
        if ctx.needs_input_grad[1] and ctx.products is not None:
            ctx.products.append((gradient, cells))
        elif ctx.needs_input_grad[1]:
            of_matrix = kernels.new_empty(gradient.shape[1], cells.shape[1])
            for few, to_fill in zip(torch.split(gradient, ROWS, dim=1), torch.split(of_matrix, ROWS), strict=True):
                to_fill.copy_(few.T @ cells)
            count, channels, height, width = kernels.shape
            of_kernels = of_matrix.view(count, height, width, channels).permute(0, 3, 1, 2)
        return of_cells, of_kernels, None
