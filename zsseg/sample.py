"""The built-in data set `sample`: small scenes whose look is a fixed smooth function of word vectors.

Each scene is a few patches of printed cloth. What a class looks like follows from its word alone: a *look* is six
numbers (a colour, and the strength of each printed pattern), and the look of any word is the average of the literal
looks of the *anchor* words, weighted by softmax(SHARPNESS · cosine similarity of the word vectors). So a word looks
like the anchors that it is like. The classes are the anchors, in three families with a pattern each, and one word
amid each family, `UNSEEN`, which the quickstart holds out.

The sample is an oracle, not a benchmark: it is built so that a correct pipeline finds the unseen classes and a broken
one does not. The families were searched for words that lie near the mean of six others, and the anchors' colours are
placed round the colour circle, so that the unseen word's own colour comes out grey. Every fourth patch of every class
is bleached: it has lost its colour, and a regression towards word vectors can only answer with the mean of the family,
next to which the unseen word lies. Other words held out are mostly not found, as in life.

More noise comes on top: how faded the colour of a patch is, a small shift of it, and pixel noise. The vectors are those
of the installed GloVe wheel; nothing is downloaded.

Conventions: images are uint8 (H, W, 3), RGB; label maps uint8 (H, W), class ids in the order of `names`, 255 = void
along borders. The same count and seed give the same bytes; a smaller count gives the first of the same scenes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zsseg.classes import VOID
from zsseg.images import UInt8
from zsseg.vectors import WHEEL, read_vocabulary

TRAIN_COUNT = 960
VAL_COUNT = 40

Floats = NDArray[np.float64]
Card = tuple[int, bool]  # a class id, and whether the patch is bleached

# The unseen word amid each family -> its anchors, in the order of HUES. Each family has its own pattern.
FAMILIES: dict[str, tuple[str, ...]] = {
    "boat": ("pilot", "island", "canoe", "bus", "water", "sailor"),
    "copper": ("hydrogen", "silver", "quartz", "tin", "oil", "wheat"),
    "butter": ("oven", "bacon", "cookie", "carrot", "salt", "sugar"),
}
UNSEEN: tuple[str, ...] = tuple(FAMILIES)
ANCHORS: tuple[str, ...] = tuple(word for family in FAMILIES.values() for word in family)
NAMES: tuple[str, ...] = tuple(sorted(UNSEEN + ANCHORS))

# Red, green and blue of the anchors, as offsets from mid-grey: blue, green, cyan, red, magenta, yellow
HUES = ((-1, -1, 1), (-1, 1, -1), (-1, 1, 1), (1, -1, -1), (1, -1, 1), (1, 1, -1))
SHARPNESS = 9.0  # of the softmax over cosines; larger pulls every word towards its nearest anchor
FREQUENT = 20_000  # vectors are centred on the mean of this many words, as `embed-labels` does
SATURATION = 0.45  # colour offset of an anchor, of a range of 1
CONTRAST = 0.13  # of the pattern, likewise
BLEACHED = 4  # every fourth patch of a class has lost its colour, so that only its family can be told
FADE = (0.5, 1.1)  # the colour of the others is multiplied by a number from this range
SHIFT = 0.02  # standard deviation of what is added to a patch's colour, in units of SATURATION
WAVELENGTH = 8  # of the patterns, in pixels
PIXEL_NOISE = 0.015
DEALT = 5  # times that an unseen class is dealt in the validation scenes for each time that another is
BORDER = 1  # pixels of void on either side


def names() -> tuple[str, ...]:
    """Return the class names; the position of a name is its id."""
    return NAMES


def word_vectors() -> Floats:
    """Return the centred unit vectors of the classes in the order of `names`, float64 (C, 50)."""
    vocabulary = read_vocabulary(WHEEL, wanted=NAMES, frequent=FREQUENT)
    frequent = np.asarray(vocabulary.frequent(FREQUENT)[1], dtype=np.float64)
    centre = _unit(frequent).mean(axis=0)
    return _unit(np.stack([vocabulary.unit(name) for name in NAMES]) - centre)


def looks(vectors: Floats, anchors: Floats) -> Floats:
    """Map word vectors to looks: the smooth function that ties appearance to words.

    Args:
        vectors: Unit vectors of any words, (..., R).
        anchors: Unit vectors of `ANCHORS`, (A, R).

    Returns:
        (..., 3 + families): offsets of red, green and blue from mid-grey in units of `SATURATION`, then the strength of
        each family's pattern, 0 to 1.
    """
    weights = np.exp(SHARPNESS * (vectors @ anchors.T - 1))
    blended: Floats = (weights / weights.sum(axis=-1, keepdims=True)) @ anchor_looks()
    colour, pattern = blended[..., :3], blended[..., 3:]
    # Mixed colours are muted and pure ones stay; a pattern comes out clearly or hardly
    muted = colour * (colour**2).mean(axis=-1, keepdims=True)
    return np.concatenate([muted, pattern**2 * (3 - 2 * pattern)], axis=-1)


def anchor_looks() -> Floats:
    """Return the literal looks of `ANCHORS`, (A, 3 + families)."""
    count = len(FAMILIES)
    return np.array([(*hue, *pattern) for pattern in np.eye(count) for hue in HUES], dtype=np.float64)


def class_looks(vectors: Floats) -> Floats:
    """Return the look of every class before noise, (C, 3 + families).

    Args:
        vectors: Word vectors of the classes in the order of `names`, as `word_vectors` returns them.
    """
    # Rounded, so that the last bits of a platform's matrix product never reach a pixel.
    return looks(vectors, vectors[[NAMES.index(word) for word in ANCHORS]]).round(4)


def scenes(count: int, seed: int) -> Iterator[tuple[str, UInt8, UInt8]]:
    """Draw scenes: `TRAIN_COUNT` for training first, then `VAL_COUNT`.

    Args:
        count: How many.
        seed: Of everything that is left to chance.

    Yields:
        Id, image (H, W, 3) and label map (H, W); sizes vary a little.
    """
    looks_of_classes = class_looks(word_vectors())
    decks = _deck(np.random.default_rng([seed, 0]), 1), _deck(np.random.default_rng([seed, 2]), DEALT)
    for index in range(count):
        rng = np.random.default_rng([seed, 1, index])
        dealt = [next(decks[index >= TRAIN_COUNT]) for _ in range(rng.integers(3, 6))]
        image, label_map = _scene(dealt, looks_of_classes, rng)
        yield f"scene-{index:04d}", image, label_map


def draw_cloth(look: Floats, size: tuple[int, int], rng: np.random.Generator, *, bleached: bool = False) -> Floats:
    """Draw one patch of cloth with its share of noise, but for the pixel noise.

    Args:
        look: (3 + families,).
        size: (height, width).
        rng: Where the randomness comes from.
        bleached: Whether it has lost its colour.

    Returns:
        float64 (height, width, 3), mid-grey = 0.5.
    """
    shift = SHIFT * rng.standard_normal(3)
    fade = 0.0 if bleached else rng.uniform(*FADE)
    colour = 0.5 + SATURATION * (fade * look[:3] + shift)
    shade = sum(strength * pattern for strength, pattern in zip(look[3:], _patterns(size), strict=True))
    return colour + CONTRAST * np.asarray(shade)[..., None]


def _patterns(size: tuple[int, int]) -> tuple[Floats, ...]:
    """Return upright stripes, level stripes and dots, each (height, width) within about -1 to 1, mean about 0."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    upright, level = np.cos(2 * np.pi * x / WAVELENGTH), np.cos(2 * np.pi * y / WAVELENGTH)
    return np.tanh(2 * upright), np.tanh(2 * level), np.tanh(4 * upright * level)


