"""Inference: nearest class vectors against a naive float64 search at full size, and all that is computed on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zsseg import calibration, winners
from zsseg.calibration import Calibration
from zsseg.errors import DataError, SettingError
from zsseg.inference import (
    NEVER,
    Model,
    as_rgb,
    calibrate,
    chosen_calibration,
    class_scores,
    contest,
    label_map,
    nearest_classes,
    nne_scores,
    predict_grid,
)
from zsseg.models import SegmentationNet
from zsseg.winners import ScoreGrid, score_tiles

Float64 = NDArray[np.float64]


def model(classes: int, *, vectors: Tensor | None = None, unseen: tuple[int, ...] = (1,)) -> Model:
    """Return a model whose network is never run."""
    return Model(
        net=SegmentationNet(),
        names=tuple(f"class {index}" for index in range(classes)),
        seen=tuple(index for index in range(classes) if index not in unseen),
        unseen=unseen,
        vectors=vectors,
        device=torch.device("cpu"),
        precision="float32",
        params={},
    )


def random_grid(
    seed: int, *, classes: int = 5, stride: int = 8, size: tuple[int, int] = (45, 70), to: tuple[int, int] | None = None
) -> ScoreGrid:
    """Return random scores for a network input of `size` and an image of size `to`."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (-(-length // 32) * 32 // stride for length in size)
    return ScoreGrid(torch.randn(classes, height, width, generator=generator), stride, size, to or size)


def joined(grid: ScoreGrid) -> Tensor:
    """Return the scores at full size from all tiles."""
    return torch.cat([scores for _, scores in score_tiles(grid)], dim=1)


