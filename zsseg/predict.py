"""`zsseg predict`: label the pixels of photos, and write predictions.h5 and two pictures a photo.

A data artifact stands for its validation photos. For a photo `cat.jpg` the pictures are `cat.png`, the palette PNG of
class ids at the photo's own size, and `cat_overlay.png`, the classes' colours over the photo with a legend.

What is predicted: the model's classes; any words, alone or beside them; or regions, each read out as the nearest words
of a vocabulary (`open_vocabulary`).
"""

from __future__ import annotations

import functools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zsseg import distributed
from zsseg.artifacts import Artifact, Writer, check_output, create, drafts, kind_of, open_artifact
from zsseg.calibration import Calibration
from zsseg.classes import BACKGROUND, VOID
from zsseg.config import PredictConfig
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.hardware import keep_freed_memory
from zsseg.images import IMAGE_SUFFIXES, UInt8, decode_image, encode_label_map, encode_png
from zsseg.inference import Model, Prediction, chosen_calibration, load_model, predict_grid, score_image
from zsseg.open_vocabulary import Region, new_words, read_regions, with_words
from zsseg.pictures import legend_overlay
from zsseg.progress import SILENT, Progress
from zsseg.recipe import Float32, Places, embed_words, frequent_words, read_recipe
from zsseg.threads import side_by_side
from zsseg.winners import ScoreGrid

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
        path: predictions.h5.
        pictures: Folder of the pictures.
        names: Class names in index order.
        unseen: Ids of the unseen classes, added words among them.
        ids: Photos in their order.
        sources: Their file names.
        shares: For each photo, the classes found in it and their share of its pixels, largest first.
        scores: For each photo, the mean score of the pixels of each of these.
        readings: For each photo its regions and their nearest words; empty where none was read out.
        skipped: Names of the files that could not be read, with the reason.
    """

    path: Path
    pictures: Path
    names: tuple[str, ...]
    unseen: tuple[int, ...]
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    shares: tuple[tuple[tuple[int, float], ...], ...]
    scores: tuple[tuple[float, ...], ...]
    readings: tuple[tuple[Region, ...], ...]
    skipped: tuple[tuple[str, str], ...]


class _Labeller(Protocol):
    """What says which class each pixel of a photo is; its names may grow from photo to photo."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def unseen(self) -> Sequence[int]: ...

    @property
    def calibration(self) -> Calibration | None: ...

    @property
    def grows(self) -> bool:
        """Whether it numbers names as they come up, so that photos must go through it one after the other."""
        ...

    def label(self, image: UInt8) -> tuple[Prediction, tuple[Region, ...]]:
        """Label a photo; with the regions that were read out, if any."""
        ...


