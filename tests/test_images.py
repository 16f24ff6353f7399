"""Images and label maps: every common mode in, one line for what is no image, transforms that move both alike."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from zsseg.classes import VOC_NAMES, VOID
from zsseg.errors import DataError
from zsseg.images import (
    UInt8,
    augment,
    colour,
    decode_image,
    decode_label_map,
    encode_label_map,
    overlay,
    resize_image,
    resize_label_map,
    voc_palette,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode a PIL image."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def ramp(height: int = 6, width: int = 8) -> UInt8:
    """Return an RGB image whose pixels all differ."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, rows * 20 + columns], axis=2).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_rgb_png_and_jpeg() -> None:
    """PNG comes back exactly, JPEG nearly, and the source may be bytes or a path."""
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(ramp())), "a"), ramp())
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    jpeg = decode_image(encoded(Image.fromarray(flat), "JPEG"), "a")
    assert jpeg.shape == flat.shape
    assert np.abs(jpeg.astype(int) - flat).max() <= 4


def test_path_source(tmp_path: Path) -> None:
    """A file's path does as well as its bytes."""
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(ramp())))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", "a"), ramp())


def test_grey() -> None:
    """Grey is repeated in the three channels."""
    grey = ramp()[..., 1]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey)), "a"), np.stack([grey] * 3, axis=2))


def test_alpha_over_white() -> None:
    """RGBA and grey with alpha are laid over white."""
    alpha = np.array([[0, 128, 255]], dtype=np.uint8)
    rgba = np.dstack([np.full((1, 3, 3), (10, 20, 30), np.uint8), alpha])
    expected = 255 + (np.array([10, 20, 30]) - 255) * (alpha[..., None] / 255)
    assert np.abs(decode_image(encoded(Image.fromarray(rgba)), "a") - expected).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(np.full((1, 3), 40, np.uint8)), Image.fromarray(alpha)])
    expected = 255 + (40 - 255) * (alpha[..., None] / 255) + np.zeros(3)
    assert np.abs(decode_image(encoded(grey), "a") - expected).max() <= 1


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_palette(transparency: int | bytes) -> None:
    """A palette is resolved; its transparent entry is white."""
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(decode_image(encoded(image), "a"), [[[9, 8, 7], [6, 5, 4], [3, 2, 1]]])
    with_hole = decode_image(encoded(image, transparency=transparency), "a")
    np.testing.assert_array_equal(with_hole, [[[9, 8, 7], [255, 255, 255], [3, 2, 1]]])


def test_cmyk_jpeg() -> None:
    """A CMYK JPEG, as print shops make it, is converted."""
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode_image(encoded(cmyk, "JPEG", quality=95), "a")
    assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 257, 32896, 65535], [0, 1, 128, 255]), ([0, 100, 200, 255], [0, 0, 1, 1])],
)
def test_16_bit(values: list[int], expected: list[int]) -> None:
    """16 bits are scaled to 8 by their full range, so a dark photo stays dark."""
    image = Image.fromarray(np.array([values], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        found = decode_image(encoded(image, kind), "a")
        np.testing.assert_array_equal(found, np.array(expected, np.uint8)[None, :, None].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1000, 65535]], np.int32), [0, 4, 255]),
        (np.array([[0, 2**20, 2**21]], np.int32), [0, 128, 255]),
        (np.array([[-5, 100, 200]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 5.0, 10.0]], np.float32), [0, 128, 255]),
        (np.zeros((1, 3), np.float32), [0, 0, 0]),
    ],
)
def test_32_bit_and_float(values: Any, expected: list[int]) -> None:
    """32-bit and float files are stretched over their own range, NaN and negative values are black."""
    found = decode_image(encoded(Image.fromarray(values), "TIFF"), "a")
    np.testing.assert_array_equal(found[0, :, 0], expected)


def test_1_bit() -> None:
    """Black and white is 0 and 255."""
    bits = np.array([[True, False]])
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits)), "a"), [[[255] * 3, [0] * 3]])


UPRIGHT = {
    1: lambda array: array,
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """Each of the eight EXIF orientations comes upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_image(encoded(Image.fromarray(ramp()), exif=exif), "a")
    np.testing.assert_array_equal(found, UPRIGHT[orientation](ramp()))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\x00\xff\x01\x12", b"x" * 50])
def test_broken_exif(exif: bytes) -> None:
    """Damaged EXIF data neither warns nor keeps the photo from being read."""
    jpeg = encoded(Image.fromarray(ramp()), "JPEG", exif=exif)
    assert decode_image(jpeg, "a.jpg").shape == ramp().shape


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    """A single pixel and a single row are images."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(image)), "a"), image)


def test_animation(tmp_path: Path) -> None:
    """Of an animated GIF the first frame is taken, and the file is closed."""
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    (tmp_path / "a.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.gif", "a"), np.full((3, 4, 3), (255, 0, 0)))


