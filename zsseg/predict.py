"""`zsseg predict`: label the pixels of photos, and write predictions.h5 and two pictures a photo.

A data artifact stands for its validation
photos. For a photo `cat.jpg` the pictures are `cat.png`, the palette PNG of class ids at the photo's own size, and
`cat_overlay.png`, the classes' colours over the photo with a legend.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from zsseg.artifacts import Artifact, Writer, check_output, create, kind_of, open_artifact
from zsseg.config import PredictConfig
from zsseg.errors import ArtifactError, DataError
from zsseg.images import IMAGE_SUFFIXES, UInt8, decode_image, encode_label_map, encode_png
from zsseg.inference import Model, Prediction, chosen_calibration, load_model, predict_grid, score_image
from zsseg.pictures import legend_overlay
from zsseg.progress import SILENT, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Photo:
    """A photo to predict: a file, or one of a data artifact's."""

    source: str
    file: Path | None
    read: Callable[[], UInt8]


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
        images: Image files, folders and data artifacts; a folder stands for its image files, sorted, without its
            subfolders, a data artifact for its validation photos.
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
    check_output(out, force=force)
    with ExitStack() as opened:
        photos = _named(photo for path in images for photo in _expand(path, opened))
        if not photos:
            raise DataError(f"{', '.join(map(str, images))}: no validation photo to predict; name photos or a folder")
        loaded = load_model(model, device=config.device, precision=config.precision)
        _check_pictures(photos, pictures, force=force)
        drafts = Path(opened.enter_context(TemporaryDirectory(dir=pictures, prefix=".drafts-")))
        settings = {key: value for key, value in asdict(config).items() if key not in ("device", "skip_bad")}
        calibration = chosen_calibration(loaded, config.calibration, config.seen_bias)
        params = {**settings, "precision": loaded.precision, "calibrated_by": calibration.record()}
        shares, skipped = {}, []
        with create(out, "predictions", params=params, inputs={"model": loaded.digest}, force=force) as writer:
            for name, photo in progress.track(photos.items(), "predicting", len(photos)):
                try:
                    image = photo.read()
                except DataError as error:
                    if not config.skip_bad:
                        raise DataError(f"{error}; leave such files out with --skip-bad") from error
                    skipped.append((photo.source, str(error)))
                    continue
                grid = score_image(loaded, image, max_side=config.max_side)
                found = predict_grid(loaded, grid, calibration)
                _write_pictures(drafts, name, image, found, loaded)
                _append(writer, name, photo.source, found)
                shares[name] = _shares(found.areas)
            if not shares:
                raise DataError(f"none of the {len(photos)} files is a readable image (first: {skipped[0][1]})")
            writer.put("names", loaded.names)
        for draft in drafts.iterdir():  # now that nothing can fail any more, all at once
            draft.replace(pictures / draft.name)
    found_in = tuple(shares.values())
    return PredictSummary(out, pictures, loaded.names, loaded.unseen, tuple(shares), found_in, tuple(skipped))


def _expand(path: Path, opened: ExitStack) -> Iterator[tuple[str, _Photo]]:
    """Yield the photos that one argument stands for, with the id that each would like."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_photo(file))
        if not files:
            raise DataError(f"{path}: this folder holds no image file ({', '.join(IMAGE_SUFFIXES)})")
        for file in files:
            yield file.stem, _from_file(file)
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    elif path.suffix == ".h5":
        kind = kind_of(path)
        if kind != "data":
            raise DataError(f"{path}: holds {kind!r}, expected 'data'; name photos, folders of photos, or a data.h5")
        data = opened.enter_context(open_artifact(path, "data"))
        ids = data.strings("ids")
        for index in data.array("val").tolist():
            yield _file_name(ids[index]), _from_data(data, ids[index], index)
    else:
        yield path.stem, _from_file(path)


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _file_name(photo_id: str) -> str:
    """Return an id that is fit to name a file; an artifact from elsewhere may hold anything."""
    if photo_id in ("", ".", "..") or any(char in photo_id for char in "/\\\0"):
        raise DataError(f"the id {photo_id!r} of a photo cannot name a file; import the photos again with other names")
    return photo_id


def _from_file(file: Path) -> _Photo:
    return _Photo(file.name, file, lambda: decode_image(file, str(file)))


def _from_data(data: Artifact, name: str, index: int) -> _Photo:
    return _Photo(name, None, lambda: decode_image(data.bytes_at("images", index), name))


def _named(photos: Iterator[tuple[str, _Photo]]) -> dict[str, _Photo]:
    """Return the photos by a unique id: the one each would like, with a number where two share it."""
    named: dict[str, _Photo] = {}
    taken: set[Path] = set()
    for wanted, photo in photos:
        name, number = wanted, 2
        while name in named or not taken.isdisjoint(_targets(Path(), name)):
            name, number = f"{wanted}-{number}", number + 1
        named[name] = photo
        taken.update(_targets(Path(), name))
    return named


def _check_pictures(photos: dict[str, _Photo], pictures: Path, *, force: bool) -> None:
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{pictures}: cannot make this folder ({error.strerror}); name another with --pictures"
        ) from error
    taken = {photo.file.resolve() for photo in photos.values() if photo.file is not None}
    for target in (target for name in photos for target in _targets(pictures, name)):
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
    overlay.write_bytes(encode_png(drawn))


def _append(writer: Writer, name: str, source: str, found: Prediction) -> None:
    writer.append("ids", name)
    writer.append("sources", source)
    writer.append("label_maps", encode_label_map(found.label_map))
    writer.append("areas", found.areas)
    writer.append("mean_scores", found.mean_scores)


def _shares(areas: NDArray[np.int64]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-areas, kind="stable")
    return tuple((int(index), float(areas[index] / areas.sum())) for index in order if areas[index])