def predict(
    images: Sequence[Path],
    model: Path,
    out: Path,
    pictures: Path,
    config: PredictConfig,
    *,
    labels: Path | None = None,
    vectors: Sequence[Path] = (),
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
        labels: The labels artifact of a model that does not carry its recipe; only to predict words.
        vectors: Files of word vectors that the model's recipe names; only to predict words.
        force: Replace existing files.
        progress: Told of each photo.

    Raises:
        DataError: A file is missing or is no image, unless `config.skip_bad`; or none is left.
        ArtifactError: The model cannot be used, or an output is refused.
        SettingError: A word is unknown, or vectors that the model's recipe names are not there.
    """
    check_output(out, force=force)
    keep_freed_memory()
    with ExitStack() as opened:
        photos = _named(photo for path in images for photo in _expand(path, opened))
        if not photos:
            raise DataError(f"{', '.join(map(str, images))}: no validation photo to predict; name photos or a folder")
        _check_pictures(photos, pictures, force=force)
        loaded = load_model(model, device=config.device, precision=config.precision)
        labeller = _labeller(loaded, model, config, labels, Places(tuple(vectors), (model.parent, Path())))
        distributed.check_same("photos and model", (list(photos), loaded.digest, loaded.precision))
        unfinished = _shared_drafts(pictures, out, opened)
        params = _params(config, loaded, labeller)

        def label(named: tuple[str, _Photo]) -> tuple[dict[str, Any], bytes]:
            name, photo = named
            try:
                image = photo.read()
            except DataError as error:
                if not config.skip_bad:
                    raise DataError(f"{error}; leave such files out with --skip-bad") from error
                return {"source": photo.source, "skipped": str(error)}, b""
            prediction, regions = labeller.label(image)
            _write_pictures(unfinished, name, image, prediction, labeller.unseen)
            areas, scores = prediction.areas.tolist(), prediction.mean_scores.tolist()
            record = {"name": name, "source": photo.source, "areas": areas, "scores": scores, "regions": regions}
            return record, encode_label_map(prediction.label_map)

        found: list[tuple[str, str, Prediction, tuple[Region, ...]]] = []
        skipped: list[tuple[str, str]] = []
        one_by_one = distributed.world() > 1 or labeller.grows
        each = distributed.in_order if one_by_one else functools.partial(side_by_side, device=loaded.device)
        labelled = each(list(photos.items()), label)
        if not distributed.is_main():
            deque(labelled, maxlen=0)
            return _summary(found, labeller, out, pictures, skipped)
        with (
            create(out, "predictions", params=params, inputs={"model": loaded.digest}, force=force) as writer,
            closing(labelled),
        ):
            for record, encoded in progress.track(labelled, "predicting", len(photos)):
                if "skipped" in record:
                    skipped.append((record["source"], record["skipped"]))
                    continue
                writer.append("label_maps", encoded)
                found.append((record["name"], record["source"], _counted(record, labeller), tuple(record["regions"])))
            if not found:
                raise DataError(f"none of the {len(photos)} files is a readable image (first: {skipped[0][1]})")
            _put(writer, found, labeller.names, read_out=config.vocabulary is not None)
        for draft in unfinished.iterdir():  # now that nothing can fail any more, all at once
            draft.replace(pictures / draft.name)
    return _summary(found, labeller, out, pictures, skipped)


_GONE = np.zeros((0, 0), np.uint8)  # a label map that is written already and need not be kept


def _counted(record: dict[str, Any], labeller: _Labeller) -> Prediction:
    """Return a prediction without its label map."""
    scores = np.array(record["scores"], dtype=np.float32)
    return Prediction(_GONE, np.array(record["areas"], dtype=np.int64), scores, tuple(labeller.names))


def _shared_drafts(pictures: Path, out: Path, opened: ExitStack) -> Path:
    """Return the folder of the unfinished pictures, which is that of rank 0."""
    own = opened.enter_context(drafts(pictures, out.name)).absolute() if distributed.is_main() else Path()
    folder = Path(distributed.from_main(str(own)))
    if not folder.is_dir():
        raise DataError(f"{pictures}: this process does not see the folder of rank 0; name one that all machines share")
    return folder


def as_json(summary: PredictSummary) -> dict[str, Any]:
    """Return the summary as JSON values."""
    photos = []
    for row, photo_id in enumerate(summary.ids):
        classes = [
            {"name": summary.names[index], "unseen": index in summary.unseen, "share": share, "mean_score": score}
            for (index, share), score in zip(summary.shares[row], summary.scores[row], strict=True)
        ]
        photo: dict[str, Any] = {"id": photo_id, "source": summary.sources[row], "classes": classes}
        if summary.readings:
            photo["regions"] = _regions_as_json(summary.readings[row])
        photos.append(photo)
    skipped = [{"source": source, "reason": reason} for source, reason in summary.skipped]
    return {"names": list(summary.names), "photos": photos, "skipped": skipped}


@dataclass(frozen=True)
class _ByClasses:
    """Gives each pixel its best class."""

    model: Model
    score: Callable[[UInt8], ScoreGrid]
    calibration: Calibration
    grows = False

    @property
    def names(self) -> Sequence[str]:
        return self.model.names

    @property
    def unseen(self) -> Sequence[int]:
        return self.model.unseen

    def label(self, image: UInt8) -> tuple[Prediction, tuple[Region, ...]]:
        return predict_grid(self.model, self.score(image), self.calibration), ()


class _ByVocabulary:
    """Gives each region of a photo its nearest word, whose class id is that of the word's first appearance."""

    unseen = ()
    calibration = None  # what the seen classes have over others is not known of words
    grows = True

    def __init__(self, model: Model, words: Sequence[str], vectors: Float32, config: PredictConfig) -> None:
        self.names = [BACKGROUND]  # keeps id 0, which pictures show as no colour
        self._model, self._words, self._vectors, self._config = model, words, vectors, config

    def label(self, image: UInt8) -> tuple[Prediction, tuple[Region, ...]]:
        config = self._config
        reading = read_regions(
            self._model,
            image,
            self._words,
            self._vectors,
            max_side=config.max_side,
            regions=config.regions,
            nearest=config.nearest,
        )
        ids = np.array([self._id(region.words[0][0]) for region in reading.regions], dtype=np.uint8)
        label_map: UInt8 = ids[reading.region_map]
        areas = np.bincount(label_map.ravel(), minlength=VOID + 1)[: len(self.names)]
        sums, weights = np.zeros(VOID + 1), np.zeros(VOID + 1)
        for index, region in zip(ids, reading.regions, strict=True):
            sums[index] += region.share * region.words[0][1]
            weights[index] += region.share
        means = np.divide(sums, weights, out=np.full(VOID + 1, np.nan), where=weights > 0)
        means = means[: len(self.names)].astype(np.float32)
        return Prediction(label_map, areas, means, tuple(self.names)), reading.regions

    def _id(self, word: str) -> int:
        if word not in self.names:
            if len(self.names) == VOID:
                log.warning("more than %d nearest words: later ones are void in the label maps", VOID - 1)
                return VOID
            self.names.append(word)
        return self.names.index(word)


def _labeller(model: Model, path: Path, config: PredictConfig, labels: Path | None, places: Places) -> _Labeller:
    """Return what the settings ask for."""
    if not config.classes and config.vocabulary is None:
        calibration = chosen_calibration(model, config.calibration, config.seen_bias)
        return _ByClasses(model, lambda image: score_image(model, image, max_side=config.max_side), calibration)
    if config.classes and config.vocabulary is not None:
        raise SettingError("--classes and --vocabulary: words to choose from, or a whole vocabulary; leave one out")
    if config.vocabulary is not None and distributed.world() > 1:
        raise SettingError(
            "--vocabulary: numbers its words in the order of the photos, which several processes do not keep; "
            "run it without torchrun"
        )
    if config.vocabulary is not None:
        recipe = read_recipe(path, labels)
        words, rows = frequent_words(None if config.vocabulary == "all" else config.vocabulary, recipe, places)
        log.info("reading out the nearest of %s words", f"{len(words):,}")
        return _ByVocabulary(model, words, rows, config)
    added = new_words(model, config.classes)
    vectors = embed_words(added, read_recipe(path, labels), places) if added else None
    asked = with_words(model, config.classes, vectors, add=config.add)
    calibration = chosen_calibration(asked.shown, config.calibration, config.seen_bias)
    return _ByClasses(asked.shown, lambda image: asked.score(image, max_side=config.max_side), calibration)


def _params(config: PredictConfig, model: Model, labeller: _Labeller) -> dict[str, Any]:
    settings = {key: value for key, value in asdict(config).items() if key not in ("device", "skip_bad")}
    calibration = labeller.calibration
    return {
        **settings,
        "precision": model.precision,
        "calibrated_by": calibration.record() if calibration else {"method": "none", "parameter": 0.0, "chosen_on": []},
    }


def _put(
    writer: Writer,
    found: Sequence[tuple[str, str, Prediction, tuple[Region, ...]]],
    names: Sequence[str],
    *,
    read_out: bool,
) -> None:
    """Write what is small; a photo that was labelled before a name came up has none of it."""
    areas = np.zeros((len(found), len(names)), dtype=np.int64)
    scores = np.full((len(found), len(names)), np.nan, dtype=np.float32)
    for row, (_, _, prediction, _) in enumerate(found):
        areas[row, : len(prediction.areas)] = prediction.areas
        scores[row, : len(prediction.mean_scores)] = prediction.mean_scores
    writer.put("names", names)
    writer.put("ids", [each[0] for each in found])
    writer.put("sources", [each[1] for each in found])
    writer.put("areas", areas)
    writer.put("mean_scores", scores)
    if read_out:
        writer.put("readings", [json.dumps(_regions_as_json(each[3])) for each in found])


def _regions_as_json(regions: Sequence[Region]) -> list[dict[str, Any]]:
    return [
        {
            "share": region.share,
            "box": list(region.box),
            "words": [{"word": word, "cosine": cosine} for word, cosine in region.words],
        }
        for region in regions
    ]


def _summary(
    found: Sequence[tuple[str, str, Prediction, tuple[Region, ...]]],
    labeller: _Labeller,
    out: Path,
    pictures: Path,
    skipped: Sequence[tuple[str, str]],
) -> PredictSummary:
    shares = tuple(_shares(prediction.areas) for _, _, prediction, _ in found)
    scores = tuple(
        tuple(float(prediction.mean_scores[index]) for index, _ in of_photo)
        for (_, _, prediction, _), of_photo in zip(found, shares, strict=True)
    )
    return PredictSummary(
        path=out,
        pictures=pictures,
        names=tuple(labeller.names),
        unseen=tuple(labeller.unseen),
        ids=tuple(each[0] for each in found),
        sources=tuple(each[1] for each in found),
        shares=shares,
        scores=scores,
        readings=tuple(each[3] for each in found) if any(each[3] for each in found) else (),
        skipped=tuple(skipped),
    )


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


def _write_pictures(pictures: Path, name: str, image: UInt8, found: Prediction, unseen: Sequence[int]) -> None:
    label_map, overlay = _targets(pictures, name)
    label_map.write_bytes(encode_label_map(found.label_map))
    drawn = legend_overlay(image, found.label_map, found.names, unseen=unseen)
    overlay.write_bytes(encode_png(drawn, effort=1))


def _shares(areas: NDArray[np.int64]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-areas, kind="stable")
    return tuple((int(index), float(areas[index] / areas.sum())) for index in order if areas[index])
