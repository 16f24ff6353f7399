"""Calibration: what is done to the scores so that unseen classes stand a chance against seen ones. NumPy only.

A model that was trained on the seen classes scores them higher everywhere, and where all classes compete the unseen
ones are lost (Chao et al., ECCV 2016). Every method here is of one form: class c scores m_c · s_c + b_c, with s_c the
score of `inference` and, for Apollonius, a gate that lets only a pixel's two best classes compete.

Methods, their parameter, and what they need:
    none              nothing
    stacking          γ        b_c = −γ for seen classes
                               calibrated stacking, Chao et al., ECCV 2016
    csls              γ        b_c = −½ · mean score of class c with its k nearest pixels of a bank; −γ for seen classes
                               cross-domain similarity local scaling, Conneau et al., ICLR 2018, in argmax form
    inverted-softmax  β        b_c = −log Σ_x exp(β s_c(x)) / β over the pixels x of a bank
                               Smith et al., ICLR 2017, in argmax form
    logit-adjustment  τ        b_c = −τ log π_c, π_c the class's share of the labelled training pixels; an unseen class
                               is taken to be as rare as the rarest seen class other than background
                               Menon et al., ICLR 2021
    apollonius        σ        of the two nearest classes the nearer one, with the squared distances ‖f − w_c‖² of
                               unseen classes multiplied by σ: b = 0, m = σ for unseen classes, on −½‖f − w_c‖²
                               Baek, Oh, Ham, ICCV 2021 (JoEm)

A bank is the scores of pixels drawn from training photos without looking at a label. What is affine in each class's
score commutes with bilinear upsampling, so it is done on the coarse grid; the gate is not, and follows after it.
Apollonius compares distances, −½‖f − w_c‖² = s_c − ½‖f‖², and ‖f‖² of an upsampled embedding is less than the upsampled
‖f‖² that is used: its distances are approximate between the grid's cells (the order of the classes is exact, their
ratio is not).

The parameter is chosen on seen classes that were hidden from a model of its own (`probe`), never on unseen ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.config import CalibrationName
from zsseg.curve import Curve
from zsseg.errors import SettingError

Floats = NDArray[np.float32]

NEAREST = 0.01  # of the bank: with how many of its pixels a class is compared by csls

# Tried values. Every other parameter shifts all seen classes alike, so that one pass gives every value of it.
GRIDS: dict[CalibrationName, tuple[float, ...]] = {
    "inverted-softmax": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
    "logit-adjustment": (0.0, *(0.001 * 2.0**step for step in range(12))),
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """Class c scores `scale[c]` · s_c + `bias[c]`.

    Attributes:
        method: Which one of the module's docstring.
        scale: Float32 (C,), all above 0.
        bias: Float32 (C,).
        parameter: γ, β, τ or σ.
        top2: Whether only the two classes that score best before calibration compete.
        chosen_on: Names of the hidden seen classes that the parameter was chosen on; empty where it was given.
    """

    method: CalibrationName
    scale: Floats
    bias: Floats
    parameter: float = 0.0
    top2: bool = False
    chosen_on: tuple[str, ...] = ()

    @property
    def on_distances(self) -> bool:
        """Whether s_c is −½‖f − w_c‖² rather than w_c·f − ½‖w_c‖²."""
        return self.method == "apollonius"

    @property
    def is_identity(self) -> bool:
        """Whether it changes no label."""
        return bool((self.scale == 1).all() and (self.bias == self.bias[0]).all())

    def record(self) -> dict[str, Any]:
        """Return what artifacts and tables say of it."""
        return {"method": self.method, "parameter": self.parameter, "chosen_on": list(self.chosen_on)}


@dataclass(frozen=True)
class Evidence:
    """What methods may look at.

    Attributes:
        seen: Ids of the seen classes.
        objects: Those of them that are not background.
        bank: Scores of training pixels, float32 (X, C).
        pixels: Labelled training pixels of each class, int64 (C,); unseen classes have 0.
    """

    seen: Sequence[int]
    objects: Sequence[int]
    bank: Floats
    pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """A parameter and what it did on the hidden classes.

    Attributes:
        parameter: γ, β, τ or σ.
        seen_miou: mIoU over the classes that the scored model was trained on.
        hidden_miou: mIoU over the seen classes that were hidden from it; NaN where none were.
        harmonic_miou: Their harmonic mean.
        seen_miou_before: The first without calibration.
        false_share: Seen pixels that an unseen class wins in the mean, of those of a mean seen class; NaN where that
            was not asked.
    """

    parameter: float
    seen_miou: float
    hidden_miou: float
    harmonic_miou: float
    seen_miou_before: float
    false_share: float = float("nan")


def none(classes: int) -> Calibration:
    """Return the calibration that leaves every score as it is."""
    return Calibration("none", np.ones(classes, np.float32), np.zeros(classes, np.float32))


def stacking(classes: int, seen: Sequence[int], gamma: float) -> Calibration:
    """Return calibrated stacking: γ is subtracted from the scores of seen classes."""
    return Calibration("stacking", np.ones(classes, np.float32), _on(classes, seen, -gamma), gamma)


def csls(bank: Floats, seen: Sequence[int], gamma: float, *, nearest: float = NEAREST) -> Calibration:
    """Return CSLS in argmax form: a class that is near to many pixels anyway loses by half of how near it is.

    Conneau et al. take the 10 nearest of 200,000 words. Neighbouring pixels repeat each other, so here it is a share.

    Args:
        bank: Scores of training pixels, float32 (X, C).
        seen: Ids of the seen classes.
        gamma: Subtracted from the scores of seen classes as well.
        nearest: Share of the bank that counts as a class's nearest pixels, above 0 and up to 1; at least one pixel.
    """
    pixels, classes = bank.shape
    count = max(1, round(nearest * pixels))
    best = np.partition(bank, pixels - count, axis=0)[pixels - count :]
    bias = -best.mean(axis=0, dtype=np.float64) / 2
    return Calibration(
        "csls", np.ones(classes, np.float32), (bias + _on(classes, seen, -gamma)).astype(np.float32), gamma
    )


def inverted_softmax(bank: Floats, beta: float) -> Calibration:
    """Return the inverted softmax in argmax form: a pixel is shared out among all pixels that a class attracts.

    Args:
        bank: Scores of training pixels, float32 (X, C).
        beta: Inverse temperature, above 0.
    """
    scaled = beta * bank.astype(np.float64)
    top = scaled.max(axis=0)
    bias = -(top + np.log(np.exp(scaled - top).sum(axis=0))) / beta
    return Calibration("inverted-softmax", np.ones(bank.shape[1], np.float32), bias.astype(np.float32), beta)


def logit_adjustment(pixels: NDArray[np.int64], seen: Sequence[int], objects: Sequence[int], tau: float) -> Calibration:
    """Return the logit adjustment: a class that is τ log π_c more frequent starts behind by as much.

    Args:
        pixels: Labelled training pixels of each class, int64 (C,); only those of seen classes are read.
        seen: Ids of the seen classes.
        objects: Those of them that are not background.
        tau: The strength.
    """
    known = [index for index in seen if pixels[index] > 0]
    total = float(pixels[known].sum())
    rarest = min((float(pixels[index]) for index in objects if pixels[index] > 0), default=total)
    prior = np.full(len(pixels), rarest / total)
    prior[known] = pixels[known] / total
    bias = (-tau * np.log(prior)).astype(np.float32)
    return Calibration("logit-adjustment", np.ones(len(pixels), np.float32), bias, tau)


def apollonius(classes: int, seen: Sequence[int], sigma: float) -> Calibration:
    """Return Apollonius calibration: of a pixel's two nearest classes an unseen one counts as σ times as far."""
    scale = np.full(classes, sigma, dtype=np.float32)
    scale[list(seen)] = 1
    return Calibration("apollonius", scale, np.zeros(classes, np.float32), sigma, top2=True)


