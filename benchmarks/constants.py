"""Choose the constants of `zsseg train`'s zero-shot defaults without a label of the classes that results are about.

    python benchmarks/constants.py --data ../shared/data [--pairs 'cat,horse;bird,dog'] [--json FILE]

Photos: the training photos of voc-animals and of coco-voc20. In all their label maps cow and sheep are void, and
neither is among the classes. No photo of val is opened. Of voc-animals 300 photos are kept aside to score on, another
300 are left out altogether (`zero_shot.py --table aside` scores those).
Two of the four animals that are left play the unseen classes, each pair of them once: the label maps that are trained
on hide them as they hide any unseen class. For each pair there are three settings: a model of voc-animals, scored on
the 300 photos and on coco-voc20's; and a model of coco-voc20, scored on the 300.

Each model is scored with and without gate, anchors and presence, for several sharpnesses of the latter; for each of
these and for each pair of bounds, --max-seen-loss and --max-false-share, the calibration is chosen as `train` chooses
it, on the model's training photos and seen labels. The rule by which the defaults are taken from the printed table: the
highest harmonic mIoU, averaged over pairs and settings, among what lowers seen mIoU by at most 2 points in the mean.

--blind chooses, with the bounds that zsseg has, whether presence acts under `--self-train anywhere`: both are trained
for each pair on coco-voc20 and on every sixth photo of voc-animals, and scored on the 300; the higher harmonic mIoU in
the mean is taken.
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
from zero_shot import BOTH, DEFAULT, Bench, Row, link, listed, partition

from zsseg import calibration, presence, probe
from zsseg.artifacts import Artifact, open_artifact
from zsseg.classes import BACKGROUND, VOID
from zsseg.config import EvalConfig, FetchConfig, PredictConfig, SplitConfig
from zsseg.curve import BINS, Curve, count_gaps, gap_bins, gap_edges, gap_unit, seen_unseen_curve
from zsseg.dataset import read_image, training_labels
from zsseg.evaluate import evaluate
from zsseg.fetch import fetch_data
from zsseg.inference import Model, contest, image_features, load_model, score_features
from zsseg.split import make_split
from zsseg.train import train

# What is trained on -> what is scored on.
SETTINGS = {"voc-animals": ("voc-animals", "coco-voc20"), "coco-voc20": ("voc-animals",)}
LEFT_OUT = ("cow", "sheep")
ANIMALS = ("bird", "cat", "dog", "horse")
SEEN_LOSSES = (0.005, 0.01, 0.015, 0.02, 0.03, math.inf)
FALSE_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, math.inf)
MAY_COST = 0.02  # seen mIoU
LEAST_PHOTOS = 5  # of those scored show a class that counts in the means


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
        settings = {"presence": self.sharpness is not None, "presence_sharpness": self.sharpness}
        return replace(model, params={**model.params, **settings})

    def __str__(self) -> str:
        parts = ["gate"] * self.gate + ["anchors"] * self.anchors
        return ", ".join(parts + ([] if self.sharpness is None else [f"presence {self.sharpness:g}"])) or "plain NNE"


VARIANTS = (
    *(Variant(sharpness=sharpness) for sharpness in (10.0, 20.0, 40.0, None)),
    *(Variant(anchors=False, sharpness=sharpness) for sharpness in (20.0, None)),
    *(Variant(gate=False, anchors=False, sharpness=sharpness) for sharpness in (20.0, None)),
)


def main() -> None:
    """Train a model for each pair, score the variants, and print what each setting gives in the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--pairs", default=";".join(",".join(pair) for pair in combinations(ANIMALS, 2)))
    parser.add_argument("--blind", action="store_true", help="presence under --self-train anywhere")
    parser.add_argument("--json", type=Path, help="write the points here, after each pair")
    options = parser.parse_args()
    points: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = made(options.data.resolve(), work, every=6 if options.blind else 1)
        words = work / "labels.h5"
        Bench(options.data.resolve(), work).embed(data["voc-animals"], Row(vectors=BOTH), words)
        for pair in options.pairs.split(";"):
            for name in SETTINGS:
                split, model = work / "split.h5", work / "model.h5"
                make_split(data[name], split, SplitConfig(unseen=tuple(pair.split(","))), force=True)
                found = (self_trained if options.blind else chosen)(name, data, split, words, model)
                points += [{"pair": pair, "trained on": name, **each} for each in found]
            print_summary(pair, [each for each in points if each["pair"] == pair], blind=options.blind)
            if options.json:
                options.json.write_text(json.dumps(points) + "\n")
    if options.blind:
        print_summary("all pairs", points, blind=True)
    else:
        print_table(points)


