"""Class scores on a coarse grid -> the best class of every pixel, without the scores of all classes at every pixel.

Four neighbouring cells span a block of stride × stride pixels, and the scores of a class at its pixels are weighted
means of its scores at those four corners, with the same weights for every class. So a class that another one beats at
all four corners wins no pixel of the block, and where one class is the best at all four, it wins them all. On photos
that holds for nine blocks of ten; only the others are looked at pixel by pixel, with the classes that may win there.
The result is that of upsampling all scores and taking the largest, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TILE = 2**18  # scores in one tile: C × rows × W; 1 MB stays in a core's own cache

MOSTLY = 0.25  # share of open blocks from which on looking at all pixels is quicker

Floats = NDArray[np.float32]
Ids = NDArray[np.uint8]
Found = tuple[Floats, Ids]  # the best score of some pixels or blocks, and the class that has it


@dataclass(frozen=True)
class ScoreGrid:
    """Class scores of one image on the model's coarse grid.

    Attributes:
        scores: float32 (C, h, w).
        stride: Pixels of the network's input between neighbouring cells.
        input_size: Height and width of what the network saw; padding lies beyond.
        size: Height and width of the image itself.
        squares: ‖f‖² of the embeddings, float32 (h, w); None for a softmax model.
    """

    scores: Tensor
    stride: int
    input_size: tuple[int, int]
    size: tuple[int, int]
    squares: Tensor | None = None


def best_tiles(grid: ScoreGrid, groups: Sequence[Sequence[int]]) -> Iterator[tuple[slice, list[Found]]]:
    """Find the best class of each group at every pixel, some rows at a time; of equals the one of the lowest id.

    Args:
        grid: Scores of one image.
        groups: Ids of classes that compete with each other, at least one in each.

    Yields:
        The rows of the image, and for each group the best score, float32 (rows, W), and its class, uint8 (rows, W).
    """
    if grid.scores.device.type == "cpu" and _is_upsampled_by_stride(grid):
        corners = _corners(grid)
        rivals = [_Rivals(corners, sorted(ids)) for ids in groups]
        if all(each.open.mean() < MOSTLY for each in rivals):
            yield from _by_blocks(grid, rivals)
            return
    for rows, scores in score_tiles(grid):
        yield rows, [highest(scores, ids) for ids in groups]


def highest(scores: Tensor, ids: Sequence[int]) -> Found:
    """Return the largest of some classes' scores at each place and which class it is, the first of equals.

    On a CPU NumPy goes through the classes one by one, several times as quick as `max(dim=0)`, which looks numbers up.

    Args:
        scores: float32 (C, ...).
        ids: At least one.
    """
    ascending = sorted(ids)
    if scores.device.type != "cpu":
        best, place = scores[ascending].max(dim=0)
        chosen = torch.tensor(ascending, dtype=torch.uint8, device=scores.device)[place]
        return best.cpu().numpy(), chosen.cpu().numpy()
    return _highest(scores.numpy(), ascending)


def _highest(planes: Floats, ascending: Sequence[int]) -> Found:
    first, *others = ascending
    best = planes[first].copy()
    chosen = np.full(best.shape, first, dtype=np.uint8)
    for index in others:
        larger = (planes[index] > best).view(np.uint8)
        np.maximum(chosen, larger * np.uint8(index), out=chosen)  # as the ids ascend, the last to be larger
        np.maximum(best, planes[index], out=best)
    return best, chosen


def score_tiles(grid: ScoreGrid) -> Iterator[tuple[slice, Tensor]]:
    """Upsample the scores to the image's size, some rows at a time.

    Bilinear with aligned cell centres: `F.interpolate(..., mode="bilinear", align_corners=False)` of the whole grid
    by the stride, cut to the input's size, where input and image have one size.

    Yields:
        The rows of the image, and their scores, float32 (C, rows, W).
    """
    classes = grid.scores.shape[0]
    height, width = grid.size
    step = max(1, TILE // (classes * width))
    if _is_upsampled_by_stride(grid):
        yield from _bands(grid, max(1, step // grid.stride))
        return
    left, right, x = _neighbours(width, grid.input_size[1], grid.stride, grid.scores.shape[2], grid.scores)
    wide = torch.lerp(grid.scores[:, :, left], grid.scores[:, :, right], x)  # (C, h, W)
    top, bottom, y = _neighbours(height, grid.input_size[0], grid.stride, grid.scores.shape[1], grid.scores)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        yield rows, torch.lerp(wide[:, top[rows]], wide[:, bottom[rows]], y[rows, None])


def _is_upsampled_by_stride(grid: ScoreGrid) -> bool:
    return grid.size == grid.input_size and grid.stride % 2 == 0


def _bands(grid: ScoreGrid, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Upsample by the whole stride, so many bands between two rows of cells at a time.

    The pixels of all bands lie at the same places between their cells, so nothing has to be looked up.
    """
    stride, (height, width) = grid.stride, grid.size
    share = (torch.arange(stride, dtype=grid.scores.dtype, device=grid.scores.device) + 0.5) / stride
    columns, change = _bordered(grid.scores, dim=2)
    wide = torch.addcmul(columns[..., None], change[..., None], share).flatten(2)[..., stride // 2 :][..., :width]
    cells, rise = _bordered(wide, dim=1)
    y = share[:, None]
    for first in range(0, rise.shape[1], count):
        band = slice(first, first + count)
        scores = torch.addcmul(cells[:, band, None], rise[:, band, None], y).flatten(1, 2)
        start = first * stride - stride // 2
        rows = slice(max(start, 0), min(start + scores.shape[1], height))
        if rows.start < rows.stop:
            yield rows, scores[:, rows.start - start : rows.stop - start]


def _bordered(maps: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Return the cell before each gap between cells and how much the next one differs; the border repeats itself."""
    length = maps.shape[dim]
    before = torch.cat([maps.narrow(dim, 0, 1), maps], dim)
    return before, torch.cat([maps, maps.narrow(dim, length - 1, 1)], dim) - before


def _neighbours(length: int, input_length: int, stride: int, cells: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel the two cells that it lies between and the weight of the second."""
    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * (input_length / length) / stride - 0.5
    position = centres.clamp(0, cells - 1)
    first = position.floor().long()
    second = (first + 1).clamp(max=cells - 1)
    weight = (position - first).to(like.dtype)
    return first.to(like.device), second.to(like.device), weight.to(like.device)


def _corners(grid: ScoreGrid) -> Floats:
    """Return the scores at the corners of all blocks, float32 (C, blocks down + 1, blocks across + 1).

    The border repeats itself, so that the outermost pixels lie between cells, too.
    """
    down, across = ((length + grid.stride // 2 - 1) // grid.stride + 2 for length in grid.size)
    bordered = F.pad(grid.scores[None], (1, 1, 1, 1), mode="replicate")[0, :, :down, :across]
    return np.ascontiguousarray(bordered.numpy())


class _Rivals:
    """Classes that compete with each other over the blocks of an image.

    Args:
        corners: Scores of all classes, float32 (C, h, w), at the corners of (h − 1) × (w − 1) blocks.
        ids: Of those that compete, ascending.

    Attributes:
        open: Whether a block's corners do not all have the same best class, bool (h − 1, w − 1).
    """

    def __init__(self, corners: Floats, ids: Sequence[int]) -> None:
        self._planes = corners.reshape(len(corners), -1)
        self._ids = np.asarray(ids)
        self._width = corners.shape[2]
        won = _highest(corners, ids)[1]
        self._won = won.reshape(-1)
        here = won[:-1, :-1]
        self.open = (here != won[:-1, 1:]) | (here != won[1:, :-1]) | (here != won[1:, 1:])

    def best(self, band: slice, weights: Floats) -> Found:
        """Find the best class at every pixel of some rows of blocks.

        Args:
            band: Which rows.
            weights: As `_corner_weights` gives.

        Returns:
            float32 (stride², blocks) and uint8 of the same shape.
        """
        first = np.arange(band.start * self._width, band.stop * self._width).reshape(-1, self._width)[:, :-1].ravel()
        places = first + np.array([0, 1, self._width, self._width + 1])[:, None]  # (4, blocks) into a plane
        ids = self._won[first]
        best = _product(weights, self._planes[ids, places])
        chosen = np.broadcast_to(ids, best.shape).copy()
        open_blocks = np.flatnonzero(self.open[band])
        at_once = max(1, TILE // (len(self._ids) * len(weights)))
        for start in range(0, len(open_blocks), at_once):
            some = open_blocks[start : start + at_once]
            best[:, some], chosen[:, some] = self._best_of_open(places[:, some], weights)
        return best, chosen

    def _best_of_open(self, places: NDArray[np.int64], weights: Floats) -> Found:
        four = self._planes[self._ids[:, None, None], places]  # (K, 4, blocks)
        # no class wins whose best corner is below the worst corner of another one
        beaten = four.max(axis=1) < four.min(axis=1).max(axis=0)
        left = np.flatnonzero(~beaten.all(axis=1))
        best, place = _highest(_product(weights, four[left]), range(len(left)))
        return best, self._ids[left].astype(np.uint8)[place]


def _by_blocks(grid: ScoreGrid, groups: Sequence[_Rivals]) -> Iterator[tuple[slice, list[Found]]]:
    """Do what `best_tiles` does, some rows of blocks at a time."""
    stride, (height, width) = grid.stride, grid.size
    down, across = groups[0].open.shape
    weights = _corner_weights(stride)
    step = max(1, TILE // (across * stride**2))
    for first in range(0, down, step):
        band = slice(first, min(first + step, down))
        top = first * stride - stride // 2
        rows = slice(max(top, 0), min(top + (band.stop - first) * stride, height))
        inside = slice(rows.start - top, rows.stop - top), slice(stride // 2, stride // 2 + width)
        found = [group.best(band, weights) for group in groups]
        yield rows, [(_laid_out(a, across)[inside], _laid_out(b, across)[inside]) for a, b in found]


def _corner_weights(stride: int) -> Floats:
    """Return what the four corners of a block count at each of its pixels, float32 (stride², 4), row by row."""
    share = (np.arange(stride, dtype=np.float32) + np.float32(0.5)) / np.float32(stride)
    along = np.stack([1 - share, share])
    weights: Floats = np.einsum("ay,bx->yxab", along, along).reshape(stride**2, 4)
    return weights


def _product(left: Floats, right: Floats) -> Floats:
    """Multiply by PyTorch: after a product of NumPy's, OpenBLAS's threads spin for some 30 ms in wait of the next.

    Photos are worked on side by side (`threads`), so that a thread in wait keeps another photo from its core.
    """
    product: Floats = torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    return product


def _laid_out(pixels: NDArray[Any], across: int) -> NDArray[Any]:
    """Lay the pixels of blocks, (stride², blocks), out as an image of `across` blocks in a row."""
    stride = math.isqrt(len(pixels))
    blocks = pixels.reshape(stride, stride, -1, across)
    return blocks.transpose(2, 0, 3, 1).reshape(-1, across * stride)
