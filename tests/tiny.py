"""A data set of a few generated photos and how to run a command on it; shared by several test files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from zsseg.cli import app

NAMES = ("background", "cat", "dog", "cow", "sheep")
SIDE = 64
COLOURS = ((40, 40, 40), (220, 60, 50), (60, 190, 70), (60, 90, 220), (220, 210, 80))
TRAIN = ("one", "two", "three", "four")
VAL = ("five", "six")


def label_map(ids: Sequence[int]) -> np.ndarray:
    """Return a label map whose four quarters show the given classes, with a void line across."""
    half = SIDE // 2
    top = np.repeat(np.array(ids[:2], dtype=np.uint8), half)
    bottom = np.repeat(np.array(ids[2:], dtype=np.uint8), half)
    labels = np.concatenate([np.tile(top, (half, 1)), np.tile(bottom, (half, 1))])
    labels[half] = 255
    return labels


def photo(labels: np.ndarray, *, seed: int) -> Image.Image:
    """Return a noisy photo with one colour a class."""
    rng = np.random.default_rng(seed)
    colours = np.zeros((256, 3))
    colours[: len(COLOURS)] = COLOURS
    noisy = colours[labels] + rng.normal(0, 12, (*labels.shape, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_folder(root: Path, *, names: Sequence[str] = NAMES, quarters: dict[str, Sequence[int]] | None = None) -> Path:
    """Write a data set of six photos in the images/ + masks/ layout, four for training and two for validation."""
    maps = quarters or {
        "one": (0, 1, 2, 0), "two": (1, 0, 0, 2), "three": (0, 3, 1, 2), "four": (4, 0, 2, 1),
        "five": (0, 1, 3, 2), "six": (4, 3, 0, 1),
    }  # fmt: skip
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for seed, (name, ids) in enumerate(maps.items()):
        labels = label_map(ids)
        photo(labels, seed=seed).save(root / "images" / f"{name}.png")
        Image.fromarray(labels).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    (root / "train.txt").write_text("\n".join(name for name in maps if name in TRAIN) + "\n")
    (root / "val.txt").write_text("\n".join(name for name in maps if name in VAL) + "\n")
    return root


def zsseg(*words: object, expect: int | None = 0) -> Any:
    """Run a command and check its exit code; the result holds stdout and stderr apart."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert expect is None or result.exit_code == expect, f"exit code {result.exit_code}: {result.output}"
    return result
