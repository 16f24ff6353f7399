"""Several runs of one recipe that differ in nothing but their seed: their files, and the mean ± std of their scores.

`train --seeds 3` trains with --seed and the seeds after it. The first model has the name of --out, the others have
their seed in it: model.h5, model-seed1.h5, model-seed2.h5. Each is, byte for byte, what `train --seed` alone would
write. `eval --seeds 3` finds them by these names, and writes scores.h5, scores-seed1.h5, scores-seed2.h5.

The standard deviation is the sample's, with N - 1; a single run has none. It tells how much training differs from
run to run on one split, and nothing of how much results differ from split to split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zsseg.artifacts import beside, check_output, open_artifact
from zsseg.config import TrainConfig
from zsseg.errors import ArtifactError, SettingError

if TYPE_CHECKING:  # their modules load torch
    from zsseg.evaluate import EvalSummary
    from zsseg.metrics import Scores

RECIPE = tuple(each.name for each in fields(TrainConfig) if each.name != "seed")  # settings that runs must share


@dataclass(frozen=True)
class Run:
    """One model that is still to be trained; `resume` where it goes on with what is there."""

    path: Path
    seed: int
    resume: bool


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of one score over the runs where it is defined, `count` of them.

    The mean is NaN over none of them, the standard deviation over fewer than two.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class ScoreSpreads:
    """The spread of each mean score, by its name in `metrics.Scores`, and of each class's IoU and accuracy, (C,)."""

    means: Mapping[str, Spread]
    iou: tuple[Spread, ...]
    accuracy: tuple[Spread, ...]


@dataclass(frozen=True)
class SeedsSummary:
    """What several runs scored.

    Attributes:
        seeds: Of each run.
        runs: Their own summaries, in the same order.
        generalized: Where all classes compete.
        vanilla: Where only classes of the pixel's own kind, seen or unseen, compete.
        curve_area: Area under the seen-unseen curve; None without the curve.
    """

    seeds: tuple[int, ...]
    runs: tuple[EvalSummary, ...]
    generalized: ScoreSpreads
    vanilla: ScoreSpreads
    curve_area: Spread | None


def seed_file(first: Path, seed: int) -> Path:
    """Return the file of a further seed: model-seed1.h5 beside model.h5."""
    return first.with_name(f"{first.stem}-seed{seed}{first.suffix}")


def seed_files(first: Path, seeds: Sequence[int]) -> tuple[Path, ...]:
    """Return the file of every seed; the first one's is `first`."""
    return (first, *(seed_file(first, seed) for seed in seeds[1:]))


def plan(
    first: Path,
    seeds: Sequence[int],
    *,
    force: bool = False,
    resume: bool = False,
    given: Mapping[str, Any] | None = None,
) -> tuple[Run, ...]:
    """Return the runs that are still to be trained, and check all outputs before any work.

    With `resume` a finished model stays as it is, an unfinished one goes on, and a missing one is trained anew. A
    single run is left to `train`, which says the same of it.

    Args:
        first: The output of the first seed.
        seeds: All seeds, the first one first.
        force: Whether existing models may be replaced.
        resume: Whether to go on with what is there.
        given: Settings that the user typed; with `resume` they must be those that `first` records.

    Raises:
        ArtifactError: An output is refused, the models that are there are no runs of one recipe, or all are finished.
        SettingError: A typed setting differs from the recorded one.
    """
    files = seed_files(first, seeds)
    for path in files:
        check_output(path, force=force or resume)
    if len(files) == 1 or not resume:
        return tuple(Run(path, seed, resume) for path, seed in zip(files, seeds, strict=True))
    there = [path for path in files if path.exists()]
    if there:
        _check_given(there[0], given or {})
        _check_one_recipe(there)
    finished = [path for path in there if _is_finished(path) and not beside(path, "unfinished").exists()]
    if len(finished) == len(files):
        raise ArtifactError(
            f"{first} and its {len(files) - 1} further seeds: are finished, nothing to resume; score them with "
            f"`zsseg eval --seeds {len(files)}`, or train anew with --force"
        )
    return tuple(Run(path, seed, True) for path, seed in zip(files, seeds, strict=True) if path not in finished)


def models_to_score(models: Sequence[Path], count: int | None) -> tuple[Path, ...]:
    """Return the models that were named, or with `count` the one that was named and its further seeds.

    Raises:
        ArtifactError: A model is missing or is none.
        SettingError: Several models are named, and a count besides.
    """
    if count is None or count == 1:
        return tuple(models)
    if len(models) > 1:
        raise SettingError(
            f"--seeds {count}: finds the further seeds of one model, and {len(models)} are named with --model; leave "
            "one of the two out"
        )
    files = seed_files(models[0], range(seed := _seed(models[0]), seed + count))
    missing = next((path for path in files if not path.exists()), None)
    if missing is not None:
        raise ArtifactError(f"{missing}: no such file; train it with `zsseg train --resume --seeds {count}`")
    return files


