"""Choose the constants of `zsseg train`'s zero-shot defaults without a label of the classes that results are about.

    python benchmarks/constants.py --data ../shared/data [--pairs 'cat,horse;bird,dog'] [--json FILE]

Photos: voc-animals' training photos. In their label maps cow and sheep are void, and neither is among the classes; 300
photos are kept aside to score on, another 300 are left out altogether, for `zero_shot.py --table aside` to score on.
No photo of val is opened. Two of the four animals that are left play the unseen classes, each pair of them once: the
label maps of the photos that are trained on hide them as they hide any unseen class.

One model is trained for each pair. It is scored with and without gate, anchors and presence, for several sharpnesses
of the latter; for each of these and for each pair of bounds, --max-seen-loss and --max-false-share, the calibration is
chosen as `train` chooses it, on training photos and seen labels. The rule by which the defaults are taken from the
printed table: the highest harmonic mIoU on the photos kept aside, averaged over the pairs, among what lowers their seen
mIoU by at most 2 points in the mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zero_shot import BOTH, DEFAULT, Bench, Row, link, partition

from zsseg import calibration, presence, probe
from zsseg.artifacts import Artifact, open_artifact
from zsseg.classes import VOID
from zsseg.config import FetchConfig, PredictConfig, SplitConfig
from zsseg.curve import BINS, Curve, count_gaps, gap_bins, gap_edges, gap_unit, seen_unseen_curve
from zsseg.dataset import read_image, training_labels
from zsseg.fetch import fetch_data
from zsseg.inference import Model, contest, image_features, load_model, score_features
from zsseg.split import make_split
from zsseg.train import Features, train

LEFT_OUT = ("cow", "sheep")
ANIMALS = ("bird", "cat", "dog", "horse")
SEEN_LOSSES = (0.005, 0.01, 0.015, 0.02, 0.03, math.inf)
FALSE_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, math.inf)
MAY_COST = 0.02  # seen mIoU
LEAST_PHOTOS = 5  # of a class that counts in the means


@dataclass(frozen=True)
class Variant:
    """Which parts of the default score the classes."""

    gate: bool = True
    anchors: bool = True
    sharpness: float | None = presence.SHARPNESS  # None: without presence

    def of(self, path: Path) -> Model:
        """Load the trained model and leave out what the variant goes without: training is the same for all."""
        model = load_model(path)
        if not self.gate:
            model.net.gate = None
        if not (self.gate and self.anchors):
            model.net.anchors = None
        return replace(model, params={**model.params, "presence": self.sharpness is not None})

    def __str__(self) -> str:
        parts = ["gate"] * self.gate + ["anchors"] * self.anchors
        return ", ".join(parts + ([] if self.sharpness is None else [f"presence {self.sharpness:g}"])) or "plain NNE"


VARIANTS = (
    *(Variant(sharpness=sharpness) for sharpness in (5.0, 10.0, 20.0, 40.0, None)),
    *(Variant(anchors=False, sharpness=sharpness) for sharpness in (20.0, None)),
    *(Variant(gate=False, anchors=False, sharpness=sharpness) for sharpness in (20.0, None)),
)


def main() -> None:
    """Train a model for each pair, score the variants, and print what each setting gives in the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--pairs", default=";".join(",".join(pair) for pair in combinations(ANIMALS, 2)))
    parser.add_argument("--json", type=Path, help="write the points here, after each pair")
    options = parser.parse_args()
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = work / "data.h5"
        source = options.data.resolve() / "voc-animals" / "VOC2012"
        fetch_data(data, FetchConfig("folder"), root=without(source, work / "photos", LEFT_OUT))
        words = work / "labels.h5"
        Bench(options.data.resolve(), work).embed(data, Row(vectors=BOTH), words)
        features = Features()
        for pair in options.pairs.split(";"):
            split, model = work / f"{pair}.h5", work / "model.h5"
            make_split(data, split, SplitConfig(unseen=tuple(pair.split(","))))
            train(data, split, words, model, replace(DEFAULT, calibration="none"), force=True, features=features)
            found = [{"pair": pair, **point} for point in measured(data, model)]
            points += found
            print(f"{pair}: {best_of(found)}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(points) + "\n")
    print_table(points)


def without(source: Path, root: Path, left_out: tuple[str, ...]) -> Path:
    """Write a data set's training photos once more, some classes void and out of the list of classes."""
    names = (source / "classes.txt").read_text().split()
    kept = [name for name in names if name not in left_out]
    new_ids = np.full(256, VOID, np.uint8)
    for index, name in enumerate(names):
        if name in kept:
            new_ids[index] = kept.index(name)
    rest, chosen_by, _ = partition(source)
    link([source], root, rest, chosen_by)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in kept))
    for each in (*rest, *chosen_by):
        path = root / "SegmentationClass" / f"{each}.png"
        with Image.open(path) as labels:
            changed = new_ids[np.asarray(labels)]
        path.unlink()  # the link, so that the original stays as it is
        Image.fromarray(changed).save(path)
    return root


