"""`zsseg sweep`: search settings with Optuna, and train the model of the best ones.

A trial trains a model that is not kept, and scores it on training photos that it was not trained on, by seen labels
alone. What is made large, the objective, is decided once for all trials and kept in the study:
    hidden  the best harmonic mIoU, over every calibration by a bias, of the seen classes and of validation classes:
            seen classes that are hidden from every trial as the unseen ones are (`probe`). It stands for what the model
            would do with unseen classes. These never compete, and their pixels are void.
    seen    mIoU of the seen classes, all classes competing; unseen pixels are void. For a softmax model, or a split
            without unseen classes.
No label of an unseen class reaches a trial's training, its score, the choice of validation classes and photos, or what
is tried next: labels come through `dataset.training_labels` alone.

After each quarter of its steps a trial is scored on a few of the photos; one that is below the median of the former
ones there is pruned (`MedianPruner`), as is one whose loss diverges, and settings that cannot be.

The study is in a database, a trial at a time. A sweep that was killed goes on when it is started again: finished trials
count, and the one that was running is marked failed and tried again with the same settings. What a trial tries depends
on the seed, its number and the trials before it, so a sweep that was killed and went on tries what an uninterrupted one
would have tried, where one process works on it. Several may: with a shared database each takes the next trial.

References:
    Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019;
    Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011 (TPE, what is tried next);
    Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017 (the median stopping rule).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from zsseg import __version__, artifacts, calibration, checkpoint, probe, slices, studies
from zsseg.artifacts import check_output, open_artifact
from zsseg.config import EmbedConfig, SweepConfig, TrainConfig
from zsseg.embed import embed_labels
from zsseg.errors import SettingError, TrainingError
from zsseg.hardware import keep_freed_memory
from zsseg.probe import Plan
from zsseg.progress import SILENT, Progress
from zsseg.search_space import OF_VECTORS, Choices, Range, Space, Value
from zsseg.state import State, as_model, initial_state, set_mode
from zsseg.task import Task, read_task
from zsseg.train import DivergedError, Features, TrainSummary, seen_miou, train, walk

log = logging.getLogger(__name__)

QUARTERS = (0.25, 0.5, 0.75)  # of a trial's steps, after which it is scored and may be pruned
QUARTER_PHOTOS = 40  # that it is scored on then, of the up to probe.PHOTOS at its end
DIVERGED = 4.0  # times the loss at the start
STATES: dict[TrialState, Literal["finished", "pruned", "failed", "running", "waiting"]] = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: From 0; one that was tried again has a new one.
        state: What became of it.
        values: Of the searched settings.
        objective: NaN where it did not finish.
        quarters: The objective on fewer photos, after each quarter of the steps as far as it came.
        why: Why it was pruned or failed; empty otherwise.
    """

    number: int
    state: Literal["finished", "pruned", "failed", "running", "waiting"]
    values: dict[str, Value]
    objective: float
    quarters: tuple[float, ...]
    why: str


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep found.

    Attributes:
        path: The model.
        study: The study's name in its database.
        objective: What was made large.
        hidden: Names of the validation classes.
        photos: How many training photos were kept aside to score trials.
        trials: All of them, by number.
        best: Number of the best one; None where none has finished yet.
        running: How many trials run in other processes. While there are any, no model is trained.
        picture: The slices.
        labels: The best trial's class vectors; None for a softmax model, or where no model was trained.
        model: What its training did; None where it was there already, or is for another process to do.
    """

    path: Path
    study: str
    objective: Literal["hidden", "seen"]
    hidden: tuple[str, ...]
    photos: int
    trials: tuple[Trial, ...]
    best: int | None
    running: int
    picture: Path
    labels: Path | None
    model: TrainSummary | None


@dataclass
class _Bench:
    """What all trials share.

    Attributes:
        data: data.h5.
        split: split.h5.
        drafts: An empty folder for class vectors.
        space: What is searched.
        seed: Of everything.
        progress: Told of each step.
        plan: Hidden classes and photos; without the former the objective is "seen".
        features: Of the latest backbone.
        made: Class vectors by their settings.
    """

    data: Path
    split: Path
    drafts: Path
    space: Space
    seed: int
    progress: Progress
    plan: Plan = field(default_factory=lambda: Plan((), (), ()))
    features: Features = field(default_factory=Features)
    made: dict[EmbedConfig, Path] = field(default_factory=dict)

    def labels(self, config: EmbedConfig) -> Path:
        """Return class vectors with these settings, made where no trial had them yet."""
        if config not in self.made:
            path = self.drafts / f"labels-{len(self.made)}.h5"
            with open_artifact(self.data, "data", verify=False) as images:
                embed_labels(images.strings("names"), path, config)
            self.made[config] = path
        return self.made[config]

    def task(self, values: dict[str, Value]) -> Task:
        """Return what a model with these settings is trained on, were it no trial's; without a calibration."""
        of_vectors, config = self.space.configs(values, seed=self.seed)
        by_distance = config.calibration == "apollonius"  # which leaves no gate, also where trials do without it
        config = replace(
            config,
            calibration="none",
            val_classes=(),
            gate=False if by_distance and config.gate is None else config.gate,
        )
        return read_task(self.data, self.split, None if config.loss == "softmax" else self.labels(of_vectors), config)