def build(method: CalibrationName, parameter: float, evidence: Evidence) -> Calibration:
    """Return the calibration of a method with its parameter."""
    classes = len(evidence.pixels)
    match method:
        case "none":
            return none(classes)
        case "stacking":
            return stacking(classes, evidence.seen, parameter)
        case "csls":
            return csls(evidence.bank, evidence.seen, parameter)
        case "inverted-softmax":
            return inverted_softmax(evidence.bank, parameter)
        case "logit-adjustment":
            return logit_adjustment(evidence.pixels, evidence.seen, evidence.objects, parameter)
        case "apollonius":
            return apollonius(classes, evidence.seen, parameter)


def candidates(method: CalibrationName, evidence: Evidence) -> list[Calibration]:
    """Return what is scored to choose the parameter: one for each value tried, or one whose curve has them all."""
    return [build(method, value, evidence) for value in GRIDS.get(method, (neutral(method),))]


def neutral(method: CalibrationName) -> float:
    """Return the parameter that treats seen and unseen classes alike: σ = 1, γ = 0."""
    return 1.0 if method == "apollonius" else 0.0


def choose(
    method: CalibrationName,
    scored: Sequence[tuple[float, Curve]],
    *,
    seen_miou_before: float,
    max_seen_loss: float,
) -> Choice:
    """Choose the parameter with the best harmonic mIoU of seen and hidden classes that costs the seen ones little.

    Args:
        method: Which one.
        scored: For each of `candidates` its parameter and the curve of the probe under it.
        seen_miou_before: mIoU of the probe's seen classes without calibration.
        max_seen_loss: By how much that may fall. Where every value costs more, the one that costs least is taken.

    Raises:
        SettingError: No hidden class has a pixel, so there is nothing to choose by.
    """
    points = [point for value, curve in scored for point in _points(method, value, curve)]
    known = [point for point in points if math.isfinite(point[3])]
    if not known:
        raise SettingError("no validation class occurs in the photos that are scored; name others with --val-classes")
    allowed = [point for point in known if point[1] >= seen_miou_before - max_seen_loss]
    best = max(allowed, key=lambda point: point[3]) if allowed else max(known, key=lambda point: point[1])
    return Choice(*best, seen_miou_before=seen_miou_before)


