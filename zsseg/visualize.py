"""Draw an artifact: `visualize` writes pictures into a folder, which ones depends on the artifact's kind.

Conventions: seen is blue and unseen vermillion (Okabe and Ito's colours, told apart by colour-blind readers
too), and unseen names also say "(unseen)". matplotlib is used through its objects, never pyplot, with its own
defaults instead of the user's, so that the same artifact gives the same picture. An SVG of photos holds them as PNG.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg import artifacts, pictures
from zsseg.artifacts import Artifact
from zsseg.charts import figure as _figure
from zsseg.charts import own_style, png
from zsseg.config import PictureConfig, PictureFormat
from zsseg.curve import Curve, counts_absent_as_zero, read_curve
from zsseg.errors import ArtifactError, SettingError
from zsseg.images import (
    UInt8,
    decode_image,
    decode_label_map,
    encode_png,
    overlay,
    resize_image,
    resize_label_map,
)
from zsseg.metrics import Scores, score
from zsseg.progress import SILENT, Progress
from zsseg.projection import principal_plane
from zsseg.schema import Kind

log = logging.getLogger(__name__)

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]

# The pictures of each kind of artifact, in the order in which they are drawn; .svg where that is asked for.
PICTURES: dict[str, tuple[str, ...]] = {
    "data": ("data.png", "data_classes.png"),
    "labels": ("labels_plane.png", "labels_similarity.png"),
    "split": ("split.png",),
    "model": ("model_curves.png",),
    "scores": ("scores_confusion.png", "scores_classes.png", "scores_curve.png"),
    "predictions": ("predictions.png",),
}

SEEN, UNSEEN, OTHER, FAINT = "#0072B2", "#D55E00", "#009E73", "#999999"
PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # under a number that a line may cross
POLICIES = {"ignore": "in training, unseen pixels are void", "drop": "no photo with an unseen pixel in training"}
PREVIEW_COLUMNS = 80
PANEL_SIDE = 400  # pixels of a photo on a contact sheet
SHEET_PIXELS = 40_000_000  # a contact sheet of more photos than this holds gets smaller ones
VALUES_UP_TO = 25  # classes; a larger matrix has no room for numbers in its cells


Picture = UInt8 | Any  # an array of pixels, or a matplotlib figure


@dataclass(frozen=True)
class _Look:
    """How photos are shown: marked as unseen, how many, and in which colours, uint8 (256, 3)."""

    unseen: Collection[int]
    limit: int
    colours: UInt8

    def over(self, photo: UInt8, label_map: UInt8, names: Sequence[str], side: int) -> UInt8:
        """Lay a label map over its photo, with a legend."""
        return pictures.legend_overlay(photo, label_map, names, unseen=self.unseen, max_side=side, colours=self.colours)


def visualize(
    artifact: Path,
    out: Path,
    config: PictureConfig | None = None,
    *,
    data: Path | None = None,
    split: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> tuple[Path, ...]:
    """Draw the pictures of an artifact, see `PICTURES`. Nothing is written before all are drawn.

    Args:
        artifact: Artifact of any kind in `PICTURES`.
        out: Folder for the pictures, made when missing.
        config: Settings; photos shown are evenly spread over the artifact.
        data: For predictions, the data artifact that holds the same photos; without it the label maps are
            drawn in plain colours. For a split, the data artifact it was made from. Not used for other kinds.
        split: For data, labels and predictions, says which classes to mark as unseen; scores know it themselves.
            One of other classes is passed over with a note.
        force: Whether existing pictures may be replaced.
        progress: Counts the images read.

    Returns:
        The paths of the pictures.

    Raises:
        SettingError: The limit is below 1.
        ArtifactError: An artifact is unusable or does not fit the others, or an output is refused.
        DataError: An image or label map inside cannot be decoded.
    """
    config = config or PictureConfig()
    if config.limit < 1:
        raise SettingError(f"--limit {config.limit}: expected 1 or more photos to show")
    kind = artifacts.kind_of(artifact)
    with artifacts.open_artifact(artifact, kind) as source, own_style():
        names = [name for name in PICTURES[kind] if name != "scores_curve.png" or "gap_counts" in source]
        paths = tuple((out / name).with_suffix(f".{config.format}") for name in names)
        for path in paths:
            artifacts.check_output(path, force=force)
        look = _Look(_unseen(source, split), config.limit, pictures.palette(config.palette))
        if kind in ("predictions", "split") and data is not None:
            with artifacts.open_artifact(data, "data") as photos:
                if kind == "split":
                    drawn: list[Picture] = [_split_counts(source, photos, progress)]
                else:
                    drawn = [_predictions_over_photos(source, photos, look, progress)]
        else:
            drawn = _draw(source, kind, look, progress)
        encoded = [_encoded(picture, config.format) for picture in drawn]
    paths = paths[: len(encoded)]  # the last one, a curve, may have nothing to show
    for path, content in zip(paths, encoded, strict=True):
        artifacts.write_file(path, content)
    return paths


@dataclass(frozen=True)
class Preview:
    """A prediction, small enough for a terminal.

    Attributes:
        name: The image's id.
        picture: The overlay, or the label map in colours without a photo, uint8 (h, w, 3); h is even.
        label_map: uint8 (h / 2, w): a terminal's characters are about twice as high as wide.
        shares: Class id and share of each class in the whole label map, largest first.
    """

    name: str
    picture: UInt8
    label_map: UInt8
    shares: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Previews:
    """What a terminal can show of predictions.

    Attributes:
        names: Class names.
        unseen: Ids of the unseen classes.
        colours: Of each class id, uint8 (256, 3).
        shown: One for each photo.
    """

    names: tuple[str, ...]
    unseen: frozenset[int]
    colours: UInt8
    shown: tuple[Preview, ...]


def preview(
    artifact: Path,
    config: PictureConfig | None = None,
    *,
    columns: int,
    data: Path | None = None,
    split: Path | None = None,
) -> Previews:
    """Bring predictions to the size of a terminal.

    Args:
        artifact: Predictions.
        config: Settings.
        columns: Characters in a line of the terminal.
        data: The data artifact that holds the photos, if any.
        split: Says which classes are unseen.

    Raises:
        ArtifactError: The artifact holds no predictions, or is unusable.
        DataError: An image or label map inside cannot be decoded.
    """
    config = config or PictureConfig()
    kind = artifacts.kind_of(artifact)
    if kind != "predictions":
        raise ArtifactError(f"{artifact}: holds {kind!r}; --preview shows predictions, leave it out for pictures")
    colours = pictures.palette(config.palette)
    with ExitStack() as opened:
        source = opened.enter_context(artifacts.open_artifact(artifact, "predictions"))
        photos = opened.enter_context(artifacts.open_artifact(data, "data")) if data is not None else None
        places = {name: place for place, name in enumerate(photos.strings("ids"))} if photos is not None else {}
        shown = []
        ids = source.strings("ids")
        for index in _spread(range(len(ids)), config.limit, source):
            label_map, place = _predicted(source, index), places.get(ids[index])
            photo = colours[label_map]
            if photos is not None and place is not None:
                whole = decode_image(photos.bytes_at("images", place), ids[index])
                _check_size(label_map, whole, ids[index], photos, source)
                photo = overlay(whole, label_map, colours=colours)
            shown.append(_small(ids[index], photo, label_map, columns))
        return Previews(tuple(source.strings("names")), _unseen(source, split), colours, tuple(shown))


def _small(name: str, picture: UInt8, label_map: UInt8, columns: int) -> Preview:
    height, width = label_map.shape
    wide = min(columns, PREVIEW_COLUMNS, width)
    rows = max(1, round(wide * height / width / 2))
    areas = np.array(Image.fromarray(label_map).histogram())
    shares = [(int(index), float(areas[index] / label_map.size)) for index in np.argsort(-areas, kind="stable")]
    return Preview(
        name,
        resize_image(picture, (2 * rows, wide)),
        resize_label_map(label_map, (rows, wide)),
        tuple((index, share) for index, share in shares if share > 0),
    )


def _encoded(picture: Picture, form: PictureFormat) -> bytes:
    """Encode an array or a figure; the bytes depend on the picture alone."""
    if not isinstance(picture, np.ndarray):
        if form == "png":
            return png(picture)
        buffer = io.BytesIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()
    encoded = encode_png(picture)
    if form == "png":
        return encoded
    height, width = picture.shape[:2]
    inside = base64.b64encode(encoded).decode("ascii")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{inside}"/></svg>\n'
    ).encode()


def fits(artifact: Path, data: Path) -> bool:
    """Return whether a data artifact belongs to an artifact.

    To predictions, if it has one id in common and the same classes; to a split, if that was made from it; to anything
    else, never. For a caller that offers a data artifact which the user did not name.
    """
    if not data.is_file() or artifacts.kind_of(data) != "data":
        return False
    kind = artifacts.kind_of(artifact)
    if kind not in ("predictions", "split"):
        return False
    with (
        artifacts.open_artifact(artifact, kind, verify=False) as source,
        artifacts.open_artifact(data, "data", verify=False) as photos,
    ):
        if kind == "split":
            return source.inputs.get("data") == photos.digest
        same = source.strings("names") == photos.strings("names")
        return same and not set(source.strings("ids")).isdisjoint(photos.strings("ids"))


def _draw(source: Artifact, kind: Kind, look: _Look, progress: Progress) -> list[Picture]:
    unseen = look.unseen
    match kind:
        case "data":
            return [_data_sheet(source, look, progress), _class_counts(source, unseen, progress)]
        case "split":
            raise ArtifactError(
                f"{source.path}: counting its photos and pixels needs the data artifact it was made from; name it with "
                "--data"
            )
        case "labels":
            names, vectors = source.strings("names"), source.array("vectors")
            return [_plane(names, vectors, unseen), _similarity(names, vectors, unseen)]
        case "model":
            return [_curves(source)]
        case "scores":
            result = score(
                source.array("confusion"),
                seen=source.array("seen").tolist(),
                unseen=source.array("unseen").tolist(),
                images_per_class=source.array("images_per_class"),
                min_images=int(source.params.get("min_images") or 0),
                absent_zero=counts_absent_as_zero(source),
            )
            curve = read_curve(source, left_out=result.left_out)
            drawn = [_confusion(source, unseen), _class_bars(source.strings("names"), result, unseen)]
            if curve is None or np.isnan(curve.area):  # no unseen class that counts
                return drawn
            return [*drawn, _seen_unseen(curve)]
        case _:
            log.info("showing label maps alone; --data with the data artifact shows photos and truth too")
            return [_predictions_alone(source, look, progress)]


# Photos and label maps


def _data_sheet(source: Artifact, look: _Look, progress: Progress) -> UInt8:
    """Show photos, each beside the same one under its label map."""
    names, ids = source.strings("names"), source.strings("ids")
    shown = _spread(range(len(ids)), look.limit, source)
    side = _panel_side(2 * len(shown))
    cells = []
    for index in progress.track(shown, "photos", len(shown)):
        photo = decode_image(source.bytes_at("images", index), ids[index])
        truth = _truth(source, index, ids[index])
        caption = ids[index] if truth is not None else f"{ids[index]}, no label map"
        panels = [(caption, pictures.fitted(photo, side))]
        if truth is not None:
            panels.append(("label map", look.over(photo, truth, names, side)))
        cells.append(pictures.side_by_side(panels))
    return pictures.contact_sheet(cells)


def _predictions_over_photos(source: Artifact, photos: Artifact, look: _Look, progress: Progress) -> UInt8:
    """Show photo, truth where known, and prediction of the images that both artifacts hold."""
    names, ids = source.strings("names"), source.strings("ids")
    artifacts.same_names(names, photos.strings("names"), f"{source.path.name} and {photos.path.name}")
    places = {name: place for place, name in enumerate(photos.strings("ids"))}
    known = [index for index, name in enumerate(ids) if name in places]
    if not known:
        raise ArtifactError(
            f"{photos.path}: holds none of the {len(ids)} images of {source.path.name} (the first is "
            f"{ids[0] if ids else 'missing'!r}); name the data artifact they come from, or leave --data out"
        )
    if len(known) < len(ids):
        log.info("%d of %d predictions are of photos outside %s", len(ids) - len(known), len(ids), photos.path.name)
    shown = _spread(known, look.limit, source)
    side = _panel_side(3 * len(shown))
    cells = []
    for index in progress.track(shown, "predictions", len(shown)):
        name, place = ids[index], places[ids[index]]
        photo = decode_image(photos.bytes_at("images", place), name)
        panels = [(name, pictures.fitted(photo, side))]
        for caption, label_map in (("truth", _truth(photos, place, name)), ("prediction", _predicted(source, index))):
            if label_map is not None:
                _check_size(label_map, photo, name, photos, source)
                over = look.over(photo, label_map, names, side)
                panels.append((caption, over))
        cells.append(pictures.side_by_side(panels))
    return pictures.contact_sheet(cells)


def _predictions_alone(source: Artifact, look: _Look, progress: Progress) -> UInt8:
    """Show predicted label maps in plain colours."""
    names, sources = source.strings("names"), source.strings("sources")
    shown = _spread(range(len(sources)), look.limit, source)
    side = _panel_side(len(shown))
    cells = []
    for index in progress.track(shown, "predictions", len(shown)):
        label_map = _predicted(source, index)
        over = look.over(look.colours[label_map], label_map, names, side)
        cells.append(pictures.side_by_side([(sources[index], over)]))
    return pictures.contact_sheet(cells)


def _truth(source: Artifact, index: int, name: str) -> UInt8 | None:
    encoded = source.bytes_at("label_maps", index)
    return decode_label_map(encoded, f"label map of {name}") if encoded else None


def _predicted(source: Artifact, index: int) -> UInt8:
    return decode_label_map(source.bytes_at("label_maps", index), f"{source.path.name}, image {index}")


def _check_size(label_map: UInt8, photo: UInt8, name: str, photos: Artifact, source: Artifact) -> None:
    if label_map.shape != photo.shape[:2]:
        raise ArtifactError(
            f"{photos.path}: photo {name!r} has {photo.shape[0]}×{photo.shape[1]} pixels, its label map in "
            f"{source.path.name} {label_map.shape[0]}×{label_map.shape[1]}; name the data artifact it comes from"
        )


def _unseen(source: Artifact, split: Path | None) -> frozenset[int]:
    """Return the ids of the unseen classes, from the artifact itself or else from the split."""
    if "unseen" in source:
        return frozenset(source.array("unseen").tolist())
    if split is None:
        return frozenset()
    with artifacts.open_artifact(split, "split") as chosen:
        if chosen.strings("names") == source.strings("names"):
            return frozenset(chosen.array("unseen").tolist())
    # only marks would be lost, so a split that lies beside by chance is no reason to stop
    log.warning("%s speaks of other classes than %s, so none is marked as unseen", split.name, source.path.name)
    return frozenset()


def _spread(indices: Sequence[int], limit: int, source: Artifact) -> list[int]:
    """Return at most `limit` of the indices, evenly spread and in order."""
    if not indices:
        raise ArtifactError(f"{source.path}: holds no images, so there is nothing to draw")
    places = np.linspace(0, len(indices) - 1, min(limit, len(indices))).round().astype(int)
    return [indices[place] for place in places]


def _panel_side(panels: int) -> int:
    return int(np.clip(np.sqrt(SHEET_PIXELS / (1.5 * panels)), 96, PANEL_SIDE))


# Charts


def _class_counts(source: Artifact, unseen: Collection[int], progress: Progress) -> Any:
    """Draw in how many photos each class occurs, and its share of the labelled pixels."""
    val = set(source.array("val").tolist())
    photos, pixels = _counted(source, {"train": set(range(len(source.strings("ids")))) - val, "val": val}, progress)
    return _count_bars(source.strings("names"), photos, pixels.sum(axis=0, keepdims=True), unseen)


def _split_counts(source: Artifact, data: Artifact, progress: Progress) -> Any:
    """Draw photos and pixels of each class in the two parts that a split leaves, seen and unseen classes marked."""
    artifacts.same_names(source.strings("names"), data.strings("names"), f"{source.path.name} and {data.path.name}")
    if source.inputs.get("data") not in (None, data.digest):
        raise ArtifactError(
            f"{source.path}: was made from another data artifact than {data.path}; name the right one with --data"
        )
    parts = {part: set(source.array(part).tolist()) for part in ("train", "val")}
    photos, pixels = _counted(data, parts, progress)
    unseen = source.array("unseen").tolist()
    figure = _count_bars(source.strings("names"), photos, pixels, unseen)
    figure.axes[1].set_title(POLICIES.get(str(source.params.get("policy")), ""), fontsize=9)
    return figure


def _counted(source: Artifact, parts: Mapping[str, Collection[int]], progress: Progress) -> tuple[Counts, Counts]:
    """Count in two parts of the photos those that hold each class, and its pixels, int64 (2, C) each."""
    names, ids = source.strings("names"), source.strings("ids")
    photos, pixels = np.zeros((2, 2, len(names)), dtype=np.int64)
    wanted = sorted({index for part in parts.values() for index in part})
    if wanted and wanted[-1] >= len(ids):
        raise ArtifactError(f"{source.path}: holds {len(ids)} images, the split names image {wanted[-1]}")
    for index in progress.track(wanted, "label maps", len(wanted)):
        truth = _truth(source, index, ids[index])
        if truth is not None:
            counts = np.array(Image.fromarray(truth).histogram())[: len(names)]
            for row, part in enumerate(parts.values()):
                if index in part:
                    photos[row] += counts > 0
                    pixels[row] += counts
    return photos, pixels


def _count_bars(names: Sequence[str], photos: Counts, pixels: Counts, unseen: Collection[int]) -> Any:
    """Draw photos of each class in train and val, and its share of the labelled pixels, of each part or of both."""
    shares = 100 * pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-photos.sum(axis=0), kind="stable")
    pitch, type_size = _row_pitch(len(names))
    figure = _figure(10, 1.3 + pitch * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = np.arange(len(names))
    left.barh(rows, photos[0, order], color=SEEN, label="train")
    left.barh(rows, photos[1, order], left=photos[0, order], color=OTHER, label="val")
    if len(pixels) == 1:
        bars = right.barh(rows, shares[0, order], color=FAINT)
        right.bar_label(bars, [f"{value:.1f}" for value in shares[0, order]], padding=2, fontsize=type_size)
    else:
        for part, shade, shift in ((0, SEEN, -0.2), (1, OTHER, 0.2)):
            right.barh(rows + shift, shares[part, order], height=0.4, color=shade)
    _name_axis(left.yaxis, [names[index] for index in order], [index in unseen for index in order], type_size)
    left.set(xlabel="photos that hold the class", ylim=(len(names) - 0.5, -0.5))
    right.set(xlabel="share of the labelled pixels in %", xlim=(0, 1.12 * max(float(shares.max(initial=0)), 1.0)))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _plane(names: Sequence[str], vectors: Floats, unseen: Collection[int]) -> Any:
    """Draw the class vectors on the two axes along which they differ most."""
    points, shares = principal_plane(vectors)
    side = float(np.clip(6 + 0.08 * len(names), 7, 16))
    figure = _figure(1.2 * side, side)
    axes = figure.add_subplot()
    marked = np.isin(np.arange(len(names)), list(unseen))
    for group, shade, label in ((~marked, SEEN, "seen"), (marked, UNSEEN, "unseen")):
        axes.scatter(*points[group].T, s=22, color=shade, label=label, zorder=3)
    axes.set(
        title="class vectors",
        xlabel=f"first axis, {100 * shares[0]:.0f} % of the classes' variance",
        ylabel=f"second axis, {100 * shares[1]:.0f} %",
        aspect="equal",
        adjustable="datalim",
    )
    axes.margins(0.12)
    axes.grid(color="#e5e5e5", zorder=0)
    if marked.any():
        axes.legend()
    labels = [_marked(name, bool(flag)) for name, flag in zip(names, marked, strict=True)]
    _place_labels(axes, points, labels, [UNSEEN if flag else "black" for flag in marked])
    return figure


def _similarity(names: Sequence[str], vectors: Floats, unseen: Collection[int]) -> Any:
    """Draw the cosine of every pair of class vectors, similar classes beside each other."""
    cosine = _cosines(vectors)
    order = _neighbour_order(cosine)
    cosine = cosine[np.ix_(order, order)]
    others = cosine[~np.eye(len(cosine), dtype=bool)]
    # the diagonal is 1 by itself; colours that reached so far would dull the rest
    top = min(max(1.15 * float(np.abs(others).max(initial=0)), 0.05), 1.0)
    return _matrix(
        cosine,
        [names[index] for index in order],
        [index in unseen for index in order],
        title="cosine of the class vectors; similar classes are neighbours",
        limits=(-top, top),
        colours="RdBu_r",
    )


def _curves(source: Artifact) -> Any:
    """Draw loss and learning rate of each step and the seen mIoU of each epoch."""
    loss, rate, miou = (source.array(name).astype(np.float64) for name in ("loss", "lr", "val_seen_miou"))
    figure = _figure(9, 8)
    above, middle, below = figure.subplots(3, 1, height_ratios=(3, 1, 2))
    steps = np.arange(1, len(loss) + 1)
    smooth = _smoothed(loss, max(1, len(loss) // 50))
    above.plot(steps, loss, color=SEEN, alpha=0.35, linewidth=0.7, label="each step")
    above.plot(steps, smooth, color=SEEN, linewidth=1.8, label="moving average")
    finite = smooth[np.isfinite(smooth)]
    if finite.size and finite.min() > 0 and finite.max() > 30 * finite.min():
        above.set_yscale("log")
    above.set(title=_training_title(source.params), ylabel="training loss")
    above.legend(loc="upper right")
    middle.plot(steps, rate, color="black", linewidth=1)
    middle.set(xlabel="step", ylabel="learning rate")
    middle.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=False)
    below.plot(np.arange(1, len(miou) + 1), miou, color=OTHER, marker="o", markersize=4)
    below.set(xlabel="epoch", ylabel="val mIoU, seen classes", ylim=(0, 1))
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes, values, missing in ((above, loss, "no finished step"), (below, miou, "no finished epoch")):
        axes.grid(color="#e5e5e5")
        if not np.isfinite(values).any():
            axes.text(0.5, 0.5, missing, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    return figure


def _confusion(source: Artifact, unseen: Collection[int]) -> Any:
    """Draw the confusion matrix, each row the shares of one true class; seen classes first."""
    names, confusion = source.strings("names"), source.array("confusion")
    present = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1)).tolist()
    if not present:
        raise ArtifactError(
            f"{source.path}: holds no scored pixel, so there is nothing to draw; run `zsseg eval` again"
        )
    order = [i for i in present if i not in unseen] + [i for i in present if i in unseen]
    counts = confusion[np.ix_(order, order)].astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    return _matrix(
        shares,
        [names[index] for index in order],
        [index in unseen for index in order],
        title="confusion: % of each true class (row) given to each class (column)",
        limits=(0, 100),
        colours="Blues",
    )


def _class_bars(names: Sequence[str], result: Scores, unseen: Collection[int]) -> Any:
    """Draw the IoU of each class, best first, with the means of seen and unseen classes."""
    from matplotlib.patches import Patch

    order = [int(index) for index in np.argsort(-result.iou, kind="stable") if np.isfinite(result.iou[index])]
    pitch, type_size = _row_pitch(len(order))
    figure = _figure(8, 1.5 + pitch * max(len(order), 3))
    axes = figure.add_subplot()
    shades = [FAINT if i in result.left_out else UNSEEN if i in unseen else SEEN for i in order]
    bars = axes.barh(np.arange(len(order)), result.iou[order], color=shades)
    axes.bar_label(bars, [f"{result.iou[index]:.2f}" for index in order], padding=2, fontsize=type_size, bbox=PATCH)
    keys = [axes.axvline(mean, color=shade, linestyle="--", linewidth=1.2, label=f"{group} mIoU {mean:.3f}")
            for mean, shade, group in ((result.seen_miou, SEEN, "seen"), (result.unseen_miou, UNSEEN, "unseen"))
            if np.isfinite(mean)]  # fmt: skip
    if FAINT in shades:
        keys.append(Patch(color=FAINT, label="too few photos, left out of the means"))
    if keys:
        figure.legend(handles=keys, loc="outside upper left", ncols=len(keys))
    _name_axis(axes.yaxis, [names[index] for index in order], [index in unseen for index in order], type_size)
    axes.set(xlabel="IoU, all classes competing", xlim=(0, 1.08), ylim=(max(len(order), 1) - 0.5, -0.5))
    return figure


def _seen_unseen(curve: Curve) -> Any:
    """Draw seen against unseen mIoU for every seen bias, with the point that was scored and the best one."""
    figure = _figure(6.5, 6)
    axes = figure.add_subplot()
    axes.plot(curve.unseen, curve.seen, color="black", linewidth=1.4, label=f"every seen bias, area {curve.area:.3f}")
    for index, shade, marker, label in (
        (curve.zero, SEEN, "o", "as scored"),
        (curve.oracle, UNSEEN, "*", "oracle (chosen on the test photos)"),
    ):
        text = f"{label}: harmonic mIoU {curve.harmonic[index]:.3f}"
        axes.scatter(curve.unseen[index], curve.seen[index], s=70, color=shade, marker=marker, label=text, zorder=3)
    side = 1.08 * max(float(np.nan_to_num([curve.seen, curve.unseen]).max()), 0.1)
    axes.set(xlabel="mIoU, unseen classes", ylabel="mIoU, seen classes", xlim=(-0.01, side), ylim=(-0.01, side))
    axes.grid(color="#e5e5e5", zorder=0)
    figure.legend(loc="outside upper left")
    return figure


def _matrix(
    values: Floats,
    names: Sequence[str],
    marked: Sequence[bool],
    *,
    title: str,
    limits: tuple[float, float],
    colours: str,
) -> Any:
    """Draw a square matrix of class by class, with numbers in the cells where there is room. NaN stays grey."""
    pitch = 0.42 if len(names) <= VALUES_UP_TO else 0.22 if len(names) <= 80 else 0.13
    side = pitch * max(len(names), 6)
    type_size = float(np.clip(50 * pitch, 5.5, 9))
    figure = _figure(side + 2.8, side + 2)
    axes = figure.add_subplot(facecolor="#dddddd")
    image = axes.imshow(values, vmin=limits[0], vmax=limits[1], cmap=colours, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=40)
    _name_axis(axes.xaxis, names, marked, type_size)
    _name_axis(axes.yaxis, names, marked, type_size)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_title(title, fontsize=10)
    if len(names) <= VALUES_UP_TO:
        shades = image.cmap(image.norm(values))[..., :3] @ (0.299, 0.587, 0.114)
        for (row, column), value in np.ndenumerate(values):
            text = _cell_text(float(value), limits[1])
            ink = "white" if shades[row, column] < 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    return figure


def _cell_text(value: float, top: float) -> str:
    """Return a percentage as a whole number, blank when it rounds to 0, and anything finer with two decimals."""
    if not np.isfinite(value) or (top > 1 and value < 0.5):
        return ""
    return f"{value:.0f}" if top > 1 else f"{value:.2f}"


# Numbers behind the charts


def _cosines(vectors: Floats) -> Floats:
    """Return the cosine of each pair of rows, (C, C); 0 with a zero vector."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    cosine: Floats = np.clip(unit @ unit.T, -1, 1)
    return cosine


