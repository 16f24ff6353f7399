"""Overlays with legends, captioned panels and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from zsseg.classes import VOC_NAMES
from zsseg.errors import DataError
from zsseg.images import UInt8, colour, overlay, voc_palette
from zsseg.pictures import TINY_SIDE, contact_sheet, fitted, legend_overlay, side_by_side


def holds(picture: UInt8, shade: UInt8 | tuple[int, int, int]) -> int:
    """Return how many pixels have exactly this colour."""
    return int((picture == np.asarray(shade)).all(axis=-1).sum())


def photo(height: int, width: int) -> UInt8:
    """Return a grey photo, in whose overlay no colour of the palette occurs."""
    return np.full((height, width, 3), 201, dtype=np.uint8)


def test_overlay_comes_first_and_the_legend_below() -> None:
    """The picture part is the overlay itself, and below it lies a swatch of every class that occurs."""
    label_map = np.zeros((200, 300), dtype=np.uint8)
    label_map[:50], label_map[50:60, :9] = 10, 17
    drawn = legend_overlay(photo(200, 300), label_map, VOC_NAMES)
    np.testing.assert_array_equal(drawn[:200, :300], overlay(photo(200, 300), label_map))
    strip = drawn[200:]
    assert drawn.dtype == np.uint8
    for present in (0, 10, 17):
        assert holds(strip, voc_palette()[present]) > 50
    for absent in (1, 12):
        assert holds(strip, voc_palette()[absent]) == 0


def test_the_largest_class_stands_first() -> None:
    """Swatches come in the order of area, from the top left on."""
    label_map = np.full((150, 150), 12, dtype=np.uint8)
    label_map[:20] = 8
    strip = legend_overlay(photo(150, 150), label_map, VOC_NAMES)[150:]
    rows = [np.flatnonzero((strip == voc_palette()[index]).all(axis=-1).any(axis=1)) for index in (12, 8)]
    assert rows[0].max() < rows[1].min()


def test_unseen_classes_are_marked() -> None:
    """Marking a class as unseen adds ink to the legend and leaves the overlay as it was."""
    label_map = np.full((150, 200), 10, dtype=np.uint8)
    plain = legend_overlay(photo(150, 200), label_map, VOC_NAMES)
    marked = legend_overlay(photo(150, 200), label_map, VOC_NAMES, unseen={10, 17})
    np.testing.assert_array_equal(plain[:150, :200], marked[:150, :200])
    assert (marked[150:] < 100).sum() > (plain[150:] < 100).sum()


def test_many_classes_are_summed_up() -> None:
    """With more classes than a legend has room for, twelve swatches remain and the legend stays short."""
    label_map = np.repeat(np.arange(60, dtype=np.uint8), 200).reshape(60, 200)
    label_map[0] = 59  # the largest of all
    strip = legend_overlay(photo(60, 200), label_map, VOC_NAMES)[60:]
    palette = voc_palette()
    assert holds(strip, palette[59]) > 50
    # up to 55, since 56 is a dark grey that the smooth edges of letters have too
    assert [index for index in range(56) if holds(strip, palette[index]) > 50] == list(range(1, 12))
    assert strip.shape[0] < 400


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 5000), (5000, 3), (700, 500)])
def test_any_size_is_readable(size: tuple[int, int]) -> None:
    """Tiny pictures are enlarged, huge ones made smaller, and the legend is never cut off."""
    label_map = np.zeros(size, dtype=np.uint8)
    label_map[-1, -1] = 20
    drawn = legend_overlay(photo(*size), label_map, VOC_NAMES, unseen=[20], max_side=400)
    part = fitted(label_map, 400).shape
    assert TINY_SIDE // 2 < max(part) <= 400
    assert drawn.shape[1] >= 100
    assert (drawn[:, -1] == 255).all() or drawn.shape[1] == part[1]
    assert holds(drawn[part[0] :], voc_palette()[20]) > 50


def test_plain_colours_stay_exact() -> None:
    """A label map laid over its own colours keeps them, so that it can be shown without its photo."""
    label_map = np.arange(21, dtype=np.uint8).repeat(300).reshape(90, 70)
    drawn = legend_overlay(colour(label_map), label_map, VOC_NAMES)
    np.testing.assert_array_equal(drawn[:90, :70], colour(label_map))


def test_void_and_ids_without_a_name_are_drawn() -> None:
    """Void has a line of its own and an id beyond the names does not fail."""
    label_map = np.full((140, 140), 255, dtype=np.uint8)
    label_map[0] = 77
    drawn = legend_overlay(photo(140, 140), label_map, ["background"])
    assert holds(drawn[140:], voc_palette()[77]) > 50
    only_void = legend_overlay(photo(140, 140), np.full((140, 140), 255, dtype=np.uint8), ["background"])
    assert (only_void[140:] < 100).any()


def test_long_and_strange_names_do_not_widen_it_without_end() -> None:
    """A name of a thousand characters is shortened, one in another script or with a line break is drawn."""
    label_map = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    drawn = legend_overlay(photo(2, 2), label_map, ["x" * 1000, "猫\n$a_b$", ""])
    assert drawn.shape[1] < 500


def test_sizes_must_agree() -> None:
    """A label map of another size than its photo is an error that names both."""
    with pytest.raises(DataError, match="label map of 4×5 over an image of 5×4"):
        legend_overlay(photo(5, 4), np.zeros((4, 5), dtype=np.uint8), VOC_NAMES)


def test_side_by_side_keeps_every_panel() -> None:
    """Panels of different sizes stand in a row under their captions, unchanged."""
    left, right = np.full((40, 150, 3), 10, dtype=np.uint8), np.full((90, 60, 3), 99, dtype=np.uint8)
    row = side_by_side([("photo", left), ("a caption much longer than its panel is wide", right)])
    assert holds(row, (10, 10, 10)) >= left.size // 3
    assert holds(row, (99, 99, 99)) >= right.size // 3
    tops = [np.flatnonzero((row == shade).all(axis=-1).sum(axis=1) > 50)[0] for shade in (10, 99)]
    assert tops[0] == tops[1] > 15
    assert row.shape[1] < 2 * 400


def test_contact_sheet_holds_all_pictures() -> None:
    """Every picture of a sheet is there whole, also with a short last row, and twelve of them look like a page."""
    tiles = [np.full((30 + index, 40, 3), 10 * index, dtype=np.uint8) for index in range(12)]
    for columns in (None, 1, 5, 12):
        sheet = contact_sheet(tiles, columns=columns)
        assert [holds(sheet, (10 * index,) * 3) for index in range(12)] == [40 * (30 + index) for index in range(12)]
    assert 0.8 < contact_sheet(tiles).shape[1] / contact_sheet(tiles).shape[0] < 2.2