def jpeg_cut() -> bytes:
    """Return the first half of a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    return jpeg[: len(jpeg) // 2]


def lying_png(width: int, height: int) -> bytes:
    """Return a tiny PNG whose header claims a huge size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BAD = {
    "truncated": jpeg_cut(),
    "cut png": encoded(Image.fromarray(ramp(64, 64)))[:60],
    "text": b"not an image, but words\n" * 10,
    "empty": b"",
    "bomb": lying_png(60_000, 60_000),
    "smaller bomb": lying_png(15_000, 15_000),
    "header lies a little": lying_png(300, 300),
    "zeros": b"\0" * 1000,
    "only the magic": b"\x89PNG\r\n\x1a\n",
    "jpeg magic": b"\xff\xd8\xff\xe0",
    "lab": encoded(Image.new("LAB", (4, 4)), "TIFF")[:-8],
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
@pytest.mark.parametrize("decode", [decode_image, decode_label_map])
def test_no_image(content: bytes, decode: Any, tmp_path: Path) -> None:
    """What is no image gives one line that names the file, from bytes and from a path."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for source in (content, path):
        with pytest.raises(DataError, match=r"^photo\.jpg: ") as caught:
            decode(source, "photo.jpg")
        assert str(caught.value).isprintable()
        assert "BytesIO" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("side", [7_100, 15_000, 60_000])
def test_bomb(side: int) -> None:
    """A photo above the bound is refused by its header, with the bound in the message."""
    with pytest.raises(DataError, match=r"^a: more than the 50,331,648 pixels that zsseg opens"):
        decode_image(lying_png(side, side), "a")


def test_missing_and_folder(tmp_path: Path) -> None:
    """A missing file and a folder are named."""
    with pytest.raises(DataError, match="a: no such file"):
        decode_image(tmp_path / "none.jpg", "a")
    with pytest.raises(DataError, match="a: not a readable image"):
        decode_image(tmp_path, "a")


def test_failure_after_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow raises while it turns or converts a decoded photo gives a line, too."""

    def fail(_: Image.Image, **__: Any) -> None:
        raise SyntaxError("not a TIFF file\n(header b'')")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    with pytest.raises(DataError, match=r"^a\.jpg: not a readable image \(not a TIFF file \(header"):
        decode_image(encoded(Image.fromarray(ramp()), "JPEG"), "a.jpg")


def test_label_map_modes() -> None:
    """Palette, 8-bit grey and 1-bit label maps hold class ids."""
    ids = np.array([[0, 1, 20], [255, 3, 0]], dtype=np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    np.testing.assert_array_equal(decode_label_map(encoded(palette), "a"), ids)
    np.testing.assert_array_equal(decode_label_map(encoded(Image.fromarray(ids)), "a"), ids)
    bits = decode_label_map(encoded(Image.fromarray(ids > 2)), "a")
    np.testing.assert_array_equal(bits, ids > 2)
    assert bits.dtype == np.uint8
    small = Image.fromarray(ids[:1] % 2)
    small.putpalette([0, 0, 0, 9, 9, 9])
    np.testing.assert_array_equal(decode_label_map(encoded(small, bits=1), "a"), ids[:1] % 2)


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (Image.fromarray(ramp()), "RGB"),
        (Image.new("RGBA", (2, 2)), "RGBA"),
        (Image.new("LA", (2, 2)), "LA"),
        (Image.fromarray(np.zeros((2, 2), np.uint16)), "I;16"),
    ],
)
def test_label_map_refused(image: Image.Image, mode: str) -> None:
    """Colours and 16-bit values are no class ids."""
    with pytest.raises(DataError, match=f"labels/a.png: label map of mode {mode}, expected one class id a pixel"):
        decode_label_map(encoded(image), "labels/a.png")


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_label_map_round_trip(height: int, width: int, seed: int) -> None:
    """A label map comes back from its PNG, whose bytes depend on it alone."""
    label_map = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    content = encode_label_map(label_map)
    np.testing.assert_array_equal(decode_label_map(content, "a"), label_map)
    assert encode_label_map(np.asfortranarray(label_map)) == content