def _neighbour_order(cosine: Floats) -> list[int]:
    """Return an order of the classes that puts similar ones beside each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(cosine) < 3:
        return list(range(len(cosine)))
    distance = squareform(1 - cosine, checks=False)
    return [int(index) for index in leaves_list(linkage(distance, method="average", optimal_ordering=True))]


def _smoothed(values: Floats, window: int) -> Floats:
    """Return the mean of the finite values among the last `window` up to each place; NaN where there are none."""
    finite = np.isfinite(values)
    sums, counts = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite.astype(float))
    )
    start = np.maximum(np.arange(len(values)) + 1 - window, 0)
    total, count = sums[1:] - sums[start], counts[1:] - counts[start]
    smooth: Floats = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return smooth


# Drawing with matplotlib


def _row_pitch(rows: int) -> tuple[float, float]:
    """Return inches and type size of each row of a chart with so many."""
    pitch = 0.26 if rows <= 40 else 0.18 if rows <= 100 else 0.14
    return pitch, float(np.clip(42 * pitch, 6, 9))


def _name_axis(axis: Any, names: Sequence[str], marked: Iterable[bool], type_size: float) -> None:
    """Put class names on an axis, those of unseen classes in their colour."""
    flags = list(marked)
    labels = [_marked(name, flag) for name, flag in zip(names, flags, strict=True)]
    axis.set_ticks(np.arange(len(labels)), labels=labels, fontsize=type_size)
    for label, flag in zip(axis.get_ticklabels(), flags, strict=True):
        label.set_color(UNSEEN if flag else "black")


def _marked(name: str, unseen: bool) -> str:
    """Return a class name as matplotlib prints it letter by letter: a pair of $ would start a formula."""
    short = name if len(name) <= 32 else name[:30] + "…"
    return " ".join(short.split()).replace("$", r"\$") + (" (unseen)" if unseen else "")


def _training_title(params: Mapping[str, Any]) -> str:
    known = [str(params[key]) for key in ("model", "loss") if key in params]
    return " ".join(["training", *known]).replace("$", r"\$")


def _place_labels(axes: Any, points: Floats, labels: Sequence[str], colours: Sequence[str]) -> None:
    """Write a label beside each point where it covers the fewest other labels and points.

    Greedy: for every point some sixty places at growing distance are tried; a far one gets a line to its point.
    """
    from matplotlib.lines import Line2D

    figure = axes.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on nothing may move
    dots = axes.transData.transform(points)
    inches = figure.dpi_scale_trans  # an SVG has other dots, but the same inches
    frame = axes.get_window_extent()
    type_size = 9 if len(labels) <= 40 else 7
    boxes = np.zeros((0, 4))
    for dot, label, shade in zip(dots, labels, colours, strict=True):
        text = figure.text(0, 0, label, fontsize=type_size, color=shade, transform=inches, zorder=4)
        extent = text.get_window_extent()
        spots = _spots(dot, extent.width, extent.height)
        best = int(np.argmin(_crowding(spots, boxes, dots, frame.extents)))
        left, bottom = spots[best, :2]
        text.set_position((left / figure.dpi, (bottom - extent.y0) / figure.dpi))
        boxes = np.vstack([boxes, spots[best]])
        anchor = np.clip(dot, spots[best, :2], spots[best, 2:])
        if np.hypot(*(anchor - dot)) > 10:
            ends = zip(dot / figure.dpi, anchor / figure.dpi, strict=True)
            line = Line2D(*ends, color=FAINT, linewidth=0.6, transform=inches)
            figure.add_artist(line)


def _spots(dot: Floats, width: float, height: float) -> Floats:
    """Return boxes (K, 4) of left, bottom, right, top round a point where its label could stand, nearest first."""
    angles = np.arange(12) * (np.pi / 6)
    found = []
    for distance in (6, 14, 26, 42, 64):
        for angle in angles:
            x = dot[0] + np.cos(angle) * (distance + width / 2)
            y = dot[1] + np.sin(angle) * (distance + height / 2)
            found.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return np.array(found)


def _crowding(spots: Floats, boxes: Floats, dots: Floats, frame: Floats) -> Floats:
    """Return how bad each spot is: labels and points covered, standing outside the axes; nearer is better."""
    covers_box = (
        (spots[:, None, :2] < boxes[None, :, 2:] + 1).all(axis=2)
        & (spots[:, None, 2:] > boxes[None, :, :2] - 1).all(axis=2)
    ).sum(axis=1)
    margin = 4  # pixels, the radius of a dot
    covers_dot = (
        (spots[:, None, :2] < dots[None] + margin).all(axis=2) & (spots[:, None, 2:] > dots[None] - margin).all(axis=2)
    ).sum(axis=1)
    outside = (spots[:, :2] < frame[:2]).any(axis=1) | (spots[:, 2:] > frame[2:]).any(axis=1)
    crowding: Floats = 10.0 * covers_box + 6.0 * covers_dot + 20.0 * outside + np.linspace(0, 5, len(spots))
    return crowding
