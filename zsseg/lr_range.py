"""`zsseg train --find-lr`: a learning-rate range test, which trains for a moment at ever higher rates.

The rate rises geometrically from `LOW` to `HIGH`, the loss is smoothed by an exponential mean, and the test ends where
it is `DIVERGED` times the least so far. The curve has three parts: flat, where the rate is too small to matter;
falling; and rising, where training is no longer stable. The suggested rate is a tenth of that at the least
loss: with the usual schedule a run stays near its peak for long, and needs some distance from where it becomes
unstable.

The network, its outputs, the loss and the optimizer are those of a run with the same settings, and start as it does;
nothing is written but the picture. The labels are training labels.

References:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017 (with a linear rise);
    Howard and Gugger, "Fastai: A Layered API for Deep Learning", Information 2020 (a tenth of the rate at the least
    loss).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from zsseg.artifacts import check_output, write_file
from zsseg.charts import figure, own_style, png
from zsseg.config import TrainConfig
from zsseg.errors import TrainingError
from zsseg.hardware import keep_freed_memory
from zsseg.progress import SILENT, Progress
from zsseg.state import initial_state
from zsseg.task import read_task
from zsseg.train import DivergedError, Features, walk

LOW, HIGH = 1e-5, 1.0
STEPS = 150
MEMORY = 0.9  # of the exponential mean: ten steps
DIVERGED = 4.0  # times the least loss so far
SETTLED = 15  # steps before which the mean says little
BELOW = 10.0  # the suggestion is the rate at the least loss divided by this


@dataclass(frozen=True)
class RangeSummary:
    """What a range test found.

    Attributes:
        picture: The curve.
        rates: Learning rate of each step, rising.
        losses: The smoothed loss after it.
        lowest: The rate at the least loss.
        steepest: The rate where the loss falls fastest, for each factor in the rate.
        suggestion: The rate to train with.
        default: The rate that a run without --lr has.
        diverged: Whether the loss rose so much that the test ended early.
    """

    picture: Path
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    lowest: float
    steepest: float
    suggestion: float
    default: float
    diverged: bool


def rate_at(step: int) -> float:
    """Return the rate of a step, from 0: `LOW` at the first, `HIGH` at the last."""
    return float(LOW * (HIGH / LOW) ** (step / (STEPS - 1)))


def smoothed(losses: list[float]) -> list[float]:
    """Return the exponential mean after each step, corrected for its start at 0."""
    mean, means = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**count))
    return means


def find_rate(
    data: Path,
    split: Path,
    labels: Path | None,
    picture: Path,
    config: TrainConfig,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> RangeSummary:
    """Run the test and draw its curve.

    Args:
        data: data.h5.
        split: split.h5, made from that data.
        labels: labels.h5 of the same classes; None for the softmax baseline.
        picture: The PNG to write.
        config: Settings; learning rate and epochs are the test's own.
        force: Replace an existing picture.
        progress: Told of each step.

    Raises:
        ArtifactError: An input is missing, damaged, or does not fit the others; or the output is refused.
        SettingError: A setting that cannot be met.
        TrainingError: The loss is not finite from the start.
    """
    check_output(picture, force=force)
    keep_freed_memory()
    task = read_task(
        data, split, labels, replace(config, calibration="none", val_classes=(), self_train="none", lr=None)
    )
    task = replace(task, config=replace(task.config, epochs=math.ceil(STEPS / task.steps_per_epoch)))
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        state = initial_state(task)
        cache = Features().of(task, state.net, Path(folder), progress) if task.config.frozen else None
        steps = walk(task, state, cache, title="learning-rate range test", rate_of=rate_at, progress=progress)
        with contextlib.closing(steps), contextlib.suppress(DivergedError):
            for step in steps:
                if step == STEPS or _has_risen(smoothed(state.losses)):
                    break
    if len(state.losses) < SETTLED:
        raise TrainingError(
            f"the loss is not finite after {len(state.losses)} steps at rates up to {rate_at(len(state.losses)):.1g}; "
            "try --precision float32 or another --loss"
        )
    summary = summarise(picture, state.rates, state.losses, default=task.lr)
    _draw(summary)
    return summary


def _has_risen(means: list[float]) -> bool:
    return len(means) > SETTLED and means[-1] > DIVERGED * min(means[SETTLED - 1 :])


def summarise(picture: Path, rates: list[float], losses: list[float], *, default: float) -> RangeSummary:
    """Return the rates that a curve speaks for.

    Args:
        picture: Where it is drawn.
        rates: Of each step, rising, at least `SETTLED`.
        losses: Of each step.
        default: The rate of a run without --lr.
    """
    means = smoothed(losses)
    slopes = np.gradient(np.array(means), np.log(np.array(rates)))[SETTLED - 1 :]
    lowest = rates[SETTLED - 1 + int(np.argmin(means[SETTLED - 1 :]))]
    return RangeSummary(
        picture=picture,
        rates=tuple(rates),
        losses=tuple(means),
        lowest=lowest,
        steepest=rates[SETTLED - 1 + int(np.argmin(slopes))],
        suggestion=lowest / BELOW,
        default=default,
        diverged=len(rates) < STEPS,
    )


def _draw(summary: RangeSummary) -> None:
    with own_style():
        drawn = figure(7, 4.2)
        axes = drawn.subplots()
        axes.plot(summary.rates, summary.losses, color="black", linewidth=1.4)
        for rate, colour, style, label in (
            (summary.suggestion, "#D55E00", "-", "suggested"),
            (summary.steepest, "#0072B2", "--", "steepest"),
            (summary.lowest, "#009E73", "--", "least loss"),
            (summary.default, "#999999", ":", "default"),
        ):
            axes.axvline(rate, color=colour, linestyle=style, linewidth=1.2, label=f"{label} {rate:.1e}")
        settled = summary.losses[SETTLED - 1 :]
        axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
        axes.set_ylim(0.9 * min(settled), 1.1 * min(max(summary.losses), 2 * summary.losses[0]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        write_file(summary.picture, png(drawn))
