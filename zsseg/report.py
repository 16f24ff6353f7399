"""One HTML file of a whole run: settings, scores, curves, the joint space, and photos that answer to the pointer.

The file needs nothing but a browser: style, script (both from `zsseg/page`), photos and numbers are inside, and its
content security policy forbids it to load anything. Any set of artifacts will do; each part appears where the
artifacts for it are there. The same artifacts, settings and machine give the same bytes.

Conventions of the data inside (JSON, read by `page/page.js`):
    Names, ids and words are text and never markup: "<", ">" and "&" are escaped in the JSON, and the script sets
    text only. What is undefined is null. Class ids index `names`; 255 is void. Arrays of numbers are base64 of
    little-endian values; a label map is its run lengths, (value uint8) and (length uint16) side by side.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg import __version__, artifacts
from zsseg.artifacts import Artifact
from zsseg.config import ReportConfig
from zsseg.curve import counts_absent_as_zero, read_curve
from zsseg.errors import ArtifactError, SettingError
from zsseg.images import UInt8, decode_image, decode_label_map
from zsseg.metrics import Scores, score
from zsseg.pictures import palette
from zsseg.progress import SILENT, Progress
from zsseg.projection import in_plane
from zsseg.schema import SCHEMA, Kind
from zsseg.sentences import is_encoder

if TYPE_CHECKING:  # torch is loaded only where a model looks at photos
    from zsseg.gallery import Cells, Embedded, Exhibit, Samples, Words

log = logging.getLogger(__name__)

JPEG_QUALITY = 80
MAX_WORDS = 60_000  # with the classes they are numbered by a uint16
LOSS_POINTS = 600  # of the training curve; more steps are averaged
SUMMARY = (
    ("seen mIoU", "seen_miou"),
    ("unseen mIoU", "unseen_miou"),
    ("harmonic mIoU", "harmonic_miou"),
    ("mIoU", "miou"),
    ("pixel accuracy", "pixel_accuracy"),
)

Json = dict[str, Any]
Given = Mapping[str, Artifact]


@dataclass(frozen=True)
class ReportSummary:
    """What `write_report` made.

    Attributes:
        path: The file.
        kinds: The artifacts in it.
        photos: How many photos the gallery has.
        size: Bytes.
        notes: What a reader should know, also said in the report.
    """

    path: Path
    kinds: tuple[str, ...]
    photos: int
    size: int
    notes: tuple[str, ...]


def write_report(
    out: Path,
    given: Sequence[Path],
    config: ReportConfig | None = None,
    *,
    vectors: Sequence[Path] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> ReportSummary:
    """Write the report of a set of artifacts.

    Args:
        out: The HTML file.
        given: Artifacts, at most one of a kind. With data and a model the gallery shows what the model says of every
            place, by the settings that scores, or else predictions, record; with data and predictions the predicted
            label maps.
        config: Settings.
        vectors: Files of the word vectors that the class vectors were made from, where they are not found by name.
        force: Whether an existing file may be replaced.
        progress: Counts the photos.

    Raises:
        SettingError: A setting cannot be met.
        ArtifactError: An artifact is unusable, two are of one kind or speak of different classes, or the output is
            refused.
        DataError: An image or label map inside cannot be decoded.
    """
    config = config or ReportConfig()
    if config.limit < 1:
        raise SettingError(f"--limit {config.limit}: expected 1 or more photos to show")
    if not 0 <= config.words <= MAX_WORDS:
        raise SettingError(f"--words {config.words}: expected 0 to {MAX_WORDS:,}")
    if not given:
        raise ArtifactError("no artifact to report on; name some, or run in their folder (--workspace)")
    artifacts.check_output(out, force=force)
    with ExitStack() as opened:
        sources = _open(given, opened)
        notes = [*_left_out(sources), *_mismatches(sources)]
        words = _words(sources, config, vectors, notes)
        content = _content(sources, words, config, notes, progress)
    page = render(content)
    artifacts.write_file(out, page)
    for note in notes:
        log.warning("%s", note)
    return ReportSummary(out, tuple(sources), len(content["gallery"] or ()), len(page), tuple(notes))


def _open(given: Sequence[Path], opened: ExitStack) -> dict[str, Artifact]:
    """Open artifacts, one of a kind, in the schema's order."""
    found: dict[Kind, Path] = {}
    for path in given:
        kind = artifacts.kind_of(path)
        if kind in found:
            raise ArtifactError(f"{path}: a second {kind} beside {found[kind]}; a report takes one artifact of a kind")
        found[kind] = path
    sources: dict[str, Artifact] = {
        kind: opened.enter_context(artifacts.open_artifact(found[kind], kind)) for kind in SCHEMA if kind in found
    }
    first, *others = sources.values()
    for other in others:
        if not _is_of_words(other):
            what = f"{first.path.name} and {other.path.name}"
            artifacts.same_names(first.strings("names"), other.strings("names"), what)
    return sources