def test_voc_colours() -> None:
    """The palette is VOC's, so that other tools show the same colours."""
    known = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "cow": (64, 128, 0), "person": (192, 128, 128)}
    for name, value in known.items():
        assert tuple(voc_palette()[VOC_NAMES.index(name)]) == value
    assert tuple(voc_palette()[VOC_NAMES.index("tvmonitor")]) == (0, 64, 128)
    assert tuple(voc_palette()[VOID]) == (224, 224, 192)
    assert len(np.unique(voc_palette(), axis=0)) == 256
    np.testing.assert_array_equal(colour(np.array([[1, VOID]], np.uint8)), [[(128, 0, 0), (224, 224, 192)]])
    shown = Image.open(io.BytesIO(encode_label_map(np.array([[15]], np.uint8)))).convert("RGB").getpixel((0, 0))
    assert shown == (192, 128, 128)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_overlay(seed: int, opacity: float) -> None:
    """Void pixels keep the photo's colour, classes take the palette's by the opacity, opacity 0 changes nothing."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    label_map = rng.choice(np.array([0, 1, 15, VOID], np.uint8), (9, 7))
    before = image.copy()
    mixed = overlay(image, label_map, opacity=opacity)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(mixed[label_map == VOID], image[label_map == VOID])
    person = label_map == 15
    expected = image[person] * (1 - opacity) + np.array([192, 128, 128]) * opacity
    assert np.abs(mixed[person] - expected).max(initial=0) <= 0.51
    np.testing.assert_array_equal(overlay(image, label_map, opacity=0.0), image)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(1, 40), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_resize(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    """Resizing gives the size asked for; a label map never gets an id that it did not hold."""
    rng = np.random.default_rng(seed)
    label_map = rng.choice(np.array([0, 7, 20, VOID], np.uint8), (height, width))
    resized = resize_label_map(label_map, (new_height, new_width))
    assert resized.shape == (new_height, new_width)
    assert set(np.unique(resized)) <= set(np.unique(label_map))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    larger = resize_image(image, (new_height, new_width))
    assert larger.shape == (new_height, new_width, 3)
    assert larger.min() >= image.min()
    assert larger.max() <= image.max()


def test_resize_to_the_same_size() -> None:
    """The same size changes nothing."""
    np.testing.assert_array_equal(resize_image(ramp(), (6, 8)), ramp())
    np.testing.assert_array_equal(resize_label_map(ramp()[..., 0], (6, 8)), ramp()[..., 0])


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 7, 32, 64]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_augment(height: int, width: int, crop: int, seed: int) -> None:
    """The result is a square; ids are the input's or void, padding is void and grey, the generator alone decides."""
    rng = np.random.default_rng(seed)
    label_map = rng.choice(np.array([0, 7, 20], np.uint8), (height, width))
    image = np.full((height, width, 3), 200, np.uint8)
    before = label_map.copy(), image.copy()
    pixels, labels = augment(image, label_map, crop, np.random.default_rng(seed))
    assert (pixels.shape, pixels.dtype) == ((crop, crop, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((crop, crop), np.uint8)
    assert set(np.unique(labels)) <= {*np.unique(label_map), VOID}
    np.testing.assert_array_equal(labels == VOID, (pixels == 127).all(axis=2))
    np.testing.assert_array_equal(labels != VOID, (pixels == 200).all(axis=2))
    again = augment(image, label_map, crop, np.random.default_rng(seed))
    np.testing.assert_array_equal(again[0], pixels)
    np.testing.assert_array_equal(again[1], labels)
    np.testing.assert_array_equal(label_map, before[0])
    np.testing.assert_array_equal(image, before[1])


@given(st.integers(20, 120), st.integers(20, 120), st.sampled_from([32, 64, 96]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_augment_moves_both(height: int, width: int, crop: int, seed: int) -> None:
    """Image and label map are scaled, mirrored and cut alike: ids painted as colours stay on their labels."""
    ids = np.random.default_rng(seed).integers(0, 5, (-(-height // 10), -(-width // 10)), dtype=np.uint8)
    label_map = ids.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    image = (label_map * 50)[..., None].repeat(3, axis=2)
    pixels, labels = augment(image, label_map, crop, np.random.default_rng(seed))
    inner = np.zeros_like(labels, dtype=bool)  # pixels whose neighbours within 2 have one label: away from borders
    inner[2:-2, 2:-2] = True
    for down in range(-2, 3):
        for right in range(-2, 3):
            inner &= np.roll(labels, (down, right), axis=(0, 1)) == labels
    inner &= labels != VOID
    np.testing.assert_array_equal(pixels[inner], (labels[inner] * 50)[:, None].repeat(3, axis=1))


def test_augment_varies() -> None:
    """Over many draws the scale, the mirror and the place all vary."""
    label_map = np.zeros((40, 40), np.uint8)
    label_map[:, 20:] = 1
    image = np.zeros((40, 40, 3), np.uint8)
    rng = np.random.default_rng(0)
    results = [augment(image, label_map, 64, rng)[1] for _ in range(60)]
    areas = [int((labels != VOID).sum()) for labels in results]
    assert 20 * 20 <= min(areas) < 27 * 27
    assert 53 * 53 < max(areas) <= 60 * 60
    mirrored = [labels[:, (labels != VOID).any(axis=0)][32, 0] == 1 for labels in results]
    assert 15 < sum(mirrored) < 45
