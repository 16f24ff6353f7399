"""Choose a calibration's parameter from training photos and seen labels.

Two ways (docs/calibration.md has what each gave):
    seen         `spend_seen_loss`: the greatest strength at which unseen classes take no more than a set amount of mIoU
                 and of pixels from the seen ones, of the trained model itself. What is asked is only how much the seen
                 classes lose, so no class has to be hidden, and nothing has to carry over from some classes to others.
    val-classes  `choose_parameter`: on seen classes that a model of its own, the probe, has never been shown.

For the second, `train` hides the validation classes as it hides the unseen ones, trains the probe on the rest, and
asks here which parameter gives the best harmonic mIoU of the two kinds on training photos kept aside from the probe.
The labels of the validation classes are known, for they are seen classes; those of unseen classes stay void, and unseen
classes do not compete. The model itself is then trained on all seen classes, and takes the parameter over.

Which classes to hide is decided by class vectors, by names, and by how many photos show a seen class: no unseen label
is read. What a method looks at besides (`Evidence`) comes from training photos: pixels drawn without a label for
the bank, and counts of seen labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import calibration, distributed
from zsseg.artifacts import Artifact
from zsseg.calibration import Calibration, Choice, Evidence
from zsseg.classes import BACKGROUND, VOID
from zsseg.config import CalibrationName, PredictConfig
from zsseg.curve import BINS, Curve, count_gaps, gap_bins, gap_edges, gap_unit, seen_unseen_curve
from zsseg.dataset import read_image, seen_pixels, training_labels
from zsseg.errors import SettingError, TrainingError
from zsseg.inference import Model, contest, score_image
from zsseg.progress import Progress

PHOTOS = 200  # that the probe is scored on, at most; a fifth of the training photos where that is less
BANK_PHOTOS, BANK_PIXELS = 200, 500  # pixels of each
FALSE_SHARE = 0.5  # of a mean seen class, in pixels that an unseen one may win with anchors
LEAST_PHOTOS = 5  # of those scored show a seen class whose IoU counts in what a calibration costs
COMMON = 0.02  # share of the training photos that an automatically chosen class is in, at least


@dataclass(frozen=True)
class Plan:
    """What the probe does without.

    Attributes:
        hidden: Ids of the validation classes, ascending.
        photos: Indices of the training photos that it is scored on, ascending.
        rest: Indices of those that it is trained on, ascending.
    """

    hidden: tuple[int, ...]
    photos: tuple[int, ...]
    rest: tuple[int, ...]


def make_plan(
    data: Artifact, train: NDArray[np.int64], vectors: NDArray[np.float32], unseen: Sequence[int], *,
    wanted: Sequence[str], seed: int,
) -> Plan:  # fmt: skip
    """Decide which classes and photos the probe does without.

    Args:
        data: An open data artifact.
        train: Indices of the training photos, int64 (T,).
        vectors: Class vectors, float32 (C, D).
        unseen: Ids of the unseen classes, at least one.
        wanted: Names of the validation classes; empty: chosen automatically.
        seed: Of the choice of photos.

    Raises:
        SettingError: A wanted class is unknown or unseen.
        TrainingError: No class can be hidden, or no photo shows one.
    """
    names = data.strings("names")
    shown = np.array(list(seen_pixels(data, train.tolist(), unseen, len(names)))) > 0  # (T, C)
    hidden = _named(names, unseen, wanted) if wanted else choose_hidden(names, vectors, unseen, shown.mean(axis=0))
    order = np.random.default_rng([seed, len(train)]).permutation(len(train))
    first = [next((place for place in order.tolist() if shown[place, index]), None) for index in hidden]
    if None in first:
        absent = names[hidden[first.index(None)]]
        raise TrainingError(f"no training photo shows the validation class {absent}; name others with --val-classes")
    count = min(PHOTOS, max(1, len(train) // 5))
    # one photo at least for every hidden class; dict: unique, in order
    chosen = list(dict.fromkeys([*(place for place in first if place is not None), *order.tolist()]))
    chosen = chosen[: max(count, len(set(first)))]
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    if not len(rest):
        raise TrainingError(f"{len(train)} training photos are too few to choose a calibration; use --calibration none")
    return Plan(tuple(sorted(hidden)), tuple(train[np.sort(chosen)].tolist()), tuple(train[rest].tolist()))


def choose_hidden(
    names: Sequence[str], vectors: NDArray[np.float32], unseen: Sequence[int], shares: NDArray[np.float64]
) -> list[int]:
    """Choose seen classes that are about as hard to find from the rest as the unseen ones are from the seen ones.

    As many as there are unseen classes, at most a third of those that qualify: not background, and in enough photos.
    One after the other that class joins with which the mean cosine of a chosen class to its nearest remaining seen
    class is closest to that of the unseen ones.

    Args:
        names: Class names, C of them.
        vectors: Class vectors, float32 (C, D).
        unseen: Ids of the unseen classes.
        shares: Share of the training photos that show each class, (C,).

    Raises:
        TrainingError: No class qualifies, or too few would be left.
    """
    cosine = _cosines(vectors)
    seen = [index for index in range(len(names)) if index not in unseen]
    able = [index for index in seen if names[index] != BACKGROUND and shares[index] >= max(COMMON, 1e-9)]
    count = min(len(unseen), max(1, len(able) // 3), len(seen) - 2)
    if not able or count < 1:
        raise TrainingError(
            f"no class can be hidden to choose a calibration: {len(able)} of {len(seen)} seen classes are in at least "
            f"{COMMON:.0%} of the training photos; name some with --val-classes, or use --calibration none"
        )
    target = _nearness(cosine, unseen, seen)
    hidden: list[int] = []
    while len(hidden) < count:

        def misfit(index: int) -> float:
            trial = [*hidden, index]
            return abs(_nearness(cosine, trial, [each for each in seen if each not in trial]) - target)

        hidden.append(min((index for index in able if index not in hidden), key=misfit))
    return hidden


def gather_evidence(
    method: CalibrationName, model: Model, data: Artifact, train: Sequence[int], *, seed: int
) -> Evidence:
    """Look at what a method needs of the training photos; what it does not need stays empty."""
    classes = len(model.names)
    bank, pixels = np.zeros((0, classes), np.float32), np.zeros(classes, np.int64)
    if method in ("csls", "inverted-softmax"):
        bank = draw_bank(model, data, train, seed=seed)
    if method == "logit-adjustment":
        pixels = sum(seen_pixels(data, train, model.unseen, classes), pixels)
    objects = [index for index in model.seen if model.names[index] != BACKGROUND]
    return Evidence(model.seen, objects, bank, pixels)


def draw_bank(model: Model, data: Artifact, train: Sequence[int], *, seed: int) -> NDArray[np.float32]:
    """Return the scores of cells drawn from training photos, whatever they show, float32 (X, C)."""
    rng = np.random.default_rng([seed, len(train)])
    rows = []
    for index in np.sort(rng.permutation(train)[:BANK_PHOTOS]).tolist():
        grid = score_image(model, read_image(data, index), max_side=PredictConfig.max_side)
        height, width = (-(-length // grid.stride) for length in grid.input_size)  # beyond lies padding
        cells = grid.scores[:, :height, :width].reshape(len(model.names), -1).cpu().numpy()
        drawn = rng.choice(cells.shape[1], min(BANK_PIXELS, cells.shape[1]), replace=False)
        rows.append(cells[:, np.sort(drawn)].T)
    return np.concatenate(rows).astype(np.float32)


def choose_parameter(
    method: CalibrationName,
    model: Model,
    data: Artifact,
    plan: Plan,
    *,
    max_seen_loss: float,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the parameter that serves the probe best, and how well, as the model artifact records it.

    Args:
        method: Which calibration.
        model: The probe; its unseen classes are the hidden ones and those that are unseen anyway.
        data: An open data artifact.
        plan: What was hidden from it.
        max_seen_loss: By how much mIoU over its seen classes may fall.
        seed: Of the bank.
        progress: Told of each photo.
    """
    evidence = gather_evidence(method, model, data, plan.rest, seed=seed)
    tried = calibration.candidates(method, evidence)
    tally = count_scores(
        model,
        data,
        plan.photos,
        [calibration.none(len(model.names)), *tried],
        rivals=plan.hidden,
        void=[index for index in model.unseen if index not in plan.hidden],
        progress=progress,
    )
    before, *curves = tally.curves(model.seen, plan.hidden)
    choice = calibration.choose(
        method,
        [(each.parameter, found) for each, found in zip(tried, curves, strict=True)],
        seen_miou_before=float(before.seen[before.zero]),
        max_seen_loss=max_seen_loss,
    )
    return record(choice, top2=tried[0].top2, names=[model.names[index] for index in plan.hidden], plan=plan)


