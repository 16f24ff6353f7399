"""Overlays with legends, captioned panels and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest

from zsseg.classes import VOC_NAMES
from zsseg.errors import DataError
from zsseg.images import UInt8, colour, overlay, voc_palette
from zsseg.pictures import SIGHT, TINY_SIDE, contact_sheet, fitted, lab, legend_overlay, palette, side_by_side


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


def test_the_safe_palette_keeps_classes_apart_for_everybody() -> None:
    """Whichever cone a reader lacks, 21 classes are much farther apart than in VOC's colours, the first 8 clearly."""

    def nearest(colours: UInt8) -> float:
        apart = []
        for sight in SIGHT:
            points = lab(colours, sight)
            distances = np.linalg.norm(points[:, None] - points[None], axis=2)
            apart.append(distances[~np.eye(len(points), dtype=bool)].min())
        return float(min(apart))

    safe = palette("safe")
    assert len(np.unique(safe, axis=0)) == 256
    assert safe[0].tolist() == [0, 0, 0]
    assert nearest(safe[:8]) > 25
    assert nearest(safe[:21]) > 3 * nearest(voc_palette()[:21])
    np.testing.assert_array_equal(palette("voc"), voc_palette())


def test_sight_without_a_cone_confuses_what_it_should() -> None:
    """Full sight gives CIELAB's own values, and a reader without red cones sees no hue between red and green."""
    white, red = lab(np.array([[255, 255, 255], [255, 0, 0]], np.uint8), "full")
    np.testing.assert_allclose(white, (100, 0, 0), atol=0.1)
    np.testing.assert_allclose(red, (53.24, 80.09, 67.20), atol=0.1)
    pair = np.array([[200, 60, 60], [110, 110, 50]], np.uint8)
    distance = {sight: np.linalg.norm(np.subtract(*lab(pair, sight)[:, 1:])) for sight in SIGHT}
    assert distance["deuteranopia"] < 0.4 * distance["full"]


def test_colours_can_be_handed_in() -> None:
    """Overlay and legend use the colours that they are given."""
    label_map = np.full((150, 200), 5, dtype=np.uint8)
    colours = palette("safe")
    drawn = legend_overlay(photo(150, 200), label_map, VOC_NAMES, colours=colours)
    np.testing.assert_array_equal(drawn[:150, :200], overlay(photo(150, 200), label_map, colours=colours))
    assert holds(drawn[150:], colours[5]) > 50
    assert holds(drawn, voc_palette()[5]) == 0
