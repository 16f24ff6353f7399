"""Compose pictures for people: overlays with a legend, captioned panels in a row, contact sheets.

Conventions: a picture is uint8 (H, W, 3), RGB; a label map is uint8 (H, W) of class ids with 255 = void. Colours
are VOC's palette, as in the label maps' PNGs, where no other is handed in. Sizes are pixels. Drawn with Pillow and its
built-in font alone.

References:
    Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG
    2009: how colours look without one kind of cone.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zsseg.classes import VOID
from zsseg.config import Palette
from zsseg.errors import DataError
from zsseg.images import UInt8, overlay, resize_image, resize_label_map, voc_palette

MAX_ENTRIES = 12  # of a legend; the smaller classes are summed up in one line
TINY_SIDE = 128  # smaller pictures are enlarged by a whole factor, or nobody could see them
PAPER = (255, 255, 255)
INK = (30, 30, 30)
BORDER = (110, 110, 110)  # round a swatch: class 0 is black, others are near white; a grey outside the palette
GAP = 8
DARKEST = 30  # lightness, of 100, of a class other than background
LEVELS = 8  # of red, green and blue among the colours that `palette("safe")` chooses from

# What a reader without one kind of cone sees, of linear RGB (Machado et al., severity 1); the first sees all.
SIGHT: dict[str, tuple[tuple[float, float, float], ...]] = {
    "full": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}

Colour = tuple[int, int, int]


@functools.cache
def palette(name: Palette) -> UInt8:
    """Return the colour of each class id, uint8 (256, 3): VOC's, or one for colour-blind readers, too.

    The safe one takes black for class 0 (background) and then always the colour that is farthest from all before it and
    from white (void), whichever kind of cone a reader lacks. So a lower id is safer: the first dozen are far apart,
    more colours than some twenty cannot be.
    """
    if name == "voc":
        return voc_palette()
    steps = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = lab(candidates, "full")[:, 0]
    # darker ones look like background over a photo; black and white, the first and the last, stay
    candidates = candidates[(lightness == lightness.min()) | (lightness > DARKEST)]
    seen = np.stack([lab(candidates, sight) for sight in SIGHT])  # (4, K, 3)
    chosen = [0]
    nearest = np.minimum(_apart(seen, 0), _apart(seen, len(candidates) - 1))  # black and white
    while len(chosen) < 256:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _apart(seen, chosen[-1]))
    colours: UInt8 = candidates[chosen]
    return colours


def lab(colours: UInt8, sight: str) -> NDArray[np.float64]:
    """Return sRGB colours, uint8 (K, 3), in CIELAB as a reader with this sight (see `SIGHT`) sees them."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(SIGHT[sight]).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(linear @ to_xyz.T / to_xyz.sum(axis=1), 1e-6)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _apart(seen: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """Return how far each colour is from one of them for the reader who tells the two apart worst, (K,)."""
    distances: NDArray[np.float64] = np.linalg.norm(seen - seen[:, index : index + 1], axis=2).min(axis=0)
    return distances


def legend_overlay(
    image: UInt8,
    label_map: UInt8,
    names: Sequence[str],
    *,
    unseen: Collection[int] = (),
    max_side: int = 1600,
    colours: UInt8 | None = None,
) -> UInt8:
    """Lay a label map over its photo, with a legend strip below.

    The legend tells the share of every class in the whole label map, also of what is lost when it is made smaller.

    Args:
        image: uint8 (H, W, 3). For a label map in plain colours hand in `images.colour(label_map)`.
        label_map: uint8 (H, W).
        names: Class names in index order; an id beyond them is called "class 37".
        unseen: Ids of the classes to mark as unseen.
        max_side: Longest side of the picture part; a legend can be wider than a very narrow picture.
        colours: Of each class id, uint8 (256, 3); None: VOC's.

    Returns:
        uint8 (h, w, 3), the picture at the top left.

    Raises:
        DataError: Image and label map differ in size.
    """
    if image.shape[:2] != label_map.shape:
        raise DataError(
            f"label map of {label_map.shape[0]}×{label_map.shape[1]} over an image of "
            f"{image.shape[0]}×{image.shape[1]}, expected the same size; make both from the same photo"
        )
    picture = overlay(fitted(image, max_side), fitted(label_map, max_side), colours=colours)
    areas = np.array(Image.fromarray(label_map).histogram())  # np.bincount would need 8 bytes a pixel
    strip = legend(areas, names, width=picture.shape[1], unseen=unseen, colours=colours)
    return _stacked((picture, strip))


def legend(
    areas: NDArray[np.int64],
    names: Sequence[str],
    *,
    width: int,
    unseen: Collection[int] = (),
    colours: UInt8 | None = None,
) -> UInt8:
    """Draw a legend: swatch, name and share of each class, largest first, then void.

    Args:
        areas: Pixels of each class id, (256,).
        names: Class names in index order.
        width: Wanted; the strip is wider where one entry needs it.
        unseen: Ids of the classes to mark as unseen.
        colours: Of each class id, uint8 (256, 3); None: VOC's.

    Returns:
        uint8 (h, w, 3) with w >= `width`.
    """
    size = min(max(width // 40, 13), 26)
    font = _font(size)
    entries = [
        (f"{_clipped(name, font, 16 * size)}{mark}  {share}", colour)
        for name, mark, share, colour in _entries(areas, names, unseen, voc_palette() if colours is None else colours)
    ]
    cell = round(2 * size + max((font.getlength(text) for text, _ in entries), default=0)) + GAP
    columns = max(1, (width - GAP) // cell)
    rows = -(-len(entries) // columns)
    pitch = round(1.5 * size)
    canvas = Image.new("RGB", (max(width, cell + GAP), rows * pitch + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (text, colour) in enumerate(entries):
        left, middle = GAP + index % columns * cell, GAP // 2 + index // columns * pitch + pitch // 2
        box = (left, middle - size // 2, left + size, middle - size // 2 + size)
        if colour is not None:
            draw.rectangle(box, fill=colour, outline=BORDER)
        if colour == PAPER:
            draw.line((box[0], box[3], box[2], box[1]), fill=BORDER)
        draw.text((left + round(1.4 * size), middle), text, font=font, fill=INK, anchor="lm")
    return np.array(canvas)


def side_by_side(panels: Sequence[tuple[str, UInt8]]) -> UInt8:
    """Put captioned pictures in a row, tops aligned; lower ones are padded with white.

    Args:
        panels: Caption and picture of each; the pictures may differ in size. At least one.

    Returns:
        uint8 (H, W, 3).
    """
    size = min(max(max(picture.shape[1] for _, picture in panels) // 40, 14), 26)
    font = _font(size)
    captioned = []
    for caption, picture in panels:
        width = max(picture.shape[1], round(min(font.getlength(caption), 12 * size)) + 1)
        bar = Image.new("RGB", (width, round(1.6 * size)), PAPER)
        text = _clipped(caption, font, width)
        ImageDraw.Draw(bar).text((0, bar.height // 2), text, font=font, fill=INK, anchor="lm")
        captioned.append(_stacked((np.array(bar), picture)))
    return contact_sheet(captioned, columns=len(captioned))


def contact_sheet(pictures: Sequence[UInt8], *, columns: int | None = None) -> UInt8:
    """Arrange pictures of any sizes in a grid on white, row by row, each at the top left of its cell.

    Args:
        pictures: At least one.
        columns: How many side by side; None takes what makes the sheet nearest to 4 : 3.

    Returns:
        uint8 (H, W, 3).
    """
    if columns is None:
        candidates = range(1, len(pictures) + 1)
        columns = min(candidates, key=lambda count: abs(np.log(_aspect(pictures, count) * 3 / 4)))
    rows = list(_chunks(pictures, columns))
    widths = [max(row[column].shape[1] for row in rows if column < len(row)) for column in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    shape = (sum(heights) + GAP * (len(heights) + 1), sum(widths) + GAP * (len(widths) + 1), 3)
    sheet = np.full(shape, 255, dtype=np.uint8)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for picture, width in zip(row, widths, strict=False):  # the last row may be short
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += width + GAP
        top += height + GAP
    return sheet


def fitted(picture: UInt8, max_side: int) -> UInt8:
    """Bring a picture or label map to a size that can be looked at.

    Larger than `max_side` it is made smaller; smaller than `TINY_SIDE` it is enlarged by a whole factor,
    without smoothing. A label map (two axes) is resampled to the nearest and stays one.

    Args:
        picture: uint8 (H, W, 3) or (H, W).
        max_side: Longest side of the result.
    """
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest > max_side:
        size = max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))
        return resize_image(picture, size) if picture.ndim == 3 else resize_label_map(picture, size)
    factor = max(1, min(TINY_SIDE, max_side) // longest)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _entries(
    areas: NDArray[np.int64], names: Sequence[str], unseen: Collection[int], colours: UInt8
) -> Iterator[tuple[str, str, str, Colour | None]]:
    """Yield name, mark, share and swatch colour of each line of a legend: `PAPER` for void, None for the rest."""
    total = max(int(areas.sum()), 1)
    present = sorted(np.flatnonzero(areas[:VOID]).tolist(), key=lambda index: (-areas[index], index))
    for index in present[:MAX_ENTRIES]:
        name = names[index] if index < len(names) else f"class {index}"
        red, green, blue = colours[index].tolist()
        mark = " (unseen)" if index in unseen else ""
        yield name, mark, _share(areas[index] / total), (red, green, blue)
    rest = present[MAX_ENTRIES:]
    if rest:
        yield f"+ {len(rest)} more", "", _share(areas[rest].sum() / total), None
    if areas[VOID]:
        yield "void", "", _share(areas[VOID] / total), PAPER


def _share(share: float) -> str:
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _clipped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return the text on one line, shortened with dots where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _stacked(pictures: Sequence[UInt8]) -> UInt8:
    """Put pictures below one another, without a gap, padded with white on the right."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255) for picture in pictures
    ]
    return np.concatenate(padded)


def _chunks(pictures: Sequence[UInt8], columns: int) -> Iterator[Sequence[UInt8]]:
    for start in range(0, len(pictures), columns):
        yield pictures[start : start + columns]


def _aspect(pictures: Sequence[UInt8], columns: int) -> float:
    """Return roughly width / height of the sheet with so many columns."""
    width = columns * max(picture.shape[1] for picture in pictures)
    height = sum(max(picture.shape[0] for picture in row) for row in _chunks(pictures, columns))
    return float(width / height)