def _is_of_words(source: Artifact) -> bool:
    """Tell predictions of words, by `--classes` or `--vocabulary`, from those of the model's classes."""
    params = source.params
    return source.kind == "predictions" and bool(params.get("classes") or params.get("vocabulary"))


def _left_out(sources: dict[str, Artifact]) -> list[str]:
    """Take predictions of words away from artifacts that speak of classes, and say so."""
    found = sources.get("predictions")
    if found is None or len(sources) == 1 or not _is_of_words(found):
        return []
    del sources["predictions"]
    return [f"{found.path.name} holds other words than the classes and is left out; it can be reported on alone"]


def _mismatches(sources: Given) -> list[str]:
    """Say which artifacts were made from other ones than those beside them."""
    return [
        f"{source.path.name} was made from another {kind} than {sources[kind].path.name}"
        for source in sources.values()
        for kind, digest in sorted(source.inputs.items())
        if kind in sources and sources[kind].digest != digest
    ]


def _content(sources: Given, words: Words | None, config: ReportConfig, notes: list[str], progress: Progress) -> Json:
    """Gather all that the page shows."""
    names = next(iter(sources.values())).strings("names")
    unseen: list[int] = next((each.array("unseen").tolist() for each in sources.values() if "unseen" in each), [])
    exhibits, samples = _gallery(sources, words, config, notes, progress)
    result = _scored(sources["scores"]) if "scores" in sources else None
    return {
        "zsseg": __version__,
        "artifacts": [_described(each) for each in sources.values()],
        "notes": notes,
        "names": names,
        "unseen": unseen,
        "colours": ["#" + bytes(row).hex() for row in palette(config.palette)],
        "summary": None if result is None else _summary(sources["scores"], result),
        "classes": _classes(sources, result),
        "confusion": sources["scores"].array("confusion").tolist() if "scores" in sources else None,
        "curve": None if result is None else _curve(sources["scores"], result),
        "history": _history(sources["model"]) if "model" in sources else None,
        "space": _space(sources, samples, config),
        "words": list(words.texts) if words is not None else [],
        "gallery": [_exhibited(each) for each in exhibits] if exhibits else None,
        "predictedBy": _predicted_by(sources) if exhibits else None,
    }


# Numbers