def naive_upsampled(grid: ScoreGrid) -> Float64:
    """Interpolate pixel by pixel between the centres of the cells."""
    cells = grid.scores.double().numpy()
    out = np.empty((cells.shape[0], *grid.size))
    limit = np.array(cells.shape[1:]) - 1
    for y in range(grid.size[0]):
        for x in range(grid.size[1]):
            place = (np.array([y, x]) + 0.5) * grid.input_size / np.array(grid.size) / grid.stride - 0.5
            place = np.clip(place, 0, limit)
            top, left = np.floor(place).astype(int)
            bottom, right = np.minimum([top + 1, left + 1], limit)
            down, across = place - [top, left]
            upper = (1 - across) * cells[:, top, left] + across * cells[:, top, right]
            lower = (1 - across) * cells[:, bottom, left] + across * cells[:, bottom, right]
            out[:, y, x] = (1 - down) * upper + down * lower
    return out


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(("size", "dims"), [((97, 131), 7), ((64, 96), 50), ((1, 1), 20), ((200, 33), 100)])
def test_nne_is_exact(stride: int, unit: bool, size: tuple[int, int], dims: int) -> None:
    """Scoring on the coarse grid gives, up to ties, the label map of a search among full-size float64 embeddings."""
    generator = torch.Generator().manual_seed(stride + dims)
    height, width = (-(-length // 32) * 32 // stride for length in size)
    embeddings = torch.randn(dims, height, width, generator=generator)
    vectors = torch.randn(21, dims, generator=generator)
    if unit:
        vectors = F.normalize(vectors)
    grid = ScoreGrid(nne_scores(embeddings, vectors), stride, size, size)
    found = label_map(grid)

    full = F.interpolate(embeddings[None].double(), scale_factor=stride, mode="bilinear", align_corners=False)
    pixels = full[0, :, : size[0], : size[1]].flatten(1).T
    distances = torch.cdist(pixels, vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    best = distances.topk(2, dim=1, largest=False)
    differs = best.indices[:, 0].numpy() != found.ravel()
    gap = (best.values[:, 1] - best.values[:, 0]).numpy()
    assert (gap[differs] < 1e-4).all(), (
        f"{differs.sum()} of {differs.size} pixels differ, by up to {gap[differs].max()}"
    )
    assert differs.sum() <= 1e-3 * differs.size, f"{differs.sum()} of {differs.size} pixels differ"


def test_nne_scores() -> None:
    """The score is w·f − ½‖w‖², so that its order is that of the distance, nearest first."""
    generator = torch.Generator().manual_seed(0)
    embeddings, vectors = torch.randn(6, 3, 4, generator=generator), torch.randn(5, 6, generator=generator)
    scores = nne_scores(embeddings, vectors)
    assert scores.shape == (5, 3, 4)
    for row in range(3):
        for column in range(4):
            f = embeddings[:, row, column]
            distances = [float(((f - w) ** 2).sum()) for w in vectors]
            expected = [(float((f**2).sum()) - distance) / 2 for distance in distances]
            torch.testing.assert_close(scores[:, row, column], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@given(st.sampled_from([4, 8, 16, 32]), st.integers(1, 90), st.integers(1, 90), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_upsampling(stride: int, height: int, width: int, seed: int) -> None:
    """Where image and input have one size, the scores are those of bilinear interpolation by the stride, cut."""
    grid = random_grid(seed, stride=stride, size=(height, width))
    expected = F.interpolate(grid.scores[None], scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(joined(grid), expected[0, :, :height, :width], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(45, 70), (90, 140), (20, 31), (100, 33), (1, 200)])
def test_other_image_size(size: tuple[int, int]) -> None:
    """An image that was scored smaller or larger gets the scores at the corresponding places of the input."""
    grid = random_grid(3, classes=3, to=size)
    np.testing.assert_allclose(joined(grid).numpy(), naive_upsampled(grid), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 100, 5000, 2**30])
def test_tiles(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile size changes nothing but the number of tiles, which cover every row once."""
    grid = random_grid(4)
    chosen = calibration.stacking(5, (0, 2, 3, 4), 0.3)
    expected, expected_map = joined(grid), label_map(grid, chosen)
    expected_prediction = predict_grid(model(5), grid, chosen)
    expected_contest = contest(grid, chosen, (0, 2, 3, 4), (1,))
    monkeypatch.setattr(winners, "TILE", tile)
    rows = [row for part, _ in score_tiles(grid) for row in range(part.start, part.stop)]
    assert rows == list(range(45))
    assert torch.equal(joined(grid), expected)
    np.testing.assert_array_equal(label_map(grid, chosen), expected_map)
    np.testing.assert_array_equal(contest(grid, chosen, (0, 2, 3, 4), (1,)).gap, expected_contest.gap)
    found = predict_grid(model(5), grid, chosen)
    np.testing.assert_array_equal(found.areas, expected_prediction.areas)
    np.testing.assert_allclose(found.mean_scores, expected_prediction.mean_scores, rtol=1e-6)


SEEN, UNSEEN = (0, 2, 3), (1, 4)


def calibrations() -> dict[str, Calibration]:
    """Return one calibration of each shape: none, a bias, a scale, and the gate on distances."""
    rng = np.random.default_rng(0)
    scale, bias = rng.uniform(0.5, 2, 5).astype(np.float32), rng.normal(0, 0.5, 5).astype(np.float32)
    return {
        "none": calibration.none(5),
        "stacking": calibration.stacking(5, SEEN, 0.7),
        "bias": Calibration("csls", np.ones(5, np.float32), bias),
        "scale": Calibration("csls", scale, bias),
        "gate": Calibration("csls", scale, bias, top2=True),
        "apollonius": calibration.apollonius(5, SEEN, 0.6),
    }


def naive_label(scores: Float64, square: float, chosen: Calibration) -> int:
    """Calibrate one pixel's scores, and pick its class."""
    raw = scores - square / 2 if chosen.on_distances else scores
    calibrated = [float(m) * s + float(b) for m, s, b in zip(chosen.scale, raw, chosen.bias, strict=True)]
    competing = sorted(range(5), key=lambda index: -raw[index])[: 2 if chosen.top2 else 5]
    return max(competing, key=lambda index: calibrated[index])


def with_squares(grid: ScoreGrid) -> ScoreGrid:
    """Give a grid the squared length of its embeddings, long enough for all distances to be positive."""
    squares = 2 * grid.scores.max(dim=0).values + torch.rand(grid.scores.shape[1:], generator=torch.manual_seed(1)) + 1
    return replace(grid, squares=squares)


@pytest.mark.parametrize("name", list(calibrations()))
def test_calibrated_labels(name: str) -> None:
    """Labels of `predict`, of `label_map` and of a contest are those of a naive search at full size."""
    grid, chosen = with_squares(random_grid(5, size=(20, 31))), calibrations()[name]
    assert grid.squares is not None
    scores = naive_upsampled(grid)
    (squares,) = naive_upsampled(replace(grid, scores=grid.squares[None]))
    expected = np.array([
        [naive_label(scores[:, y, x], squares[y, x], chosen) for x in range(31)] for y in range(20)
    ])  # fmt: skip
    np.testing.assert_array_equal(label_map(grid, chosen), expected)
    np.testing.assert_array_equal(predict_grid(model(5), grid, chosen).label_map, expected)
    np.testing.assert_array_equal(contest(grid, chosen, SEEN, UNSEEN).label_map, expected)
    if name != "none":
        assert (expected != label_map(grid)).any()


def test_apollonius_of_one_is_plain_nne() -> None:
    """With σ = 1 nothing changes, with σ → 0 a pixel goes to an unseen class wherever one passes the gate."""
    grid = with_squares(random_grid(6))
    np.testing.assert_array_equal(label_map(grid, calibration.apollonius(5, SEEN, 1.0)), label_map(grid))
    top2 = joined(grid).topk(2, dim=0).indices.numpy()
    extreme = label_map(grid, calibration.apollonius(5, SEEN, 1e-6))
    np.testing.assert_array_equal(np.isin(extreme, UNSEEN), np.isin(top2, UNSEEN).any(axis=0))


@pytest.mark.parametrize("name", list(calibrations()))
def test_contest(name: str) -> None:
    """The gap says what a further bias does: under it the seen class wins where the gap is larger."""
    grid, chosen = with_squares(random_grid(9)), calibrations()[name]
    found = contest(grid, chosen, SEEN, UNSEEN)
    assert set(np.unique(found.seen)) <= set(SEEN)
    assert set(np.unique(found.unseen)) <= set(UNSEEN)
    for gamma in (-0.5, 0.25, 1.0):
        if chosen.on_distances:
            moved = replace(chosen, scale=calibration.apollonius(5, SEEN, 0.6 * np.exp(-gamma)).scale)
        else:
            moved = replace(chosen, bias=chosen.bias - np.isin(range(5), SEEN).astype(np.float32) * np.float32(gamma))
        clear = np.abs(found.gap - gamma) > 1e-4
        expected = np.where(found.gap > gamma, found.seen, found.unseen)
        np.testing.assert_array_equal(label_map(grid, moved)[clear], expected[clear])


def test_contest_leaves_other_classes_out() -> None:
    """A class in neither list competes nowhere, not for a place in the gate either."""
    grid = with_squares(random_grid(10))
    for chosen in calibrations().values():
        found = contest(grid, chosen, (0, 2), (4,))
        assert set(np.unique(found.label_map)) == {0, 2, 4}
        assert set(np.unique(label_map(grid, chosen, excluded=(1, 3)))) == {0, 2, 4}
    fewer = replace(grid, scores=grid.scores[[0, 2, 4]])
    expected = label_map(fewer, calibration.apollonius(3, (0, 1), 0.6))
    found = contest(grid, calibration.apollonius(5, SEEN, 0.6), (0, 2), (4,))
    np.testing.assert_array_equal(found.label_map, np.array([0, 2, 4])[expected])


def test_of_equals_the_first_class_wins() -> None:
    """Where scores are equal, all three ways to a label map take the lower id, whichever of the two is seen."""
    grid = ScoreGrid(torch.zeros(4, 2, 2), 8, (16, 16), (16, 16))
    for seen, unseen in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
        assert (contest(grid, calibration.none(4), seen, unseen).label_map == 0).all()
    assert (label_map(grid) == 0).all()


def test_which_calibration_is_used() -> None:
    """A model's own by default, none on demand, and a seen bias in its place, 0 included."""
    own = calibration.apollonius(5, SEEN, 0.6)
    calibrated = replace(model(5, unseen=UNSEEN), calibration=own)
    assert chosen_calibration(calibrated, "model", None) is own
    assert chosen_calibration(calibrated, "none", None).is_identity
    assert chosen_calibration(calibrated, "model", 0.0).is_identity
    assert chosen_calibration(calibrated, "model", 0.5).bias.tolist() == [-0.5, 0, -0.5, -0.5, 0]
    assert chosen_calibration(model(5), "model", None).is_identity
    grid = with_squares(random_grid(11))
    np.testing.assert_array_equal(predict_grid(calibrated, grid).label_map, label_map(grid, own))


def test_seen_bias_is_monotone() -> None:
    """The higher the bias, the fewer pixels go to seen classes: from all to none."""
    grid, chosen = random_grid(7), model(5, unseen=(1, 4))
    areas = [
        int(predict_grid(chosen, grid, calibration.stacking(5, chosen.seen, bias)).areas[list(chosen.seen)].sum())
        for bias in (-100, -1, -0.1, 0, 0.1, 0.5, 1, 2, 100)
    ]
    assert areas == sorted(areas, reverse=True)
    assert (areas[0], areas[-1]) == (45 * 70, 0)
    assert areas[3] not in (0, 45 * 70)


@pytest.mark.parametrize("seen_bias", [0.0, 0.7])
def test_predict_grid(seen_bias: float) -> None:
    """Areas add up to the image; the mean score of a class is that of its pixels, NaN where it has none."""
    grid = random_grid(8, classes=6)
    grid.scores[5] -= 50
    prediction = predict_grid(model(6), grid, calibration.stacking(6, model(6).seen, seen_bias))
    scores = joined(grid).numpy() - np.array([seen_bias, 0, *[seen_bias] * 4])[:, None, None]
    np.testing.assert_array_equal(prediction.label_map, scores.argmax(axis=0))
    assert prediction.areas.sum() == 45 * 70
    assert prediction.names == model(6).names
    for index in range(6):
        inside = prediction.label_map == index
        assert prediction.areas[index] == inside.sum()
        expected = scores[index][inside].mean() if inside.any() else np.nan
        np.testing.assert_allclose(prediction.mean_scores[index], expected, rtol=1e-4)
    assert np.isnan(prediction.mean_scores[5])


def test_softmax_scores() -> None:
    """A softmax model's logits go to its seen classes; the unseen ones can never win."""
    logits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    chosen = model(5, unseen=(0, 3))
    scores = class_scores(chosen, logits)
    assert torch.equal(scores[[1, 2, 4]], logits)
    assert (scores[[0, 3]] == NEVER).all()
    grid = ScoreGrid(scores, 8, (16, 32), (16, 32))
    assert set(np.unique(predict_grid(chosen, grid, calibration.stacking(5, (1, 2, 4), 5.0)).label_map)) <= {1, 2, 4}
    with pytest.raises(SettingError, match="a softmax model or one with a gate has none"):
        calibrate(grid, calibration.apollonius(5, (1, 2, 4), 0.5))


def test_joint_scores() -> None:
    """A joint embedding scores all classes, seen and unseen."""
    vectors, outputs = torch.randn(5, 4), torch.randn(4, 2, 3)
    assert torch.equal(class_scores(model(5, vectors=vectors), outputs), nne_scores(outputs, vectors))


def test_as_rgb(tmp_path: Path) -> None:
    """A path, its text, a PIL image and an array all give the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), Image.fromarray(pixels), pixels):
        np.testing.assert_array_equal(as_rgb(source), pixels)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4), (3, 5, 7), (0, 7, 3), (5, 0, 3), (1, 5, 7, 3)])
def test_as_rgb_refuses_shapes(shape: tuple[int, ...]) -> None:
    """An array that is no RGB image is an error with its shape."""
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\)"):
        as_rgb(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_as_rgb_refuses_dtypes(dtype: type) -> None:
    """An array of another dtype is an error with its dtype."""
    with pytest.raises(DataError, match=f"dtype {np.dtype(dtype)}"):
        as_rgb(np.zeros((5, 7, 3), dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize(("cells", "classes", "count"), [(3, 7, 7), (300, 1000, 5), (1, 64, 1), (5, 20000, 8)])
def test_nearest_of_many_classes(cells: int, classes: int, count: int) -> None:
    """In blocks come the same classes, in the same order, as by all distances."""
    generator = torch.Generator().manual_seed(cells)
    embeddings, vectors = (torch.randn(rows, 6, generator=generator) for rows in (cells, classes))
    scores, ids = nearest_classes(embeddings, vectors, count)
    distances = torch.cdist(embeddings.double(), vectors.double())
    assert torch.equal(ids, distances.topk(count, dim=1, largest=False).indices)
    lengths = embeddings.square().sum(dim=1, keepdim=True)
    torch.testing.assert_close((lengths - 2 * scores).double(), distances.gather(1, ids).square(), atol=1e-4, rtol=1e-4)
