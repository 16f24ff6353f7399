"""`zsseg predict`: label the pixels of photos, and write predictions.h5 and two pictures a photo.

For a photo `cat.jpg` the pictures are `cat.png`, the palette PNG of class ids at the photo's own size, and
`cat_overlay.png`, the classes' colours over the photo with a legend.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.artifacts import Writer, check_output, create
from zsseg.config import PredictConfig
from zsseg.errors import ArtifactError, DataError
from zsseg.images import IMAGE_SUFFIXES, UInt8, decode_image, encode_label_map
from zsseg.inference import Model, Prediction, load_model, predict_grid, score_image
from zsseg.pictures import legend_overlay
from zsseg.progress import SILENT, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictSummary:
    """What `predict` found.

    Attributes:
        shares: For each photo, the classes found in it and their share of its pixels, largest first.
        skipped: Names of the files that could not be read, with the reason.
    """

    path: Path
    pictures: Path
    names: tuple[str, ...]
    unseen: tuple[int, ...]
    ids: tuple[str, ...]
    shares: tuple[tuple[tuple[int, float], ...], ...]
    skipped: tuple[tuple[str, str], ...]


def predict(
    images: Sequence[Path],
    model: Path,
    out: Path,
    pictures: Path,
    config: PredictConfig,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> PredictSummary:
    """Label the pixels of files and of the image files in folders.

    Args:
        images: Files and folders; a folder stands for its image files, sorted, without its subfolders.
        model: model.h5.
        out: predictions.h5.
        pictures: Folder of the pictures; made where missing.
        config: Settings.
        force: Replace existing files.
        progress: Told of each photo.

    Raises:
        DataError: A file is missing or is no image, unless `config.skip_bad`; or none is left.
        ArtifactError: The model cannot be used, or an output is refused.
    """
    files = _expand(images)
    check_output(out, force=force)
    _check_pictures(files, pictures, force=force)
    loaded = load_model(model, device=config.device, precision=config.precision)
    settings = {key: value for key, value in asdict(config).items() if key not in ("device", "skip_bad")}
    params = {**settings, "precision": loaded.precision}
    shares, skipped, done = [], [], []
    with create(out, "predictions", params=params, inputs={"model": loaded.digest}, force=force) as writer:
        for name, file in progress.track(files.items(), "predicting", len(files)):
            try:
                image = decode_image(file, str(file))
            except DataError as error:
                if not config.skip_bad:
                    raise DataError(f"{error}; leave such files out with --skip-bad") from error
                skipped.append((file.name, str(error)))
                continue
            found = predict_grid(
                loaded, score_image(loaded, image, max_side=config.max_side), seen_bias=config.seen_bias
            )
            _write_pictures(pictures, name, image, found, loaded)
            _append(writer, name, file, found)
            shares.append(_shares(found.areas))
            done.append(name)
        if not done:
            raise DataError(f"none of the {len(files)} files is a readable image (first: {skipped[0][1]})")
        writer.put("names", loaded.names)
    return PredictSummary(out, pictures, loaded.names, loaded.unseen, tuple(done), tuple(shares), tuple(skipped))


def _expand(images: Sequence[Path]) -> dict[str, Path]:
    """Return the files by a unique id: the file's name without suffix, with a number where two share it."""
    files: list[Path] = []
    for path in images:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{path}: this folder holds no image file ({', '.join(IMAGE_SUFFIXES)})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    named: dict[str, Path] = {}
    for file in files:
        name, number = file.stem, 2
        while name in named:
            name, number = f"{file.stem}-{number}", number + 1
        named[name] = file
    return named


def _check_pictures(files: dict[str, Path], pictures: Path, *, force: bool) -> None:
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{pictures}: cannot make this folder ({error.strerror}); name another with --pictures"
        ) from error
    taken = {file.resolve() for file in files.values()}
    for target in (target for name in files for target in _targets(pictures, name)):
        if target.resolve() in taken:
            raise ArtifactError(f"{target}: a picture would overwrite this photo; name another folder with --pictures")
        if target.exists() and not force:
            raise ArtifactError(
                f"{target}: exists already; add --force to replace it, or name another folder with --pictures"
            )


def _targets(pictures: Path, name: str) -> tuple[Path, Path]:
    return pictures / f"{name}.png", pictures / f"{name}_overlay.png"


def _write_pictures(pictures: Path, name: str, image: UInt8, found: Prediction, model: Model) -> None:
    label_map, overlay = _targets(pictures, name)
    label_map.write_bytes(encode_label_map(found.label_map))
    drawn = legend_overlay(image, found.label_map, model.names, unseen=model.unseen)
    Image.fromarray(drawn).save(overlay)


def _append(writer: Writer, name: str, file: Path, found: Prediction) -> None:
    writer.append("ids", name)
    writer.append("sources", file.name)
    writer.append("label_maps", encode_label_map(found.label_map))
    writer.append("areas", found.areas)
    writer.append("mean_scores", found.mean_scores)


def _shares(areas: NDArray[np.int64]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-areas, kind="stable")
    return tuple((int(index), float(areas[index] / areas.sum())) for index in order if areas[index])