def _described(source: Artifact) -> Json:
    return {
        "kind": source.kind, "file": source.path.name, "digest": source.digest,
        "params": _finite(source.params),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """Return settings as they are, but null for what is no number."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scored(scores: Artifact, matrix: str = "confusion") -> Scores:
    return score(
        scores.array(matrix),
        seen=scores.array("seen").tolist(),
        unseen=scores.array("unseen").tolist(),
        images_per_class=scores.array("images_per_class"),
        min_images=int(scores.params.get("min_images") or 0),
        absent_zero=counts_absent_as_zero(scores),
    )


def _summary(scores: Artifact, result: Scores) -> list[Json]:
    alone = _scored(scores, "confusion_vanilla")
    shown = [{"label": label, "value": _number(getattr(result, field))} for label, field in SUMMARY]
    return [*shown, {"label": "unseen mIoU among unseen alone", "value": _number(alone.unseen_miou)}]


def _classes(sources: Given, result: Scores | None) -> list[Json] | None:
    """Return the rows of the table of classes, None without scores."""
    if result is None:
        return None
    scores = sources["scores"]
    truth = scores.array("confusion").sum(axis=1)
    photos = scores.array("images_per_class").tolist()
    return [
        {
            "id": index,
            "iou": _number(result.iou[index]),
            "accuracy": _number(result.accuracy[index]),
            "photos": photos[index],
            "share": _number(truth[index] / max(int(truth.sum()), 1)),
            "leftOut": index in result.left_out,
        }
        for index in range(len(truth))
    ]


def _curve(scores: Artifact, result: Scores) -> Json | None:
    curve = read_curve(scores, left_out=result.left_out)
    if curve is None or math.isnan(curve.area):
        return None
    fields = {key: _numbers(getattr(curve, key)) for key in ("gamma", "seen", "unseen", "harmonic")}
    return {**fields, "zero": curve.zero, "oracle": curve.oracle, "area": _number(curve.area)}


def _history(model: Artifact) -> Json:
    loss, rate, miou = (model.array(name).astype(np.float64) for name in ("loss", "lr", "val_seen_miou"))
    parts = np.array_split(np.arange(len(loss)), min(len(loss), LOSS_POINTS)) if len(loss) else []
    return {
        "step": [int(part[-1]) + 1 for part in parts],
        "loss": [_mean(loss[part]) for part in parts],
        "rate": [_mean(rate[part]) for part in parts],
        "epoch": list(range(1, len(miou) + 1)),
        "miou": _numbers(miou),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return _number(float(finite.mean())) if finite.size else None


# The joint space


def _words(sources: Given, config: ReportConfig, vectors: Sequence[Path], notes: list[str]) -> Words | None:
    """Return the words to compare places with: class names first, then those of the class vectors' own sources."""
    holder = sources.get("model") or sources.get("labels")
    if holder is None or "vectors" not in holder:
        return None
    from zsseg.gallery import Words

    names, classes = holder.strings("names"), holder.array("vectors")
    more, added = _vocabulary(sources, config, vectors, notes)
    keep = [row for row, word in enumerate(more) if len(word) > 2 and word not in set(names)]
    return Words((*names, *(more[row] for row in keep)), np.concatenate([classes, added[keep]]).astype(np.float32))


def _vocabulary(
    sources: Given, config: ReportConfig, vectors: Sequence[Path], notes: list[str]
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the most frequent words and their place in the joint space; none, with a note, where they are not here."""
    from zsseg import recipe as recipes

    holder = sources.get("labels") or sources["model"]
    none: tuple[list[str], NDArray[np.float32]] = [], holder.array("vectors")[:0]
    if not config.words or "data" not in sources or "model" not in sources:
        return none
    labels = sources["labels"].path if "labels" in sources else None
    folders = tuple(dict.fromkeys((holder.path.parent, sources["model"].path.parent, Path())))
    try:
        recipe = recipes.read_recipe(sources["model"].path, labels)
        if any(map(is_encoder, recipe.settings.get("vectors", ()))):
            raise SettingError("a sentence encoder reads every word by itself, which would take minutes")
        return recipes.frequent_words(config.words, recipe, recipes.Places(tuple(vectors), folders))
    except (ArtifactError, SettingError) as error:
        notes.append(f"nearest words are class names alone: {error}")
        return none


def _space(sources: Given, samples: Mapping[str, Any] | None, config: ReportConfig) -> Json | None:
    """Return class vectors and pixel embeddings in the plane, None without class vectors."""
    holders = [sources[kind] for kind in ("model", "labels") if kind in sources]
    holder = next((each for each in holders if "vectors" in each), None)
    if holder is None:
        return None
    vectors = holder.array("vectors")
    points = vectors if samples is None else np.concatenate([vectors, _as_long(samples["embeddings"], vectors)])
    plane = in_plane(points, config.space)
    placed = np.round(plane / max(float(np.abs(plane).max()), 1e-12), 4).tolist()
    space = {
        "method": config.space,
        "classes": placed[: len(vectors)],
        "words": sources["labels"].strings("words") if "labels" in sources else holder.strings("names"),
        "points": [],
    }
    if samples is not None:
        fields = (samples[key].tolist() for key in ("truth", "predicted", "photo", "places", "words"))
        rows = zip(placed[len(vectors) :], *fields, strict=True)
        space["points"] = [
            {"at": at, "truth": truth, "predicted": predicted, "photo": photo, "place": _numbers(place), "words": near}
            for at, truth, predicted, photo, place, near in rows
        ]
    return space


def _as_long(embeddings: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring embeddings to length 1 where the class vectors have it: length then has no part in who is nearest."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        return embeddings
    unit: NDArray[np.float32] = np.divide(embeddings, lengths, out=np.zeros_like(embeddings), where=lengths > 0)
    return unit


# Photos


def _gallery(
    sources: Given, words: Words | None, config: ReportConfig, notes: list[str], progress: Progress
) -> tuple[list[Exhibit], dict[str, Any] | None]:
    """Return the photos to show, and what was sampled of their embeddings."""
    if "data" not in sources and "predictions" not in sources:
        return [], None
    from zsseg.gallery import exhibit, joined

    if "model" in sources and "data" in sources:
        exhibits, samples = _looked_at(sources, words, config, progress)
        return exhibits, joined(samples) if samples else None
    data, predictions = sources.get("data"), sources.get("predictions")
    names = (predictions or sources["data"]).strings("names")
    places = {name: place for place, name in enumerate(data.strings("ids"))} if data is not None else {}
    found = []
    chosen = _chosen(sources, config.limit)
    for name, index in progress.track(chosen, "photos", len(chosen)):
        photo, truth = _photo_and_truth(data, places.get(name), name)
        predicted = None if predictions is None else _label_map(predictions, index, name)
        found.append(exhibit(name, photo, truth, predicted, classes=len(names)))
    if predictions is not None:
        notes.append("without data and model the photos carry no score of each place, only label maps")
    return found, None


def _looked_at(
    sources: Given, words: Words | None, config: ReportConfig, progress: Progress
) -> tuple[list[Exhibit], list[Samples]]:
    """Run the model on the photos to show."""
    from zsseg import gallery
    from zsseg.inference import chosen_calibration, load_model

    data, rng = sources["data"], np.random.default_rng(0)
    model = load_model(sources["model"].path, device=config.device)
    settings = _predicted_by(sources)
    calibration = chosen_calibration(model, settings["calibration"], settings["seen_bias"])
    chosen = _chosen(
        {key: each for key, each in sources.items() if key in ("data", "split", "predictions")}, config.limit
    )
    places = {name: place for place, name in enumerate(data.strings("ids"))}
    known = words if model.vectors is not None else None
    exhibits, samples = [], []
    for name, _ in progress.track(chosen, "photos", len(chosen)):
        photo, truth = _photo_and_truth(data, places.get(name), name)
        if photo is None:
            continue
        predicted, cells, embedded = gallery.look(model, photo, calibration, known, max_side=settings["max_side"])
        shown = gallery.exhibit(name, photo, truth, predicted, classes=len(model.names), cells=cells, embedded=embedded)
        exhibits.append(shown)
        if embedded is not None:
            count = -(-gallery.SAMPLES // len(chosen))
            samples.append(gallery.sample(embedded, truth, predicted, count=count, rng=rng))
    return exhibits, samples


def _predicted_by(sources: Given) -> Json:
    """Return the settings of the prediction that scores, or else predictions, record."""
    recorded = next((sources[kind].params for kind in ("scores", "predictions") if kind in sources), {})
    anew = "model" in sources and "data" in sources
    return {
        "anew": anew,
        "calibration": recorded.get("calibration") or "model",
        "seen_bias": recorded.get("seen_bias"),
        "max_side": recorded.get("max_side") or 1024,
    }


def _chosen(sources: Given, limit: int) -> list[tuple[str, int]]:
    """Return id and place of the photos to show: the predicted ones, else those for validation, else all."""
    source = sources.get("predictions") or sources["data"]
    ids = source.strings("ids")
    indices = list(range(len(ids)))
    if "predictions" in sources and "data" in sources:
        held = set(sources["data"].strings("ids"))
        indices = [index for index in indices if ids[index] in held] or indices
    elif source.kind == "data":
        indices = source.array("val").tolist() or indices
    if not indices:
        return []
    places = np.linspace(0, len(indices) - 1, min(limit, len(indices))).round().astype(int)
    return [(ids[indices[place]], indices[place]) for place in places]


def _photo_and_truth(data: Artifact | None, place: int | None, name: str) -> tuple[UInt8 | None, UInt8 | None]:
    if data is None or place is None:
        return None, None
    return decode_image(data.bytes_at("images", place), name), _label_map(data, place, name)


def _label_map(source: Artifact, place: int, name: str) -> UInt8 | None:
    encoded = source.bytes_at("label_maps", place)
    return decode_label_map(encoded, f"label map of {name}") if encoded else None


def _exhibited(each: Exhibit) -> Json:
    return {
        "id": each.name,
        "height": each.size[0],
        "width": each.size[1],
        "fullHeight": each.full_size[0],
        "fullWidth": each.full_size[1],
        "picture": None if each.picture is None else _base64(_jpeg(each.picture)),
        "truth": None if each.truth is None else run_lengths(each.truth),
        "predicted": None if each.predicted is None else run_lengths(each.predicted),
        "cells": None if each.cells is None else _packed(each.cells),
        "words": None if each.embedded is None else _packed_words(each.embedded),
        "ious": {str(index): _number(value) for index, value in each.ious.items()},
        "present": list(each.present),
    }


def _packed(cells: Cells) -> Json:
    return {
        "height": cells.ids.shape[0],
        "width": cells.ids.shape[1],
        "best": cells.ids.shape[2],
        "rows": cells.rows,
        "columns": cells.columns,
        "low": cells.low,
        "high": cells.high,
        "ids": _base64(cells.ids.tobytes()),
        "scores": _base64(cells.scores.astype("<u2").tobytes()),
    }


def _packed_words(embedded: Embedded) -> Json:
    height, width, nearest = embedded.words.shape
    return {
        "height": height,
        "width": width,
        "nearest": nearest,
        "rows": embedded.rows,
        "columns": embedded.columns,
        "numbers": _base64(embedded.words.astype("<u2").tobytes()),
    }


def run_lengths(label_map: UInt8) -> Json:
    """Return a label map, uint8 (H, W), as base64 of its runs' values (uint8) and lengths (uint16), row after row."""
    flat = label_map.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    times = -(-lengths // 65535)  # a longer run is written as several
    values = np.repeat(flat[starts], times)
    pieces = np.full(len(values), 65535)
    pieces[np.cumsum(times) - 1] = lengths - (times - 1) * 65535
    return {"values": _base64(values.tobytes()), "lengths": _base64(pieces.astype("<u2").tobytes())}


def _jpeg(picture: UInt8) -> bytes:
    """Encode a picture anew, so that nothing that a camera wrote beside it (its place, say) goes along."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


# The page


def render(content: Json) -> bytes:
    """Put the content into the page: one HTML document that loads nothing.

    Args:
        content: What JSON can hold, without NaN.
    """
    folder = resources.files("zsseg") / "page"
    page, style, script = ((folder / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    # inside a script element nothing but "<" can end it; ">" and "&" for good measure
    for char in "<>&\u2028\u2029":
        data = data.replace(char, f"\\u{ord(char):04x}")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page).encode("utf-8", "replace")


def _source_hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode()).digest())


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in values]
