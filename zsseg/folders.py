"""Folders as a source: the VOC layout, or images/ beside masks/."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zsseg.classes import VOC_NAMES, VOID
from zsseg.errors import DataError
from zsseg.images import IMAGE_SUFFIXES
from zsseg.sources import Pair, Source, lines, listed, read_text

logger = logging.getLogger(__name__)

LAYOUTS = (("JPEGImages", "SegmentationClass"), ("images", "masks"))
LIST_FOLDERS = ("ImageSets/Segmentation", ".")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
MAX_CLASSES = VOID  # ids 0 to 254


def folder_source(root: Path, *, val_fraction: float, seed: int) -> Source:
    """Describe a folder of images and label maps.

    `root`, or the one folder inside it, holds JPEGImages/ and SegmentationClass/, or images/ and masks/. Lists are
    sought in ImageSets/Segmentation/ and in the folder itself: train.txt and val.txt are kept as they are. Where only
    one of them exists the other partition is empty, and images that no list names are not used. With neither,
    trainval.txt or else every file is split by the seed. classes.txt names the classes, one a line in index
    order; without it the VOC layout means VOC's 21 classes.

    Args:
        root: The folder.
        val_fraction: Share of the images that goes to val where there are no lists, 0 up to but not including 1.
        seed: Of that split.

    Raises:
        DataError: The layout is not found, or a list or classes.txt cannot be used.
    """
    base, image_folder, label_folder = _layout(root)
    names = _class_names(base, image_folder)
    images, label_maps = _by_id(base / image_folder), _by_id(base / label_folder)
    train_list, val_list = _list_file(base, "train"), _list_file(base, "val")
    if train_list or val_list:
        train, val, bad = listed(*_ids(train_list, base), *_ids(val_list, base))
        _note_single_list(train_list, val_list)
    else:
        both_list = _list_file(base, "trainval")
        ids, list_name = _ids(both_list, base) if both_list else (tuple(sorted({*images, *label_maps})), "")
        ids, _, bad = listed(ids, list_name, (), "")
        train, val = _split(ids, val_fraction, np.random.default_rng(seed))

    def read(photo_id: str) -> Pair:
        image = _only(images, photo_id, base / image_folder, "image")
        label_map = _only(label_maps, photo_id, base / label_folder, "label map")
        if label_map.suffix.lower() in LOSSY_SUFFIXES:
            raise DataError(
                f"{_relative(label_map, base)}: {label_map.suffix} does not keep class ids exactly, expected a PNG"
            )
        return Pair(
            _relative(image, base), _file_bytes(image, base), _relative(label_map, base), _file_bytes(label_map, base)
        )

    return Source(names, train, val, read, bad)


def _layout(root: Path) -> tuple[Path, str, str]:
    """Find the folder that holds images and label maps; return it with the names of the two."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the data set's folder with --root")
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012", *_only_folders(root)):
        for images, label_maps in LAYOUTS:
            if (base / images).is_dir() and (base / label_maps).is_dir():
                return base, images, label_maps
    raise DataError(
        f"{root}: holds neither JPEGImages/ and SegmentationClass/ nor images/ and masks/, "
        "nor does the one folder in it; name another folder with --root"
    )


def _only_folders(root: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the only folder in `root`, the only one in that, and so on."""
    for _ in range(depth):
        folders = [path for path in _entries(root) if path.is_dir()]
        if len(folders) != 1:
            return
        root = folders[0]
        yield root


def _class_names(base: Path, image_folder: str) -> tuple[str, ...]:
    path = base / "classes.txt"
    if not path.is_file():
        if image_folder == LAYOUTS[0][0]:
            logger.info("no classes.txt in %s: taking VOC's 21 classes", base)
            return VOC_NAMES
        raise DataError(f"{path}: no such file; write the class names into it, one a line in index order")
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"classes.txt: line {number} is empty, expected a class name on every line")
        if name in seen:
            raise DataError(
                f"classes.txt: {name!r} is on lines {seen[name]} and {number}, expected every class once; rename one"
            )
        seen[name] = number
    if len(names) > MAX_CLASSES:
        raise DataError(f"classes.txt: {len(names)} classes, expected at most {MAX_CLASSES} (id 255 is void)")
    return tuple(names)


def _by_id(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of a folder by file name without suffix."""
    found: dict[str, list[Path]] = {}
    for path in _entries(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds, in order of the names, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); mend its permissions") from error


def _only(files: dict[str, list[Path]], photo_id: str, folder: Path, what: str) -> Path:
    """Return the one file of an id."""
    found = files.get(photo_id, [])
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{folder.name}/{found[1].name}: has the same id as {found[0].name}; rename or remove one")
    raise DataError(f"{folder.name}/{photo_id}: no {what} with this id (suffixes tried: {' '.join(IMAGE_SUFFIXES)})")


def _list_file(base: Path, name: str) -> Path | None:
    paths = (base / folder / f"{name}.txt" for folder in LIST_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def _ids(path: Path | None, base: Path) -> tuple[tuple[str, ...], str]:
    """Return the ids of a list, none where there is no list, and its name for messages."""
    return (lines(read_text(path)), _relative(path, base)) if path else ((), "")


def _note_single_list(train: Path | None, val: Path | None) -> None:
    if train is None or val is None:
        logger.info("no %s.txt: that partition is empty", "train" if train is None else "val")


def _split(ids: Sequence[str], fraction: float, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the validation images; both parts keep the order of `ids`, and neither is empty where that can be."""
    count = round(len(ids) * fraction)
    if len(ids) > 1 and fraction > 0:
        count = min(max(count, 1), len(ids) - 1)
    chosen = set(rng.permutation(len(ids))[:count].tolist())
    train = tuple(photo_id for index, photo_id in enumerate(ids) if index not in chosen)
    return train, tuple(ids[index] for index in sorted(chosen))


def _file_bytes(path: Path, base: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{_relative(path, base)}: cannot be read ({error.strerror or error})") from error


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()