def sweep(
    space: Space,
    data: Path,
    split: Path,
    out: Path,
    config: SweepConfig,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> SweepSummary:
    """Try settings until so many trials have finished, and train the best one's model on all training photos.

    Beside `out` (model.h5) come model-labels.h5, the class vectors that go with it, model-sweep.png, and, without a
    database of its own, model-sweep.db.

    Args:
        space: What is searched.
        data: data.h5.
        split: split.h5, made from that data.
        out: model.h5.
        config: Settings.
        force: Replace existing outputs; the study goes on all the same.
        progress: Told of each step.

    Raises:
        ArtifactError: An input is missing, damaged, or does not fit the others; or an output is refused.
        SettingError: A setting that cannot be met, or the study is of another sweep.
        TrainingError: No trial finished.
    """
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = _beside(out, "sweep.db")
    with contextlib.ExitStack() as held:
        check_output(out, force=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        if config.storage is None:
            held.enter_context(artifacts.locked(own))
        drafts = held.enter_context(artifacts.drafts(out.parent, f"{out.stem}-sweep"))
        bench = _Bench(data, split, drafts, space, config.seed, progress)
        study = held.enter_context(studies.opened(config.storage or studies.address(own), space.name))
        _check_outputs(study, out, config.trials, force=force)
        _settle(study, bench)
        if config.storage is None:
            studies.revive(study)
        _search(study, bench, config.trials)
        return _conclude(study, bench, out, force=force)


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.stem}-{ending}")


def _check_outputs(study: optuna.Study, out: Path, wanted: int, *, force: bool) -> None:
    """Refuse what is in the way of a new study, and a model that further trials would replace."""
    if "sweep" not in study.user_attrs:
        for path in (_beside(out, "labels.h5"), _beside(out, "sweep.png")):
            check_output(path, force=force)
    if studies.taken(study) < wanted:
        check_output(out, force=force)


# --- the study --------------------------------------------------------------------------------------------------------


def _settle(study: optuna.Study, bench: _Bench) -> None:
    """Decide on the objective, hidden classes and photos of a new study, or take over those of one that is there.

    Raises:
        SettingError: The study is of another sweep, or the objective cannot be.
    """
    with open_artifact(bench.data, "data") as images, open_artifact(bench.split, "split") as parts:
        record: dict[str, Any] = {
            "file": bench.space.text, "seed": bench.seed, "data": images.digest, "split": parts.digest,
            "zsseg": __version__,
        }  # fmt: skip
    known = study.user_attrs.get("sweep")
    if known is None:
        _check_vectors(bench)
        record |= _chosen_plan(bench)
        study.set_user_attr("sweep", record)
        known = record
    for key, what in (("file", "settings"), ("seed", "seed"), ("data", "data.h5"), ("split", "split.h5")):
        if known[key] != record[key]:
            raise SettingError(
                f"the study {study.study_name!r} was begun with other {what}; restore them, or begin another one under "
                "another name of the TOML file"
            )
    bench.plan = Plan(*(tuple(known[key]) for key in ("hidden", "photos", "rest")))


def _check_vectors(bench: _Bench) -> None:
    """Make class vectors with each value that is searched, before any trial; what cannot be is said at once."""
    first = bench.space.first()
    if set(bench.space.losses()) == {"softmax"}:
        return
    for name in OF_VECTORS:
        for value in bench.space.search[name].samples if name in bench.space.search else ():
            bench.labels(bench.space.configs({**first, name: value}, seed=bench.seed)[0])


def _chosen_plan(bench: _Bench) -> dict[str, Any]:
    """Return hidden classes, photos and the rest as a study records them: the same for whatever is tried."""
    space, wanted = bench.space, bench.space.hidden
    has_softmax = "softmax" in space.losses()
    loss = next((each for each in space.losses() if each != "softmax"), "softmax")
    task = bench.task({**space.first(), "loss": loss})
    able = not has_softmax and len(task.unseen) > 0
    if (space.objective == "hidden" or wanted) and not able:
        reason = "a softmax model predicts no hidden class" if has_softmax else "no class is unseen in this split"
        raise SettingError(f'objective = "hidden": {reason}; take objective = "seen"')
    if space.objective == "seen" or not able:
        return _plan_of_seen(task, bench.seed)
    assert task.vectors is not None
    try:
        with task.open_data() as images:
            plan = probe.make_plan(
                images, task.train, task.vectors, task.unseen.tolist(), wanted=wanted, seed=bench.seed
            )
    except (SettingError, TrainingError) as error:  # which know the option of `train` for the same choice
        raise type(error)(str(error).replace("--val-classes", "hidden in [sweep]")) from error
    return {key: list(each) for key, each in asdict(plan).items()}


def _plan_of_seen(task: Task, seed: int) -> dict[str, Any]:
    """Return the photos that are kept aside where no class is hidden."""
    order = np.random.default_rng([seed, len(task.train)]).permutation(task.train)
    count = min(probe.PHOTOS, max(1, len(order) // 5))
    if count == len(order):
        raise TrainingError(f"{len(order)} training photos are too few to keep some aside, expected 2 or more")
    photos, rest = (np.sort(each).tolist() for each in (order[:count], order[count:]))
    return {"hidden": [], "photos": photos, "rest": rest}


# --- trials -----------------------------------------------------------------------------------------------------------


def _search(study: optuna.Study, bench: _Bench, wanted: int) -> None:
    """Run trials until so many have finished or run elsewhere."""
    while True:
        studies.bury(study)
        running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if studies.taken(study) + running >= wanted:
            return
        study.optimize(
            lambda trial: _objective(study, trial, bench), n_trials=1, callbacks=[lambda _, each: _note(each, wanted)]
        )


def _note(trial: FrozenTrial, wanted: int) -> None:
    """Log what became of a trial."""
    said = ", ".join(f"{name} {slices.plain(value)}" for name, value in trial.params.items())
    result = f"{trial.value:.3f}" if trial.state == TrialState.COMPLETE else f"pruned, {_why(trial)}"
    log.info("trial %d, towards %d: %s: %s", trial.number, wanted, said, result)


def _why(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("why", ""))


def _objective(study: optuna.Study, trial: optuna.Trial, bench: _Bench) -> float:
    """Train and score one trial; whatever ends it but a verdict queues its settings again."""
    study.sampler = optuna.samplers.TPESampler(
        seed=studies.draw_seed(study, trial, bench.seed), multivariate=False, constant_liar=True
    )
    try:
        values = bench.space.values({name: _suggested(trial, name, each) for name, each in bench.space.search.items()})
        return _score_of(trial, bench, values)
    except (DivergedError, SettingError) as error:
        trial.set_user_attr("why", str(error))
        raise optuna.TrialPruned from error
    except optuna.TrialPruned:
        raise
    except BaseException:
        studies.queue_again(study, study.get_trials()[trial.number])
        raise


def _suggested(trial: optuna.Trial, name: str, each: Range | Choices) -> Any:
    if isinstance(each, Choices):
        return trial.suggest_categorical(name, list(each.values))
    if each.whole:
        return trial.suggest_int(name, int(each.low), int(each.high), log=each.log)
    return trial.suggest_float(name, each.low, each.high, log=each.log)


def _score_of(trial: optuna.Trial, bench: _Bench, values: dict[str, Value]) -> float:
    """Train a model that is not kept, and return its objective; prune it on the way where it is hopeless."""
    base = bench.task(values)
    task = _without_hidden(base, bench.plan)
    photos = bench.plan.photos
    few = [photos[place] for place in np.linspace(0, len(photos) - 1, min(QUARTER_PHOTOS, len(photos))).astype(int)]
    stops = {max(1, round(share * task.total_steps)): place for place, share in enumerate(QUARTERS)}
    with torch.random.fork_rng(devices=[]):
        state = initial_state(task)
        # the labels that features carry lack the unseen classes alone, as the last model's do; a trial hides more
        cache = bench.features.of(base, state.net, bench.drafts, bench.progress) if task.config.frozen else None
        steps = walk(task, state, cache, title=f"trial {trial.number}", progress=bench.progress)
        with contextlib.closing(steps):
            for step in steps:
                if step in stops and step < task.total_steps:
                    _check_divergence(state)
                    trial.report(_measured(task, state, bench, few, base.unseen.tolist()), stops[step])
                    if trial.should_prune():
                        trial.set_user_attr("why", f"below the median after {step} of {task.total_steps} steps")
                        raise optuna.TrialPruned
        _check_divergence(state)
        return _measured(task, state, bench, photos, base.unseen.tolist())


def _without_hidden(task: Task, plan: Plan) -> Task:
    """Return a trial's task: hidden classes are unseen, too, and the photos that it is scored on are no training."""
    return replace(
        task,
        seen=np.setdiff1d(task.seen, plan.hidden),
        unseen=np.union1d(task.unseen, np.array(plan.hidden, dtype=np.int64)),
        train=np.array(plan.rest, dtype=np.int64),
    )


def _check_divergence(state: State) -> None:
    start, now = float(np.mean(state.losses[:20])), float(np.mean(state.losses[-20:]))
    if now > DIVERGED * start:
        raise DivergedError(f"the loss rose from {start:.3g} to {now:.3g} within {state.step} steps")


def _measured(task: Task, state: State, bench: _Bench, photos: Sequence[int], void: Sequence[int]) -> float:
    """Return the objective on some photos; 0 where nothing can be said.

    Args:
        task: The trial's.
        state: Its model.
        bench: What all trials share.
        photos: Indices of training photos that it was not trained on.
        void: Ids of the unseen classes, whose labels stay hidden.
    """
    hidden = bench.plan.hidden
    if not hidden:
        value = seen_miou(task, state.net, photos)
        return 0.0 if math.isnan(value) else value
    set_mode(state.net, training=False)
    plain = calibration.none(len(task.names))
    with task.open_data() as data:
        model = as_model(task, state.net)
        tally = probe.count_scores(model, data, photos, [plain], rivals=hidden, void=void, progress=SILENT)
        (curve,) = tally.curves(model.seen, hidden)
    set_mode(state.net, training=True)
    best = float(curve.harmonic[curve.oracle])
    return 0.0 if math.isnan(best) else best


# --- the end ----------------------------------------------------------------------------------------------------------


def _conclude(study: optuna.Study, bench: _Bench, out: Path, *, force: bool) -> SweepSummary:
    """Draw the trials, and train the best one's model unless other processes still try."""
    trials = tuple(_trial(each, bench.space) for each in study.get_trials())
    finished = [each for each in trials if each.state == "finished"]
    running = sum(each.state == "running" for each in trials)
    picture = _beside(out, "sweep.png")
    hidden = _names(bench)
    summary = SweepSummary(
        path=out,
        study=study.study_name,
        objective="hidden" if hidden else "seen",
        hidden=hidden,
        photos=len(bench.plan.photos),
        trials=trials,
        best=max(finished, key=lambda each: each.objective).number if finished else None,
        running=running,
        picture=picture,
        labels=None,
        model=None,
    )
    if summary.best is None:
        if running:
            return summary
        raise TrainingError(f"none of {len(trials)} trials finished; the last one: {trials[-1].why or 'was given up'}")
    points = [slices.Point(each.values, each.objective, each.quarters, each.number == summary.best) for each in trials]
    slices.draw(picture, bench.space, points, ylabel=describe(summary.objective))
    return summary if running else _with_model(summary, bench, trials[summary.best].values, force=force)


def describe(objective: Literal["hidden", "seen"]) -> str:
    """Return what an objective is, in a few words."""
    return "harmonic mIoU with hidden classes" if objective == "hidden" else "mIoU of seen classes"


def _names(bench: _Bench) -> tuple[str, ...]:
    with open_artifact(bench.data, "data", verify=False) as images:
        names = images.strings("names")
    return tuple(names[index] for index in bench.plan.hidden)


def _trial(trial: FrozenTrial, space: Space) -> Trial:
    return Trial(
        number=trial.number,
        state=STATES[trial.state],
        values=space.values(trial.params),
        objective=math.nan if trial.state != TrialState.COMPLETE or trial.value is None else trial.value,
        quarters=tuple(value for _, value in sorted(trial.intermediate_values.items())),
        why=_why(trial),
    )


def _with_model(summary: SweepSummary, bench: _Bench, values: dict[str, Value], *, force: bool) -> SweepSummary:
    """Train the model of the best settings as `train` would, or leave it where it is there already."""
    of_vectors, config = bench.space.configs(values, seed=bench.seed)
    labels = None if config.loss == "softmax" else _beside(summary.path, "labels.h5")
    if labels is not None:
        with open_artifact(bench.data, "data", verify=False) as images:
            embed_labels(images.strings("names"), labels, of_vectors, force=True)
    begun = _begun(summary.path, config, bench, labels)
    summary = replace(summary, labels=labels)
    if begun == "whole":
        return summary
    log.info("training the model of trial %d", summary.best)
    trained = train(
        bench.data,
        bench.split,
        labels,
        summary.path,
        config,
        force=force,
        resume=begun == "part",
        features=bench.features,
        progress=bench.progress,
    )
    return replace(summary, model=trained)


def _begun(out: Path, config: TrainConfig, bench: _Bench, labels: Path | None) -> Literal["no", "part", "whole"]:
    """Return how far the model of these settings and inputs is there: a sweep may be killed while it is trained."""
    source = checkpoint.latest(out)
    if source is None:
        return "no"
    inputs = {}
    for path, kind in ((bench.data, "data"), (bench.split, "split"), (labels, "labels")):
        if path is not None:
            with open_artifact(path, kind, verify=False) as artifact:  # type: ignore[arg-type]
                inputs[kind] = artifact.digest
    with open_artifact(source, "model") as model:
        if model.inputs != inputs or not _agrees(model.params, config):
            return "no"
        return "part" if "optimizer" in model else "whole"


def _agrees(recorded: dict[str, Any], config: TrainConfig) -> bool:
    """Return whether recorded settings are those of a configuration; None and "auto" agree with all."""
    for key, value in asdict(config).items():
        wanted = list(value) if isinstance(value, tuple) else Path(value).name if key == "weights" and value else value
        if key in recorded and wanted not in (None, "auto", []) and recorded[key] != wanted:
            return False
    return True