def measured(data: Path, path: Path) -> Iterator[dict[str, Any]]:
    """Score a trained model's variants under every pair of bounds."""
    with open_artifact(data, "data") as images:
        order = np.random.default_rng([0, len(images.array("train"))]).permutation(images.array("train"))
        photos = np.sort(order[: probe.PHOTOS]).tolist()
        models = [variant.of(path) for variant in VARIANTS]
        costs = tallies(models, images, photos, hidden=True)
        gains = tallies(models, images, images.array("val").tolist(), hidden=False)
    for variant, model, cost, gain in zip(VARIANTS, models, costs, gains, strict=True):
        unseen, background = model.unseen, [model.names.index("background")]
        on_training = curve_of(model, *cost[:2])
        false = probe.false_shares(*cost[:2], unseen=unseen, background=background)
        counts, pixels, shown = gain
        aside = curve_of(model, counts, pixels, left_out=np.flatnonzero(shown < LEAST_PHOTOS).tolist())
        for loss, share in product(SEEN_LOSSES, FALSE_SHARES):
            choice = calibration.spend("stacking", on_training, false, max_seen_loss=loss, max_false_share=share)
            place = int(np.abs(aside.gamma - choice.parameter).argmin())
            yield {
                "variant": str(variant), "max_seen_loss": loss, "max_false_share": share, "gamma": choice.parameter,
                "seen": float(aside.seen[place]), "unseen": float(aside.unseen[place]),
                "harmonic": float(aside.harmonic[place]), "oracle": float(aside.harmonic[aside.oracle]),
                "cost": float(aside.seen[aside.zero] - aside.seen[place]),
            }  # fmt: skip


def tallies(
    models: list[Model], data: Artifact, photos: list[int], *, hidden: bool
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Return for each model counts by class and gap, (4, C, B), pixels and photos of each true class, (C,).

    Args:
        models: One network's variants, in the order of `VARIANTS`.
        data: An open data artifact.
        photos: Indices.
        hidden: Whether the labels of unseen classes stay void, as on training photos.
    """
    classes = len(models[0].names)
    unit = gap_unit(vectors_of(models[0]))
    counts = [np.zeros((4, classes, BINS), np.int64) for _ in models]
    pixels, shown = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    neutral, sharpness = calibration.none(classes), presence.SHARPNESS
    for index in photos:
        image = read_image(data, index)
        size = image.shape[:2]
        truth = training_labels(data, index, models[0].unseen if hidden else (), size)
        own = np.bincount(truth[truth != VOID], minlength=classes)
        pixels, shown = pixels + own, shown + (own > 0)
        features = image_features(models[0], image, max_side=PredictConfig.max_side)
        for variant, model, total in zip(VARIANTS, models, counts, strict=True):
            presence.SHARPNESS = variant.sharpness or sharpness
            found = contest(score_features(model, features), neutral, model.seen, model.unseen)
            total += count_gaps(truth, found.seen, found.unseen, gap_bins(found.gap, unit), classes=classes)
    presence.SHARPNESS = sharpness
    return [(total, pixels, shown) for total in counts]


def curve_of(
    model: Model, counts: NDArray[np.int64], pixels: NDArray[np.int64], *, left_out: Sequence[int] = ()
) -> Curve:
    """Return the seen–unseen curve of what was counted."""
    edges = gap_edges(gap_unit(vectors_of(model)))
    return seen_unseen_curve(counts, edges, pixels, seen=model.seen, unseen=model.unseen, left_out=left_out)


def vectors_of(model: Model) -> NDArray[np.float32]:
    """Return the class vectors, (C, D)."""
    assert model.vectors is not None
    return model.vectors.numpy()


def averaged(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average each setting over the pairs."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["variant"], point["max_seen_loss"], point["max_false_share"]), []).append(point)
    keys = ("seen", "unseen", "harmonic", "oracle", "cost")
    return [
        {"variant": variant, "max_seen_loss": loss, "max_false_share": share}
        | {key: float(np.mean([each[key] for each in same])) for key in keys}
        for (variant, loss, share), same in groups.items()
    ]


def best_of(points: list[dict[str, Any]]) -> str:
    """Name the best setting, by the rule of the module's docstring."""
    allowed = [each for each in averaged(points) if each["cost"] <= MAY_COST]
    best = max(allowed, key=lambda each: each["harmonic"])
    return f"{best['variant']}, {best['max_seen_loss']:g}, {best['max_false_share']:g}: {best['harmonic']:.3f}"


def print_table(points: list[dict[str, Any]]) -> None:
    """Print the settings of each variant, best first, and what the rule takes."""
    print("\n| variant | max_seen_loss | max_false_share | seen | unseen | harmonic | oracle | seen lost |")
    print("|---" * 8 + "|")
    for variant in VARIANTS:
        own = [each for each in averaged(points) if each["variant"] == str(variant)]
        for each in sorted(own, key=lambda point: -point["harmonic"]):
            cells = [f"{each[key]:.3f}" for key in ("seen", "unseen", "harmonic", "oracle", "cost")]
            print(f"| {variant} | {each['max_seen_loss']:g} | {each['max_false_share']:g} | {' | '.join(cells)} |")
    print(f"\ntaken: {best_of(points)}")


if __name__ == "__main__":
    main()