def _scene(dealt: list[Card], look: Floats, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Draw a scene of the dealt patches; `look` is that of every class."""
    size = int(rng.integers(96, 129)), int(rng.integers(96, 129))
    regions = _layout(size, len(dealt), rng)
    image = np.zeros((*size, 3))
    for region, (index, bleached) in enumerate(dealt):
        inside = regions == region
        image[inside] = draw_cloth(look[index], size, rng, bleached=bleached)[inside]
    image += PIXEL_NOISE * rng.standard_normal(image.shape)
    label_map = np.array([index for index, _ in dealt], dtype=np.uint8)[regions]
    label_map[_borders(regions)] = VOID
    return (image * 255).round().clip(0, 255).astype(np.uint8), label_map


def _layout(size: tuple[int, int], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which patch each pixel belongs to, (height, width): two split by a wavy line, blobs on top."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    y, x = y - size[0] / 2, x - size[1] / 2
    angle = rng.uniform(0, np.pi)
    along, across = y * np.cos(angle) - x * np.sin(angle), x * np.cos(angle) + y * np.sin(angle)
    wave = rng.uniform(3, 9) * np.sin(along / rng.uniform(9, 18) + rng.uniform(0, 2 * np.pi))
    regions: NDArray[np.int64] = (across + wave > rng.uniform(-15, 15)).astype(np.int64)
    for region in range(2, count):
        regions[_blob(y, x, rng)] = region
    return regions


def _blob(y: Floats, x: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the inside of a wavy ellipse somewhere about the middle, (height, width)."""
    y = (y - y.max() * rng.uniform(-0.6, 0.6)) * rng.uniform(0.8, 1.25)
    x = x - x.max() * rng.uniform(-0.6, 0.6)
    angle = np.arctan2(y, x)
    outline = 1 + sum(rng.uniform(0, 0.14) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi)) for waves in (2, 3, 5))
    inside: NDArray[np.bool_] = np.hypot(y, x) < rng.uniform(20, 34) * outline
    return inside


def _borders(regions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the pixels within `BORDER` of another patch, (height, width)."""
    padded = np.pad(regions, BORDER, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * BORDER + 1, 2 * BORDER + 1))
    borders: NDArray[np.bool_] = (windows != regions[..., None, None]).any(axis=(2, 3))
    return borders


def _deck(rng: np.random.Generator, unseen: int) -> Iterator[Card]:
    """Deal for ever, in every round each class once, and each unseen one `unseen` times; bleached in fixed turn."""
    cards = [index for index, name in enumerate(NAMES) for _ in range(unseen if name in UNSEEN else 1)]
    times = np.arange(len(NAMES))  # so that not all classes are bleached in the same round
    while True:
        for index in rng.permutation(cards).tolist():
            times[index] += 1
            yield index, bool(times[index] % BLEACHED == 0)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
