"""The best class of every pixel, found block by block, against upsampling the scores of all classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zsseg import winners
from zsseg.winners import ScoreGrid, best_tiles


def smooth_grid(seed: int, *, classes: int = 7, stride: int = 8, size: tuple[int, int] = (97, 130)) -> ScoreGrid:
    """Return scores that change slowly from cell to cell, as a photo's do."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-length // stride) + seed % 2 for length in size]  # of padding, too
    few = torch.randn(1, classes, 3, 4, generator=generator)
    return ScoreGrid(F.interpolate(few, size=cells, mode="bilinear")[0], stride, size, size)


def upsampled(grid: ScoreGrid) -> NDArray[np.float32]:
    """Return the scores of all classes at every pixel."""
    fine = F.interpolate(grid.scores[None], scale_factor=grid.stride, mode="bilinear", align_corners=False)
    return fine[0, :, : grid.size[0], : grid.size[1]].numpy()


def found(grid: ScoreGrid, *groups: tuple[int, ...]) -> list[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Return the best scores and classes of all rows, which must come in order and once each."""
    tiles = list(best_tiles(grid, groups))
    assert [row for rows, _ in tiles for row in range(rows.start, rows.stop)] == list(range(grid.size[0]))
    return [
        (np.concatenate([tile[k][0] for _, tile in tiles]), np.concatenate([tile[k][1] for _, tile in tiles]))
        for k in range(len(groups))
    ]


def check(grid: ScoreGrid, *groups: tuple[int, ...]) -> None:
    """Compare with the scores of all classes: the best score, and a class that has it but for rounding."""
    scores = upsampled(grid)
    for ids, (best, chosen) in zip(groups, found(grid, *groups), strict=True):
        assert best.dtype == np.float32
        assert chosen.dtype == np.uint8
        assert set(np.unique(chosen)) <= set(ids)
        np.testing.assert_allclose(best, scores[list(ids)].max(axis=0), rtol=1e-4, atol=1e-5)
        of_chosen = np.take_along_axis(scores, chosen[None].astype(int), axis=0)[0]
        np.testing.assert_allclose(of_chosen, scores[list(ids)].max(axis=0), rtol=1e-4, atol=1e-5)


@given(st.sampled_from([2, 4, 8, 14, 16, 32]), st.integers(1, 120), st.integers(1, 120), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_best_of_smooth_scores(stride: int, height: int, width: int, seed: int) -> None:
    """On scores like a photo's, whole and in groups, for every stride and size."""
    grid = smooth_grid(seed, stride=stride, size=(height, width))
    check(grid, tuple(range(7)), (0, 3, 6), (5,))


@pytest.mark.parametrize("mostly", [0.0, 1.1])
@pytest.mark.parametrize("tile", [1, 3000, 2**18])
def test_best_of_any_scores(mostly: float, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most corners differ, too, by blocks as by pixels, however few fit into a tile."""
    monkeypatch.setattr(winners, "MOSTLY", mostly)
    monkeypatch.setattr(winners, "TILE", tile)
    rough = torch.randn(9, 8, 12, generator=torch.Generator().manual_seed(1))
    check(ScoreGrid(rough, 8, (61, 90), (61, 90)), tuple(range(9)), (8, 1, 4))
    check(smooth_grid(2), tuple(range(7)), (6, 2))


def test_blocks_are_settled_by_their_corners() -> None:
    """A photo is not looked at pixel by pixel: most blocks have one best class at all corners."""
    rivals = winners._Rivals(winners._corners(smooth_grid(3, size=(320, 480))), range(7))
    assert rivals.open.shape == (41, 61)
    assert rivals.open.mean() < winners.MOSTLY


def test_a_class_that_is_best_at_no_corner() -> None:
    """It can still win in between: second at all corners, of which each has another best class."""
    scores = torch.zeros(3, 2, 2)
    scores[0, :, 0] = scores[1, :, 1] = 2.0
    scores[2] = 1.3
    grid = ScoreGrid(scores.repeat_interleave(4, dim=1), 8, (64, 16), (64, 16))
    check(grid, (0, 1, 2))
    ((_, chosen),) = found(grid, (0, 1, 2))
    assert (chosen[:, 7:9] == 2).all()
    assert (chosen[:, 0] == 0).all()
    assert (chosen[:, -1] == 1).all()


def test_scores_that_are_no_numbers() -> None:
    """A broken model's NaN gives some label, no crash."""
    grid = smooth_grid(4)
    grid.scores[:, 2:5, 2:5] = torch.nan
    grid.scores[3, 6, 6] = torch.nan
    ((_, chosen),) = found(grid, tuple(range(7)))
    assert chosen.shape == grid.size
    assert chosen.max() < 7
