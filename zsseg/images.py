"""Decode and encode images and label maps, and transform the two together.

Conventions: an image is uint8 (H, W, 3), RGB, upright (EXIF orientation applied); a label map is uint8 (H, W)
of class ids with 255 = void. Sizes are (height, width). Networks take float (N, 3, H, W) from `normalise`.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zsseg.classes import VOID
from zsseg.errors import DataError

MAX_PIXELS = 48 << 20  # 8192 × 6144; decoded in well under 1 GiB, whatever the format
STRIP = 1 << 20  # pixels that are converted at a time
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Whatever a file is called, Pillow may try no other format: some (EPS) run programs.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")

# Threads decode large images one after the other, for the memory's sake.
_LARGE, _one_large_at_a_time = 1 << 24, threading.Lock()

UInt8 = NDArray[np.uint8]


def decode_image(source: bytes | Path, name: str) -> UInt8:
    """Decode an image of any common mode to upright RGB.

    Greyscale is repeated, alpha is laid over white, CMYK is converted, 16-bit is scaled to 8.

    Args:
        source: The file's bytes, or its path.
        name: How to call the image in an error.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: It is no image, is truncated, or has more than `MAX_PIXELS` pixels.
    """
    with _opened(source, name) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def upright_rgb(image: Image.Image) -> UInt8:
    """Bring a PIL image of any mode to upright RGB, uint8 (H, W, 3); see `decode_image`."""
    return _rgb(ImageOps.exif_transpose(image))


def decode_label_map(source: bytes | Path, name: str) -> UInt8:
    """Decode a label map: a palette or 8-bit greyscale PNG whose values are class ids.

    Raises:
        DataError: It is no image, or holds colours instead of one class id a pixel.
    """
    with _opened(source, name) as image:
        if image.mode not in ("P", "L", "1"):
            raise DataError(
                f"{name}: label map of mode {image.mode}, expected one class id a pixel (palette or 8-bit grey PNG)"
            )
        return np.array(image, dtype=np.uint8)


def encode_label_map(label_map: UInt8) -> bytes:
    """Encode a label map as a palette PNG with VOC's colours; the bytes depend on the input alone."""
    image = Image.fromarray(label_map)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def encode_png(picture: UInt8, *, effort: int = 6) -> bytes:
    """Encode an RGB picture as PNG; the bytes depend on the input alone.

    Args:
        picture: uint8 (H, W, 3).
        effort: zlib's, 0 to 9; 1 is four times as quick as 6, and photos come out as small.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=effort)
    return buffer.getvalue()


def voc_palette() -> UInt8:
    """Return VOC's colour of each class id, uint8 (256, 3).

    The three low bits of the id become the high bits of red, green and blue, the next three the next
    lower bits, and so on (PASCAL VOC 2012 development kit, VOClabelcolormap).
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (ids >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


def colour(label_map: UInt8) -> UInt8:
    """Return the label map in VOC's colours, uint8 (H, W, 3)."""
    coloured: UInt8 = voc_palette()[label_map]
    return coloured


def overlay(image: UInt8, label_map: UInt8, *, opacity: float = 0.55, colours: UInt8 | None = None) -> UInt8:
    """Lay the label map's colours over the image; background (black) and void leave it visible.

    Args:
        image: uint8 (H, W, 3).
        label_map: uint8 (H, W).
        opacity: Of the colours, 0 to 1.
        colours: Of each class id, uint8 (256, 3); None: VOC's.

    Returns:
        uint8 (H, W, 3).
    """
    colours = voc_palette() if colours is None else colours
    strength = np.where(colours.any(axis=1), opacity, 0.35 * opacity).astype(np.float32)
    strength[VOID] = 0.0
    alpha = strength[label_map][..., None]
    mixed = image * (1 - alpha) + colours[label_map] * alpha
    return mixed.round().astype(np.uint8)


def resize_image(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize to (height, width), bilinear with antialiasing."""
    if image.shape[:2] == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_label_map(label_map: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize to (height, width), nearest."""
    if label_map.shape == tuple(size):
        return label_map
    return np.array(Image.fromarray(label_map).resize((size[1], size[0]), Image.Resampling.NEAREST))


def augment(image: UInt8, label_map: UInt8, crop: int, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Scale by 0.5 to 1.5, mirror half the time, and cut or pad to a square, image and label map alike.

    Args:
        image: uint8 (H, W, 3).
        label_map: uint8 (H, W).
        crop: Side of the square in pixels.
        rng: Where the randomness comes from.

    Returns:
        uint8 (crop, crop, 3), padded with mid-grey, and uint8 (crop, crop), padded with void.
    """
    height, width = label_map.shape
    scale = rng.uniform(0.5, 1.5)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image, label_map = resize_image(image, size), resize_label_map(label_map, size)
    if rng.random() < 0.5:
        image, label_map = image[:, ::-1], label_map[:, ::-1]
    top, left = (int(rng.integers(0, max(length - crop, 0) + 1)) for length in size)
    image, label_map = (
        image[top : top + crop, left : left + crop],
        label_map[top : top + crop, left : left + crop],
    )
    image_out = np.full((crop, crop, 3), 127, dtype=np.uint8)
    label_out = np.full((crop, crop), VOID, dtype=np.uint8)
    down, right = (int(rng.integers(0, crop - length + 1)) for length in label_map.shape)
    window = slice(down, down + label_map.shape[0]), slice(right, right + label_map.shape[1])
    image_out[window], label_out[window] = image, label_map
    return image_out, label_out


@contextlib.contextmanager
def _opened(source: bytes | Path, name: str) -> Iterator[Image.Image]:
    """Open and fully decode, so that a truncated file is found here; what fails inside is a DataError, too."""
    try:
        with warnings.catch_warnings():
            # Pillow's versions warn or raise above its bound; here it is the same error always.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                with _one_large_at_a_time if width * height > _LARGE else contextlib.nullcontext():
                    image.load()
                    yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}: more than the {MAX_PIXELS:,} pixels that zsseg opens; make it smaller first"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a readable image (of no known format)") from error
    except Exception as error:  # Pillow's decoders raise many kinds; each means the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not a readable image ({reason})") from error


def _rgb(image: Image.Image) -> UInt8:
    """Convert an image of any mode to uint8 (H, W, 3), strip by strip: copies of all of it would fill the memory."""
    width, height = image.size
    rows = max(1, STRIP // max(width, 1))
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    top = max((float(_deep_values(image.crop(box)).max(initial=0)) for box in boxes), default=0.0) if deep else 0.0
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    for box in boxes:
        strip = image.crop(box) if len(boxes) > 1 else image
        rgb[box[1] : box[3]] = np.asarray(_scaled(strip, top) if deep else _to_rgb(strip))
    return rgb


def _deep_values(image: Image.Image) -> NDArray[np.floating[Any]]:
    """Return the values of an image of more than 8 bits; what is no number is 0."""
    values: NDArray[np.floating[Any]] = np.nan_to_num(
        np.asarray(image, dtype=np.float64 if image.mode == "I" else np.float32)
    )
    return values


def _scaled(image: Image.Image, top: float) -> Image.Image:
    """Bring a part of an image of more than 8 bits, whose largest value is `top`, to RGB."""
    top = max(top, 1.0)
    # a 32-bit or float file is stretched over its own range, but one of 16 bits may arrive as 32
    if image.mode.startswith("I;16") or (image.mode == "I" and 255 < top <= 65535):
        top = 65535.0
    return Image.fromarray((_deep_values(image).clip(0, top) / top * 255.0).round().astype(np.uint8)).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # `convert` would copy it
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
