"""Bilinear upsampling, and what can be said of upsampled maps without making them.

A map on the grid, g (K, h, w), upsampled is f_p = Σ_k b_pk g_k over the four cells k around pixel p, the weights b
of `F.interpolate(mode="bilinear", align_corners=False)`. They are a product of one in y and one in x, so every sum over
pixels is two small matrix products. Dot products with fixed vectors commute with upsampling; lengths do not, but

    ‖f_p‖² = Σ_kl b_pk b_pl g_k·g_l

needs the dot products of neighbouring cells only. A loss of D-dim embeddings at every label then costs what the grid
costs: no tensor of D × H × W exists.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Size = tuple[int, int] | torch.Size


def upsample(maps: Tensor, size: Size) -> Tensor:
    """Upsample maps to a size, (N, K, h, w) -> (N, K, H, W)."""
    if maps.shape[-2:] == tuple(size):
        return maps
    rows, columns = _weights(maps, size)
    return rows @ (maps @ columns.T)


def gather(maps: Tensor, size: Size) -> Tensor:
    """Sum pixels up into cells by their weights b, the adjoint of `upsample`: (N, K, H, W) -> (N, K, h, w)."""
    if maps.shape[-2:] == tuple(size):
        return maps
    rows, columns = _matrices(tuple(size), tuple(maps.shape[-2:]), maps.dtype, maps.device)
    return rows.T @ (maps @ columns)


def squares(maps: Tensor, size: Size) -> Tensor:
    """Return ‖f_p‖² of the upsampled maps, (N, K, h, w) -> (N, H, W), exact but for rounding."""
    own, right, below, across = _neighbour_products(maps)
    if maps.shape[-2:] == tuple(size):
        return own
    (own_y, next_y), (own_x, next_x) = (_pairs(matrix) for matrix in _weights(maps, size))
    return own_y @ (own @ own_x.T + right @ next_x.T) + next_y @ (below @ own_x.T + across @ next_x.T)


def squared_error(maps: Tensor, weights: Tensor, towards: Tensor) -> Tensor:
    """Return Σ_p a_p ‖f_p‖² − 2 Σ_k g_k·t_k, a scalar: squared distances of upsampled maps to targets, but for ‖t‖².

    Args:
        maps: (N, K, h, w).
        weights: a, (N, H, W), of the upsampled size; no gradient flows to them.
        towards: Weighted targets, gathered in the cells, (N, h, w, K); no gradient flows to them.
    """
    if maps.shape[-2:] == weights.shape[-2:]:
        pairs: tuple[Tensor, ...] = (weights,)
    else:
        (own_y, next_y), (own_x, next_x) = (_pairs(matrix) for matrix in _weights(maps, weights.shape[-2:]))
        here, beside = weights @ own_x, weights @ next_x
        pairs = own_y.T @ here, own_y.T @ beside, next_y.T @ here, next_y.T @ beside
    total: Tensor = _SquaredError.apply(maps, towards, *pairs)
    return total


class _SquaredError(torch.autograd.Function):
    """Σ_kl s_kl g_k·g_l − 2 Σ_k g_k·t_k with s symmetric, not 0 between neighbours only; its gradient is 2 (s g − t).

    One pass over the cells for each neighbour. By torch's own operators it was most of what the loss took: each
    shifted product has two gradients, padded with zeros to the whole grid and added up.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, towards: Tensor, own: Tensor, *beside: Tensor) -> Tensor:
        """Take the weights of each cell with itself, and of its pairs with the right one, the one below, and across."""
        cells = maps.permute(0, 2, 3, 1)  # the network's own memory layout: sums run over neighbouring numbers
        pull = cells * own.unsqueeze(3)
        if beside:
            right, below, across = (each.unsqueeze(3) / 2 for each in beside)  # half for each of the two
            across = across / 2  # for each of the two diagonals
            ends, rest = slice(None, -1), slice(1, None)
            every = slice(None)
            for rows, other_rows, columns, other_columns, share in (
                (every, every, ends, rest, right),
                (ends, rest, every, every, below),
                (ends, rest, ends, rest, across),
                (ends, rest, rest, ends, across),
            ):
                pull[:, rows, columns].addcmul_(cells[:, other_rows, other_columns], share)
                pull[:, other_rows, other_columns].addcmul_(cells[:, rows, columns], share)
        pull -= towards
        ctx.save_for_backward(pull)
        flat = cells.flatten()  # no copy where they lie with channels last
        total: Tensor = flat.dot(pull.flatten()) - flat.dot(towards.flatten())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the maps."""
        (pull,) = ctx.saved_tensors
        of_maps = (pull * (2 * gradient)).permute(0, 3, 1, 2)
        return (of_maps, *(None for _ in ctx.needs_input_grad[1:]))


def _neighbour_products(maps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g_k·g_l of each cell with itself, (N, h, w), its right one, the one below, and the mean of both across."""
    cells = maps.permute(0, 2, 3, 1)  # the network's own memory layout: sums run over neighbouring numbers
    upper, lower, left, right = cells[:, :-1], cells[:, 1:], cells[:, :, :-1], cells[:, :, 1:]
    falling = (upper[:, :, :-1] * lower[:, :, 1:]).sum(dim=3)
    rising = (upper[:, :, 1:] * lower[:, :, :-1]).sum(dim=3)
    return cells.square().sum(dim=3), (left * right).sum(dim=3), (upper * lower).sum(dim=3), (falling + rising) / 2


def _pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return b_pk² of each cell and 2 b_pk b_p,k+1 of each pair of neighbours: (P, k) -> (P, k), (P, k − 1).

    Between four cells the product of both, 4 b b' c c', is that of the two diagonals together.
    """
    return matrix.square(), 2 * matrix[:, :-1] * matrix[:, 1:]


def _weights(maps: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    return _matrices(tuple(maps.shape[-2:]), tuple(size), maps.dtype, maps.device)


@functools.lru_cache(maxsize=32)
def _matrices(
    cells: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the weights b of rows, (H, h), and of columns, (W, w)."""
    rows, columns = (_matrix(few, many, dtype) for few, many in zip(cells, size, strict=True))
    return rows.to(device), columns.to(device)


def _matrix(few: int, many: int, dtype: torch.dtype) -> Tensor:
    position = ((torch.arange(many, dtype=torch.float64) + 0.5) * few / many - 0.5).clamp(0, few - 1)
    first = position.floor().long()
    share = position - first
    matrix = torch.zeros(many, few, dtype=torch.float64)
    pixels = torch.arange(many)
    matrix[pixels, first] += 1 - share
    matrix[pixels, (first + 1).clamp(max=few - 1)] += share
    return matrix.to(dtype)