def check_runs(models: Sequence[Path]) -> tuple[int, ...]:
    """Return the seeds of several models, after a check that a mean over them makes sense.

    Raises:
        ArtifactError: One is missing, damaged or unfinished, or they differ in more than their seed, or not in that.
    """
    unfinished = next((path for path in models if not _is_finished(path)), None)
    if unfinished is not None:
        raise ArtifactError(
            f"{unfinished}: is not trained to the end; repeat the command that trained it with --resume"
        )
    _check_one_recipe(models)
    seeds = tuple(_seed(path) for path in models)
    twice = next((place for place, seed in enumerate(seeds) if seed in seeds[:place]), None)
    if twice is not None:
        raise ArtifactError(
            f"{models[twice]}: has seed {seeds[twice]} as {models[seeds.index(seeds[twice])]} does, and would count "
            "twice; name each seed once"
        )
    return seeds


def spread(values: Iterable[float]) -> Spread:
    """Return mean and sample standard deviation (N - 1) of the values that are no NaN."""
    known = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(known)) if known else math.nan
    return Spread(mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan, len(known))


def summarise(runs: Sequence[EvalSummary], seeds: Sequence[int]) -> SeedsSummary:
    """Return the spread of every score of several runs, scored alike on the same photos."""
    areas = [run.curve.area for run in runs if run.curve is not None]
    return SeedsSummary(
        seeds=tuple(seeds),
        runs=tuple(runs),
        generalized=_spreads([run.generalized for run in runs]),
        vanilla=_spreads([run.vanilla for run in runs]),
        curve_area=spread(areas) if areas else None,
    )


def as_json(summary: SeedsSummary, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary and the runs as JSON values; what is undefined is null.

    Args:
        summary: Of all runs.
        runs: The JSON values of each run by itself.
    """
    names = summary.runs[0].names

    def plain(spreads: ScoreSpreads) -> dict[str, Any]:
        return {
            **{key: _plain(each) for key, each in spreads.means.items()},
            "iou": dict(zip(names, map(_plain, spreads.iou), strict=True)),
            "accuracy": dict(zip(names, map(_plain, spreads.accuracy), strict=True)),
        }

    return {
        "seeds": list(summary.seeds),
        "summary": {
            "generalized": plain(summary.generalized),
            "vanilla": plain(summary.vanilla),
            "curve_area": None if summary.curve_area is None else _plain(summary.curve_area),
        },
        "runs": [{"seed": seed, **run} for seed, run in zip(summary.seeds, runs, strict=True)],
    }


def _plain(each: Spread) -> dict[str, float | int | None]:
    mean, std = (None if math.isnan(value) else value for value in (each.mean, each.std))
    return {"mean": mean, "std": std, "count": each.count}


def _spreads(scores: Sequence[Scores]) -> ScoreSpreads:
    names = [each.name for each in fields(scores[0]) if isinstance(getattr(scores[0], each.name), float)]
    return ScoreSpreads(
        {name: spread(getattr(each, name) for each in scores) for name in names},
        tuple(spread(values) for values in np.stack([each.iou for each in scores], axis=1).tolist()),
        tuple(spread(values) for values in np.stack([each.accuracy for each in scores], axis=1).tolist()),
    )


def _seed(model: Path) -> int:
    with open_artifact(model, "model", verify=False) as artifact:
        return int(artifact.params["seed"])


def _is_finished(model: Path) -> bool:
    with open_artifact(model, "model", verify=False) as artifact:
        return "optimizer" not in artifact


def _check_one_recipe(models: Sequence[Path]) -> None:
    """Refuse models that were not trained with the same settings on the same inputs."""
    with open_artifact(models[0], "model", verify=False) as artifact:
        first, inputs = artifact.params, artifact.inputs
    for path in models[1:]:
        with open_artifact(path, "model", verify=False) as artifact:
            other, others = artifact.params, artifact.inputs
        differing = next((key for key in RECIPE if first.get(key) != other.get(key)), None)
        if differing is not None:
            raise ArtifactError(
                f"{path}: was trained with {differing} {other.get(differing)!r}, {models[0]} with "
                f"{first.get(differing)!r}; several seeds must be of one recipe"
            )
        if others != inputs:
            kinds = sorted(kind for kind in inputs.keys() | others.keys() if inputs.get(kind) != others.get(kind))
            raise ArtifactError(
                f"{path}: was trained from another {' and '.join(kinds)} than {models[0]}; several seeds must be of "
                "one recipe"
            )


def _check_given(first: Path, given: Mapping[str, Any]) -> None:
    """Refuse settings that differ from the recorded ones; None and "auto" stand for what was found by itself."""
    with open_artifact(first, "model", verify=False) as artifact:
        recorded = artifact.params
    for key, value in given.items():
        wanted = Path(value).name if key == "weights" and value is not None else value
        wanted = list(wanted) if isinstance(wanted, tuple) else wanted
        left_out = key in ("calibration", "val_classes", "max_false_share") and recorded.get("calibration") == "none"
        if key in recorded and wanted not in (None, "auto", recorded[key]) and not left_out:
            raise SettingError(
                f"{first}: was trained with {key} {recorded[key]!r}, this command says {value!r}; "
                "resume with the same options, or train anew with --force"
            )