def made(source: Path, work: Path, *, every: int) -> dict[str, Path]:
    """Make the data artifacts; of voc-animals' photos to train on take one of so many."""
    data = {name: work / f"{name}.h5" for name in SETTINGS}
    for name, path in data.items():
        own = name == "voc-animals"
        root = without(source / name / "VOC2012", work / name, LEFT_OUT, apart=own, every=every if own else 1)
        fetch_data(path, FetchConfig("folder"), root=root)
    return data


def chosen(name: str, data: dict[str, Path], split: Path, words: Path, model: Path) -> Iterator[dict[str, Any]]:
    """Train a model and yield what each variant gives under each pair of bounds."""
    train(data[name], split, words, model, replace(DEFAULT, calibration="none"), force=True)
    yield from measured(model, data[name], {test: data[test] for test in SETTINGS[name]})


def self_trained(name: str, data: dict[str, Path], split: Path, words: Path, model: Path) -> Iterator[dict[str, Any]]:
    """Train blindly with and without presence, and yield the scores on the photos kept apart."""
    for acts in (False, True):
        train(data[name], split, words, model, replace(DEFAULT, self_train="anywhere", presence=acts), force=True)
        scores = model.with_name("scores.h5")
        found = evaluate(model, data["voc-animals"], scores, EvalConfig(min_images=LEAST_PHOTOS), force=True)
        generalized = found.generalized
        yield {
            "scored on": "voc-animals", "presence": acts, "seen": generalized.seen_miou,
            "unseen": generalized.unseen_miou, "harmonic": generalized.harmonic_miou,
        }  # fmt: skip


def print_summary(title: str, points: list[dict[str, Any]], *, blind: bool) -> None:
    """Print the best setting, or for each data set the mean without and with presence."""
    if not blind:
        print(f"{title}: {line(best_of(points))}", flush=True)
        return
    for name in (*SETTINGS, ""):
        same = [each for each in points if name in ("", each["trained on"])]
        plain, present = (mean_of([each for each in same if each["presence"] is acts]) for acts in (False, True))
        print(f"{title}, trained on {name or 'either'}: without {plain:.3f}, with presence {present:.3f}", flush=True)


def mean_of(points: list[dict[str, Any]]) -> float:
    """Return the mean harmonic mIoU."""
    return float(np.mean([each["harmonic"] for each in points]))


def without(source: Path, root: Path, left_out: tuple[str, ...], *, apart: bool, every: int = 1) -> Path:
    """Write a data set's training photos once more, some classes void and out of the list of classes.

    Args:
        source: Its folder.
        root: Where it goes.
        left_out: The classes.
        apart: Whether photos to score on are kept apart, as `val`; else all are trained on.
        every: Of the photos to train on take one of so many.
    """
    names = (source / "classes.txt").read_text().split()
    kept = [name for name in names if name not in left_out]
    new_ids = np.full(256, VOID, np.uint8)
    for index, name in enumerate(names):
        if name in kept:
            new_ids[index] = kept.index(name)
    rest, chosen_by = partition(source)[:2] if apart else (listed(source, "train"), [])
    rest = rest[::every]
    link([source], root, rest, chosen_by)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in kept))
    for each in (*rest, *chosen_by):
        path = root / "SegmentationClass" / f"{each}.png"
        with Image.open(path) as labels:
            changed = new_ids[np.asarray(labels)]
        path.unlink()  # the link, so that the original stays as it is
        Image.fromarray(changed).save(path)
    return root


