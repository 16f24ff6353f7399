"""FCN's fc6 and fc7: convolutions with many channels over few cells, as products of matrices on a processor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MANY_ROWS, ROWS, FEW_ROWS, COLUMNS = 1024, 256, 64, 512  # of the weights that are multiplied at a time

Products = list[tuple[Tensor, Tensor]]


class WideConv2d(nn.Conv2d):
    """Convolution with the stride 1 and zeros around.

    On a processor a product of matrices took half the time of oneDNN's convolution in a step of training. Channels
    last, the weights are the matrix as they lie. Dropout of whole channels halves it again: of a batch of one photo,
    half of the rows of fc6's matrix have no part in a step.

    Attributes:
        products: Where the gradient of the weights goes in place of `weight.grad`: pairs of float (P, L) and (P, K) for
            P cells, whose products left.T @ right add up to the gradient of the matrix, (L, K). None: to `weight.grad`.
    """

    products: Products | None = None

    def forward(self, maps: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve, (N, K, h, w) -> (N, L, h, w), and multiply with the mask, (N, L, 1, 1), if any.

        Channels whose mask is 0 in all of the batch are not computed on a processor.
        """
        if maps.is_cuda or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            outputs = super().forward(maps)
            return outputs if mask is None else outputs * mask
        height, width = self.kernel_size
        rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, width // 2, width // 2, height // 2, height // 2))
        windows = rows.unfold(1, height, 1).unfold(2, width, 1)  # (N, h, w, K, 7, 7)
        cells = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
        if torch.is_autocast_enabled("cpu"):
            cells = cells.to(torch.get_autocast_dtype("cpu"))
        kept = None if mask is None else rows_used(mask.flatten(1))
        product: Tensor = _Product.apply(cells.flatten(0, 2), self.weight, kept, self.products)
        outputs = product.view(*cells.shape[:3], -1) + self.get_parameter("bias").to(product.dtype)
        outputs = outputs.permute(0, 3, 1, 2)
        return outputs if mask is None else outputs * mask


def as_matrix(kernels: Tensor) -> Tensor:
    """Return kernels, (L, K, y, x), as the matrix that windows are multiplied with, (L, y · x · K)."""
    return kernels.permute(0, 2, 3, 1).flatten(1)


def rows_used(left: Tensor) -> Tensor:
    """Return the rows of left.T @ right that are not 0 whatever right is, (P, L) -> int64 (up to L)."""
    return left.any(dim=0).nonzero()[:, 0]


class _Product(torch.autograd.Function):
    """cells @ weight.T, (P, K), (L, K) -> (P, L), in the precision of the cells, a part of the weights at a time.

    So no copy of all weights or of their gradient exists in that precision: 200 MB each for fc6. Of the outputs, only
    the `kept` are computed, indices into L, and the others are 0; where no cell has a gradient, no weight is read.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, kernels: Tensor, kept: Tensor | None, products: Products | None) -> Tensor:
        ctx.save_for_backward(cells, kernels)
        ctx.products = products
        matrix = as_matrix(kernels)
        if kept is None:
            if matrix.dtype == cells.dtype == torch.float32:  # by MKL, which takes a third longer for all at once
                return torch.cat([part @ cells.T for part in torch.split(matrix, MANY_ROWS)]).T
            if matrix.dtype == cells.dtype:  # no copy is made, as of weights rounded for prediction
                return cells @ matrix.T
            return torch.cat([cells @ part.to(cells.dtype).T for part in torch.split(matrix, ROWS)], dim=1)
        outputs = cells.new_zeros(len(cells), len(matrix))
        at_once = FEW_ROWS if cells.dtype != matrix.dtype else 2 * FEW_ROWS  # no second copy, and MKL is quicker so
        for few in torch.split(kept, at_once):
            outputs[:, few] = cells @ matrix.index_select(0, few).to(cells.dtype).T
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, kernels = ctx.saved_tensors
        of_cells = of_kernels = None
        if ctx.needs_input_grad[0]:
            used = rows_used(gradient)
            few = gradient[:, used]
            parts = torch.split(as_matrix(kernels), COLUMNS, dim=1)
            of_cells = torch.cat([few @ part.index_select(0, used).to(few.dtype) for part in parts], dim=1)
        if ctx.needs_input_grad[1] and ctx.products is not None:
            ctx.products.append((gradient, cells))
        elif ctx.needs_input_grad[1]:
            of_matrix = kernels.new_empty(gradient.shape[1], cells.shape[1])
            for few, to_fill in zip(torch.split(gradient, ROWS, dim=1), torch.split(of_matrix, ROWS), strict=True):
                to_fill.copy_(few.T @ cells)
            count, channels, height, width = kernels.shape
            of_kernels = of_matrix.view(count, height, width, channels).permute(0, 3, 1, 2)
        return of_cells, of_kernels, None, None