def spend(
    method: CalibrationName,
    curve: Curve,
    false: NDArray[np.float64],
    *,
    max_seen_loss: float,
    max_false_share: float | None,
) -> Choice:
    """Choose the greatest strength at which unseen classes take no more than so much from the seen ones.

    Args:
        method: One whose candidates are the points of a curve, so not one of `GRIDS`.
        curve: Of the seen classes against the unseen ones, scored where only seen classes have labels.
        false: Seen pixels that an unseen class wins at each γ, of the size of a class, float64 (G,), ascending.
        max_seen_loss: By how much the seen mIoU may fall below that without calibration, on the way to the strength
            as well as there.
        max_false_share: How large `false` may be; None: as large as it gets. A model whose unseen classes never cost so
            much as one of the two bounds stays uncalibrated.
    """
    stronger = np.flatnonzero(curve.gamma >= curve.gamma[curve.zero])
    before = float(curve.seen[curve.zero])
    most = math.inf if max_false_share is None else max_false_share
    over = np.flatnonzero((before - curve.seen[stronger] > max_seen_loss) | (false[stronger] > most))
    place = int(stronger[max(over[0] - 1, 0)]) if len(over) else curve.zero
    nan = float("nan")
    parameter, cost = _shifted(method, curve.gamma[place]), float(false[place])
    return Choice(parameter, float(curve.seen[place]), nan, nan, seen_miou_before=before, false_share=cost)


def _points(method: CalibrationName, value: float, curve: Curve) -> list[tuple[float, float, float, float]]:
    """Return parameter, seen, hidden and harmonic mIoU; what changes least comes first, so that it wins ties."""
    if method in GRIDS:
        zero = curve.zero
        return [(value, float(curve.seen[zero]), float(curve.unseen[zero]), float(curve.harmonic[zero]))]
    order = np.argsort(np.abs(curve.gamma), kind="stable").tolist()
    return [
        (_shifted(method, curve.gamma[i]), float(curve.seen[i]), float(curve.unseen[i]), float(curve.harmonic[i]))
        for i in order
    ]


def _shifted(method: CalibrationName, gamma: float) -> float:
    """Return the parameter that moves the gap by γ: γ itself, or a factor where the gap is a log ratio of distances."""
    return math.exp(-gamma) if method == "apollonius" else float(gamma)


def _on(classes: int, ids: Sequence[int], value: float) -> Floats:
    vector = np.zeros(classes, dtype=np.float32)
    vector[list(ids)] = value
    return vector