def measured(path: Path, trained_on: Path, tests: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Score a trained model's variants under every pair of bounds, on the photos kept apart, or on all there are."""
    models = [variant.of(path) for variant in VARIANTS]
    with open_artifact(trained_on, "data") as images:
        order = np.random.default_rng([0, len(images.array("train"))]).permutation(images.array("train"))
        costs = tallies(models, images, np.sort(order[: probe.PHOTOS]).tolist(), hidden=True)
    for test, data in tests.items():
        with open_artifact(data, "data") as images:
            photos = images.array("val") if len(images.array("val")) else images.array("train")
            gains = tallies(models, images, photos.tolist(), hidden=False)
        for variant, model, cost, gain in zip(VARIANTS, models, costs, gains, strict=True):
            for point in under_bounds(model, cost, gain):
                yield {"scored on": test, "variant": str(variant), **point}


def under_bounds(model: Model, cost: Tally, gain: Tally) -> Iterator[dict[str, Any]]:
    """Choose the calibration under every pair of bounds by what it costs, and return what it gains."""
    on_training = curve_of(model, cost, left_out=probe.rare_classes(cost.photos, model.seen))
    background = [model.names.index(BACKGROUND)]
    false = probe.false_shares(cost.counts, cost.pixels, unseen=model.unseen, background=background)
    aside = curve_of(model, gain, left_out=np.flatnonzero(gain.photos < LEAST_PHOTOS).tolist())
    for loss, share in product(SEEN_LOSSES, FALSE_SHARES):
        choice = calibration.spend("stacking", on_training, false, max_seen_loss=loss, max_false_share=share)
        place = int(np.abs(aside.gamma - choice.parameter).argmin())
        yield {
            "max_seen_loss": loss, "max_false_share": share, "gamma": choice.parameter,
            "seen": float(aside.seen[place]), "unseen": float(aside.unseen[place]),
            "harmonic": float(aside.harmonic[place]), "oracle": float(aside.harmonic[aside.oracle]),
            "cost": float(aside.seen[aside.zero] - aside.seen[place]),
        }  # fmt: skip


@dataclass
class Tally:
    """What a pass over photos counted: pixels by class and gap, (4, C, B); pixels and photos of each class, (C,)."""

    counts: NDArray[np.int64]
    pixels: NDArray[np.int64]
    photos: NDArray[np.int64]


def tallies(models: list[Model], data: Artifact, photos: list[int], *, hidden: bool) -> list[Tally]:
    """Count for each model; one backbone runs for all.

    Args:
        models: One network's variants, in the order of `VARIANTS`.
        data: An open data artifact.
        photos: Indices.
        hidden: Whether the labels of unseen classes stay void, as on training photos.
    """
    classes = len(models[0].names)
    unit = gap_unit(vectors_of(models[0]))
    found = [Tally(np.zeros((4, classes, BINS), np.int64), *np.zeros((2, classes), np.int64)) for _ in models]
    neutral = calibration.none(classes)
    for index in photos:
        image = read_image(data, index)
        truth = training_labels(data, index, models[0].unseen if hidden else (), image.shape[:2])
        own = np.bincount(truth[truth != VOID], minlength=classes)
        features = image_features(models[0], image, max_side=PredictConfig.max_side)
        for model, tally in zip(models, found, strict=True):
            best = contest(score_features(model, features), neutral, model.seen, model.unseen)
            tally.counts += count_gaps(truth, best.seen, best.unseen, gap_bins(best.gap, unit), classes=classes)
            tally.pixels += own
            tally.photos += own > 0
    return found


def curve_of(model: Model, tally: Tally, *, left_out: Sequence[int] = ()) -> Curve:
    """Return the seen–unseen curve of what was counted."""
    edges = gap_edges(gap_unit(vectors_of(model)))
    return seen_unseen_curve(tally.counts, edges, tally.pixels, seen=model.seen, unseen=model.unseen, left_out=left_out)


def vectors_of(model: Model) -> NDArray[np.float32]:
    """Return the class vectors, (C, D)."""
    assert model.vectors is not None
    return model.vectors.numpy()


def averaged(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average what the same variant and bounds gave over pairs and settings."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["variant"], point["max_seen_loss"], point["max_false_share"]), []).append(point)
    keys = ("seen", "unseen", "harmonic", "oracle", "cost")
    return [
        {"variant": variant, "max_seen_loss": loss, "max_false_share": share}
        | {key: float(np.mean([each[key] for each in same])) for key in keys}
        for (variant, loss, share), same in groups.items()
    ]


def best_of(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best setting, by the rule of the module's docstring; of equals the one with the smallest bounds."""
    return max(
        (each for each in averaged(points) if each["cost"] <= MAY_COST),
        key=lambda each: (round(each["harmonic"], 6), -each["max_seen_loss"], -each["max_false_share"]),
    )


def line(best: dict[str, Any]) -> str:
    """Return a setting and what it gave as one line."""
    return f"{best['variant']}, {best['max_seen_loss']:g}, {best['max_false_share']:g}: {best['harmonic']:.3f}"


def print_table(points: list[dict[str, Any]]) -> None:
    """Print harmonic mIoU of each variant with the best --max-seen-loss, for each --max-false-share, and the best."""
    best, all_points = best_of(points), averaged(points)
    shares = "".join(f" {share:g} |" for share in FALSE_SHARES)
    print(f"\n| variant, --max-seen-loss {best['max_seen_loss']:g}, --max-false-share |{shares} oracle |")
    print("|---" * (len(FALSE_SHARES) + 2) + "|")
    for variant in VARIANTS:
        own = [each for each in all_points if each["variant"] == str(variant)]
        row = [each for each in own if each["max_seen_loss"] == best["max_seen_loss"]]
        cells = "".join(f" {each['harmonic']:.3f} |" for each in row)
        print(f"| {variant} |{cells} {row[0]['oracle']:.3f} |")
    for variant in VARIANTS:
        print(line(best_of([each for each in points if each["variant"] == str(variant)])))
    print(f"taken: {line(best)}")


if __name__ == "__main__":
    main()