def spend_seen_loss(
    method: CalibrationName,
    model: Model,
    data: Artifact,
    train: NDArray[np.int64],
    *,
    max_seen_loss: float,
    max_false_share: float | None,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Return the greatest strength that costs the seen classes so much, as the model artifact records it.

    Seen and unseen classes compete; what the pixels of unseen classes are called counts for nothing, they are void.

    Args:
        method: One whose strength is a point of the curve, so not one of `calibration.GRIDS`.
        model: The trained model.
        data: An open data artifact.
        train: Indices of the training photos, of which at most `PHOTOS` are scored.
        max_seen_loss: By how much mIoU over the seen classes may fall.
        max_false_share: How many seen pixels an unseen class may win in the mean, of those of a mean seen class; None:
            any number.
        seed: Of the bank, and of which photos are scored.
        progress: Told of each photo.
    """
    evidence = gather_evidence(method, model, data, train.tolist(), seed=seed)
    photos = np.sort(np.random.default_rng([seed, len(train)]).permutation(train)[:PHOTOS]).tolist()
    neutral = calibration.build(method, calibration.neutral(method), evidence)
    void = rivals = model.unseen
    tally = count_scores(model, data, photos, [neutral], rivals=rivals, void=void, progress=progress)
    (found,) = tally.curves(model.seen, rivals)
    background = [index for index in model.seen if model.names[index] == BACKGROUND]
    false = false_shares(tally.counts[0], tally.pixels, unseen=rivals, background=background)
    choice = calibration.spend(method, found, false, max_seen_loss=max_seen_loss, max_false_share=max_false_share)
    return {
        "parameter": choice.parameter,
        "seen_miou": choice.seen_miou,
        "seen_miou_before": choice.seen_miou_before,
        "false_share": choice.false_share,
        "top2": neutral.top2,
        "validation_classes": [],
        "photos": len(photos),
    }


def record(choice: Choice, *, top2: bool, names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Return what the model artifact says of a choice: plain JSON values."""
    chosen = asdict(choice)
    del chosen["false_share"]  # not asked of a probe
    return {**chosen, "top2": top2, "validation_classes": list(names), "photos": len(plan.photos)}


def false_shares(
    counts: NDArray[np.int64], pixels: NDArray[np.int64], *, unseen: Sequence[int], background: Sequence[int]
) -> NDArray[np.float64]:
    """Return how many seen pixels an unseen class wins in the mean, of those of a mean seen class, at each edge.

    Were an unseen class as large as a mean seen one and found whole, a share q would lower its IoU to 1 / (1 + q).

    Args:
        counts: As `count_gaps` gives, int64 (4, C, B), with unseen pixels void.
        pixels: True pixels of each class, int64 (C,).
        unseen: Ids of the unseen classes, at least one.
        background: Ids that the mean leaves out, unless the photos show nothing else.

    Returns:
        Float64 (B − 1,), ascending.
    """
    won = counts[3, list(unseen)].sum(axis=0).cumsum()[:-1] / len(unseen)
    objects = np.delete(pixels, list(background))
    shown = objects[objects > 0] if objects.any() else pixels[pixels > 0]
    return won / shown.mean() if len(shown) else np.zeros(len(won))


@dataclass(frozen=True)
class Tally:
    """What a pass over photos counted.

    Attributes:
        counts: For each calibration what `count_gaps` gives, int64 (4, C, B).
        edges: For each calibration the edges between the bins, float64 (B − 1,).
        pixels: True pixels of each class, int64 (C,).
        photos: In how many photos each class is, int64 (C,).
    """

    counts: list[NDArray[np.int64]]
    edges: list[NDArray[np.float64]]
    pixels: NDArray[np.int64]
    photos: NDArray[np.int64]

    def curves(self, seen: Sequence[int], rivals: Sequence[int]) -> list[Curve]:
        """Return the curve of seen classes against others under each calibration; rare seen ones do not count."""
        rare = rare_classes(self.photos, seen)
        return [
            seen_unseen_curve(counts, edges, self.pixels, seen=seen, unseen=rivals, left_out=rare)
            for counts, edges in zip(self.counts, self.edges, strict=True)
        ]


def rare_classes(photos: NDArray[np.int64], seen: Sequence[int]) -> list[int]:
    """Return the seen classes in fewer than `LEAST_PHOTOS` photos; none where that would leave fewer than two.

    The IoU of a class in one photo is that photo's: an unseen class that takes it over would cost a whole class.

    Args:
        photos: In how many photos each class is, int64 (C,).
        seen: Ids of the seen classes.
    """
    rare = [index for index in seen if photos[index] < LEAST_PHOTOS]
    return rare if len(seen) - len(rare) > 1 else []


def count_scores(
    model: Model,
    data: Artifact,
    photos: Sequence[int],
    calibrations: Sequence[Calibration],
    *,
    rivals: Sequence[int],
    void: Sequence[int],
    progress: Progress,
) -> Tally:
    """Count pixels by class and gap under each calibration, in one pass over the photos.

    Args:
        model: What scores.
        data: An open data artifact.
        photos: Indices of training photos.
        calibrations: Each is counted for itself.
        rivals: Ids of the classes that compete with the model's seen ones.
        void: Ids of the classes whose labels are hidden.
        progress: Told of each photo.
    """
    classes = len(model.names)
    vectors = np.zeros((1, 1), np.float32) if model.vectors is None else model.vectors.cpu().numpy()
    units = [1.0 if each.on_distances else gap_unit(vectors) for each in calibrations]
    counts = [np.zeros((4, classes, BINS), dtype=np.int64) for _ in calibrations]
    shown = np.zeros((2, classes), dtype=np.int64)  # pixels and photos
    own = distributed.share(photos)
    for index in progress.track(own, "choosing the calibration", len(own)):
        image = read_image(data, index)
        truth = training_labels(data, index, void, image.shape[:2])
        grid = score_image(model, image, max_side=PredictConfig.max_side)
        pixels = np.bincount(truth[truth != VOID], minlength=classes)
        shown += pixels, pixels > 0
        for each, unit, total in zip(calibrations, units, counts, strict=True):
            found = contest(grid, each, model.seen, rivals)
            total += count_gaps(truth, found.seen, found.unseen, gap_bins(found.gap, unit), classes=classes)
    counts, shown = [distributed.sum_counts(each) for each in counts], distributed.sum_counts(shown)
    return Tally(counts, [gap_edges(unit) for unit in units], shown[0], shown[1])


def _named(names: Sequence[str], unseen: Sequence[int], wanted: Sequence[str]) -> list[int]:
    seen = [name for index, name in enumerate(names) if index not in unseen]
    strange = [name for name in wanted if name not in seen]
    if strange:
        raise SettingError(f"--val-classes {strange[0]}: is no seen class; choose from {', '.join(seen)}")
    if len(set(wanted)) > len(seen) - 2:
        raise SettingError(
            f"--val-classes {','.join(wanted)}: leaves {len(seen) - len(set(wanted))} of {len(seen)} seen classes to "
            "train on, expected 2 or more; name fewer"
        )
    return sorted({names.index(name) for name in wanted})


def _cosines(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    cosines: NDArray[np.float64] = (unit @ unit.T).astype(np.float64)
    return cosines


def _nearness(cosine: NDArray[np.float64], ids: Sequence[int], others: Sequence[int]) -> float:
    """Return the mean cosine of classes to the nearest of some others."""
    near = cosine[np.ix_(list(ids), list(others))].max(axis=1).mean()
    return float(near) if math.isfinite(near) else 0.0
