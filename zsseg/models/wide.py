"""FCN's fc6 and fc7: convolutions with many channels over few cells, as products of matrices on a processor."""

from __future__ import annotations

import itertools
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
            plain = super().forward(maps)
            return plain if mask is None else plain * mask
        height, width = self.kernel_size
        rows = F.pad(maps.permute(0, 2, 3, 1), (0, 0, width // 2, width // 2, height // 2, height // 2))
        if torch.is_autocast_enabled("cpu"):
            rows = rows.to(torch.get_autocast_dtype("cpu"))
        kept = None if mask is None else rows_used(mask.flatten(1))
        product: Tensor = _Convolution.apply(rows, self.weight, kept, self.products)
        outputs = product + self.get_parameter("bias").to(product.dtype)
        outputs = outputs.permute(0, 3, 1, 2)
        return outputs if mask is None else outputs * mask


def as_matrix(kernels: Tensor) -> Tensor:
    """Return kernels, (L, K, y, x), as the matrix that windows are multiplied with, (L, y · x · K)."""
    return kernels.permute(0, 2, 3, 1).flatten(1)


def rows_used(left: Tensor) -> Tensor:
    """Return the rows of left.T @ right that are not 0 whatever right is, (P, L) -> int64 (up to L)."""
    return left.any(dim=0).nonzero()[:, 0]


class _Convolution(torch.autograd.Function):
    """Rows with a border, (N, h + y - 1, w + x - 1, K), kernels (L, K, y, x) -> (N, h, w, L), in the rows' precision.

    That is windows @ weight.T, (P, y · x · K), (L, y · x · K), a part of the weights at a time, so that no copy of all
    weights or of their gradient exists in that precision: 200 MB each for fc6. Of the outputs, only the `kept` are
    computed, indices into L, and the others are 0; where no cell has a gradient, no weight is read.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, kernels: Tensor, kept: Tensor | None, products: Products | None) -> Tensor:
        height, width = kernels.shape[2:]
        windows = rows.unfold(1, height, 1).unfold(2, width, 1)  # (N, h, w, K, y, x)
        cells = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, height * width * rows.shape[3])
        ctx.save_for_backward(cells, kernels)
        ctx.products, ctx.size = products, rows.shape
        return _product(cells, as_matrix(kernels), kept).view(*windows.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, kernels = ctx.saved_tensors
        of_cells = gradient.flatten(0, 2)
        of_rows = of_kernels = None
        if ctx.needs_input_grad[0]:
            of_rows = _gradient_of_rows(gradient, kernels, ctx.size)
        if ctx.needs_input_grad[1] and ctx.products is not None:
            ctx.products.append((of_cells, cells))
        elif ctx.needs_input_grad[1]:
            of_matrix = kernels.new_empty(gradient.shape[3], cells.shape[1])
            for few, to_fill in zip(torch.split(of_cells, ROWS, dim=1), torch.split(of_matrix, ROWS), strict=True):
                to_fill.copy_(few.T @ cells)
            count, channels, height, width = kernels.shape
            of_kernels = of_matrix.view(count, height, width, channels).permute(0, 3, 1, 2)
        return of_rows, of_kernels, None, None


def _product(cells: Tensor, matrix: Tensor, kept: Tensor | None) -> Tensor:
    """Return cells @ matrix.T, (P, K), (L, K) -> (P, L), of which only the columns kept are computed."""
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


def _gradient_of_rows(gradient: Tensor, kernels: Tensor, size: torch.Size) -> Tensor:
    """Return the gradient of rows of that size, (N, h + y - 1, w + x - 1, K), of the outputs', (N, h, w, L)."""
    height, width = gradient.shape[1:3]
    used = rows_used(gradient.flatten(0, 2))
    few = gradient.flatten(0, 2)[:, used]
    dtype = torch.promote_types(gradient.dtype, torch.float32)  # 49 products add up in a cell
    of_rows = gradient.new_zeros(size, dtype=dtype)
    for y, x in itertools.product(*map(range, kernels.shape[2:])):
        to_add = torch.split(of_rows[:, y : y + height, x : x + width], COLUMNS, dim=3)
        for part, columns in zip(to_add, torch.split(kernels[:, :, y, x], COLUMNS, dim=1), strict=True):
            part += (few @ columns.index_select(0, used).to(few.dtype)).view(part.shape)
    return of_rows.to(gradient.dtype)
