"""Sweeps: what is tried after a kill, that no unseen label reaches a trial, and what becomes of the best one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_leaks import draw_maps, write
from test_train import inputs as inputs  # the fixture
from tiny import NAMES, photo, zsseg

from zsseg import studies
from zsseg import sweep as sweeping
from zsseg.config import SplitConfig, SweepConfig
from zsseg.embed import embed_labels
from zsseg.errors import ArtifactError, DataError, SettingError, TrainingError
from zsseg.search_space import read_space
from zsseg.sweep import SweepSummary, sweep
from zsseg.train import train

FIXED = """
[fixed]
epochs = 2
batch = 2
workers = 0
crop = 64
device = "cpu"
precision = "float32"
calibration = "none"
gate = false
anchors = "none"
"""
SEARCH = '[sweep]\nhidden = ["cat"]\n[search]\nlr = { low = 1e-4, high = 3e-2, log = true }\ndim = [4, 8]\n'
TRIALS = 3


def write_file(folder: Path, search: str = SEARCH, words_in: Path | None = None) -> None:
    """Write the file of a sweep, and word vectors of 12 dimensions, which it names here or in another folder."""
    folder.mkdir(exist_ok=True)
    words = [*NAMES, *(f"word{place}" for place in range(40))]
    rows = np.random.default_rng(4).normal(size=(len(words), 12)).round(3)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, rows.tolist(), strict=True)]
    (folder / "words.txt").write_text("\n".join([f"{len(words)} 12", *lines]) + "\n")
    dim = "" if "dim" in search else "dim = 4\n"
    (folder / "try.toml").write_text(f'{search}{FIXED}{dim}vectors = ["{words_in or folder}/words.txt"]\n')


def run(inputs: Path, folder: Path, *, search: str = SEARCH, trials: int = TRIALS, **options: Any) -> SweepSummary:
    """Sweep in a folder."""
    write_file(folder, search, options.pop("words_in", None))
    config = SweepConfig(trials=trials, seed=options.pop("seed", 0), storage=options.pop("storage", None))
    data, split = inputs / "data.h5", inputs / "split.h5"
    return sweep(read_space(folder / "try.toml"), data, split, folder / "model.h5", config, **options)


def told(summary: SweepSummary) -> list[tuple[Any, ...]]:
    """Return what every trial that was not broken off tried and gave, in order."""
    return [
        (each.state, each.values, repr(each.objective), each.quarters, each.why)
        for each in summary.trials
        if each.state != "failed"
    ]


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepSummary:
    """Return a sweep that nothing stopped."""
    return run(inputs, tmp_path_factory.mktemp("whole"))


def test_the_best_trial_is_the_one_with_the_largest_objective(whole: SweepSummary) -> None:
    """All trials are there with what they tried; the best one leads, and the others were scored on the way."""
    finished = [each for each in whole.trials if each.state == "finished"]
    assert len(whole.trials) == TRIALS
    assert whole.best == max(finished, key=lambda each: each.objective).number
    assert (whole.objective, whole.hidden, whole.running) == ("hidden", ("cat",), 0)
    assert all(1e-4 <= each.values["lr"] <= 3e-2 and each.values["dim"] in (4, 8) for each in whole.trials)
    assert len({each.values["lr"] for each in whole.trials}) == TRIALS
    assert all(len(each.quarters) == 3 and 0 < each.objective <= 1 for each in finished)
    assert whole.picture.read_bytes().startswith(b"\x89PNG")


def test_the_model_is_that_of_a_training_with_the_best_settings(
    inputs: Path, whole: SweepSummary, tmp_path: Path
) -> None:
    """It is trained on all seen classes and photos: `train` with these settings gives the same bytes."""
    assert whole.best is not None
    values = whole.trials[whole.best].values
    of_vectors, config = read_space(whole.path.with_name("try.toml")).configs(values, seed=0)
    embed_labels(NAMES, tmp_path / "labels.h5", of_vectors)
    train(inputs / "data.h5", inputs / "split.h5", tmp_path / "labels.h5", tmp_path / "model.h5", config)
    assert whole.labels is not None
    assert whole.labels.read_bytes() == (tmp_path / "labels.h5").read_bytes()
    assert whole.path.read_bytes() == (tmp_path / "model.h5").read_bytes()


def test_a_finished_sweep_does_nothing_more(inputs: Path, whole: SweepSummary) -> None:
    """Repeated, it tells the same without a training; more trials would replace the model, which needs --force."""
    before = whole.path.stat().st_mtime_ns
    again = run(inputs, whole.path.parent)
    assert (told(again), again.best, again.model) == (told(whole), whole.best, None)
    assert whole.path.stat().st_mtime_ns == before
    with pytest.raises(ArtifactError, match=r"model\.h5: exists already; add --force"):
        run(inputs, whole.path.parent, trials=TRIALS + 1)


@pytest.mark.parametrize(
    ("search", "seed", "message"),
    [(SEARCH.replace("3e-2", "2e-2"), 0, "other settings"), (SEARCH, 1, "other seed")],
)
def test_another_sweep_under_the_same_name_is_refused(
    inputs: Path, whole: SweepSummary, tmp_path: Path, search: str, seed: int, message: str
) -> None:
    """Trials of other ranges or another seed are not mixed with those that are there."""
    storage = f"sqlite:///{whole.path.with_name('model-sweep.db')}"
    with pytest.raises(SettingError, match=rf"the study 'try' was begun with {message}; restore them"):
        run(inputs, tmp_path, search=search, seed=seed, storage=storage, words_in=whole.path.parent)


# --- stopped and continued --------------------------------------------------------------------------------------------


def states(database: Path) -> list[str]:
    """Return the states of the trials that a database holds by now."""
    if not database.exists():
        return []
    with closing(sqlite3.connect(database, timeout=10)) as opened:
        try:
            return [state for (state,) in opened.execute("SELECT state FROM trials ORDER BY number")]
        except sqlite3.OperationalError:  # no table yet
            return []


def test_a_killed_sweep_goes_on_and_loses_nothing(inputs: Path, whole: SweepSummary, tmp_path: Path) -> None:
    """After a SIGKILL within a trial the same trials come out as without: the broken one is failed and tried again."""
    write_file(tmp_path)
    words = [sys.executable, "-m", "zsseg", "sweep", str(tmp_path / "try.toml"), "--trials", str(TRIALS)]
    words += ["--data", str(inputs / "data.h5"), "--split", str(inputs / "split.h5"), "--workspace", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while (found := states(tmp_path / "model-sweep.db")) != ["COMPLETE", "RUNNING"]:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "model.h5").exists()
    after = run(inputs, tmp_path)
    assert [each.state for each in after.trials].count("failed") == 1
    assert after.trials[1].state == "failed"
    assert told(after) == told(whole)
    assert after.path.read_bytes() == whole.path.read_bytes()


def scripted(monkeypatch: pytest.MonkeyPatch, score: Callable[[Any, dict[str, Any]], float]) -> None:
    """Let trials be scored by a function of trial and values, without a training."""
    monkeypatch.setattr(sweeping, "_score_of", lambda trial, _, values: score(trial, values))
    monkeypatch.setattr(sweeping, "_with_model", lambda summary, *_, **__: summary)
    monkeypatch.setattr(sweeping, "_check_vectors", lambda _: None)
    monkeypatch.setattr(sweeping, "_chosen_plan", lambda _: {"hidden": [1], "photos": [0], "rest": [1, 2]})
    monkeypatch.setattr(sweeping.slices, "draw", lambda *_, **__: None)


def test_an_interrupted_trial_is_tried_again(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within a trial leaves the finished ones; the next start tries the same settings first."""
    tried: list[float] = []

    def score(trial: Any, values: dict[str, Any]) -> float:
        tried.append(values["lr"])
        if len(tried) == 2:
            raise KeyboardInterrupt
        return 0.5

    scripted(monkeypatch, score)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path, trials=3)
    summary = run(inputs, tmp_path, trials=3)
    assert [each.state for each in summary.trials] == ["finished", "failed", "finished", "finished"]
    assert tried[1] == tried[2]
    assert len(set(tried)) == 3


def test_a_trial_that_kills_its_process_is_given_up(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three repetitions another one comes: settings that need too much memory do not end a sweep for ever."""
    tried: list[float] = []

    def score(trial: Any, values: dict[str, Any]) -> float:
        tried.append(values["lr"])
        if values["lr"] == tried[0]:
            raise MemoryError
        return 0.5

    scripted(monkeypatch, score)
    for _ in range(1 + studies.RETRIES):
        with pytest.raises(MemoryError):
            run(inputs, tmp_path, trials=1)
    summary = run(inputs, tmp_path, trials=1)
    assert [each.state for each in summary.trials] == ["failed"] * 4 + ["finished"]


# --- pruning ----------------------------------------------------------------------------------------------------------


def test_diverging_trials_are_pruned(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate at which the loss explodes costs no more than its trial."""
    search = '[sweep]\nobjective = "seen"\n[search]\nlr = [1e-3, 1e5]\n'
    monkeypatch.setattr(sweeping, "_with_model", lambda summary, *_, **__: summary)
    summary = run(inputs, tmp_path, search=search, trials=2)
    by_rate = {rate: {each.state for each in summary.trials if each.values["lr"] == rate} for rate in (1e-3, 1e5)}
    assert by_rate == {1e-3: {"finished"}, 1e5: {"pruned"}}
    assert all(each.why.startswith("the loss") for each in summary.trials if each.state == "pruned")
    assert summary.best is not None
    assert summary.trials[summary.best].values["lr"] == 1e-3


def test_a_trial_below_the_median_is_pruned(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once four have finished, a trial that is worse than their median at a quarter of its steps ends there."""
    scores = iter([0.1, 0.2, 0.3, 0.4, 0.05])

    def score(trial: Any, values: dict[str, Any]) -> float:
        result = next(scores)
        trial.report(result, 0)
        if trial.should_prune():
            raise sweeping.optuna.TrialPruned
        return result

    scripted(monkeypatch, score)
    summary = run(inputs, tmp_path, trials=5)
    assert [each.state for each in summary.trials] == ["finished"] * 4 + ["pruned"]


def test_nothing_finished_is_an_error(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that exclude each other prune a trial; where every one was, the reason of the last one is told."""

    def score(trial: Any, values: dict[str, Any]) -> float:
        raise SettingError("--stacks 2: belongs to --model hourglass")

    scripted(monkeypatch, score)
    with pytest.raises(TrainingError, match="none of 2 trials finished; the last one: --stacks 2: belongs"):
        run(inputs, tmp_path, trials=2)


# --- before any trial -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("[search]\ndim = [4, 60]\n", "--dim 60: the word vectors have 12 dimensions"),
        ('[sweep]\nobjective = "hidden"\n[search]\nloss = ["mse", "softmax"]\n', "a softmax model predicts no hidden"),
        ('[sweep]\nhidden = ["cow"]\n[search]\ndim = [4]\n', r"hidden in \[sweep\] cow: is no seen class; choose from"),
    ],
)
def test_what_cannot_be_is_said_before_any_trial(inputs: Path, tmp_path: Path, search: str, message: str) -> None:
    """No trial is begun with a choice that class vectors or the objective cannot meet."""
    with pytest.raises(SettingError, match=message):
        run(inputs, tmp_path, search=search)
    assert states(tmp_path / "model-sweep.db") == []


@pytest.mark.parametrize(
    "url", ["nothing", "strange://host/name", "sqlite:////no/such/folder/x.db"], ids=["text", "kind", "folder"]
)
def test_a_database_that_cannot_be(inputs: Path, tmp_path: Path, url: str) -> None:
    """The address is named, with what one looks like."""
    with pytest.raises(DataError, match=r"cannot be used as a database \(.*\); expected an address") as found:
        run(inputs, tmp_path, storage=url)
    assert "\n" not in str(found.value)


def test_outputs_that_are_in_the_way(inputs: Path, tmp_path: Path) -> None:
    """A model, labels or picture of something else are not replaced."""
    for name in ("model.h5", "model-labels.h5", "model-sweep.png"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ArtifactError, match=rf"{name}: exists already; add --force"):
            run(inputs, tmp_path)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


# --- several processes ------------------------------------------------------------------------------------------------


def test_trials_of_other_processes_count(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs elsewhere is taken, so none is begun for it, and the model is left to who ends last."""
    scripted(monkeypatch, lambda *_: 0.5)
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    run(inputs, tmp_path, trials=1, storage=storage)
    with studies.opened(storage, "try") as study:
        study.add_trial(sweeping.optuna.create_trial(state=sweeping.TrialState.RUNNING))
    summary = run(inputs, tmp_path, trials=3, storage=storage, force=True)
    assert [each.state for each in summary.trials] == ["finished", "running", "finished"]
    assert (summary.running, summary.model) == (1, None)


# --- leaks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["hidden", "seen"])
def test_no_unseen_label_changes_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    """Data sets that differ in unseen labels alone give the same trials and objectives; a seen label matters."""
    monkeypatch.setattr(sweeping, "_with_model", lambda summary, *_, **__: summary)
    search = f'[sweep]\nobjective = "{objective}"\n[search]\nlr = [1e-3]\ndim = [4]\nweighting = ["frequency"]\n'
    maps = draw_maps(5, (3, 4))
    pictures = [photo(labels, seed=place) for place, labels in enumerate(maps)]
    table = np.arange(256, dtype=np.uint8)
    unseen, seen = table.copy(), table.copy()
    unseen[[3, 4]] = 255, 3
    seen[[0, 1]] = 1, 0
    found = []
    for name, change in (("a", table), ("b", unseen), ("c", seen))[: 3 if objective == "hidden" else 2]:
        write(tmp_path / name, [change[labels] for labels in maps], pictures, SplitConfig(unseen=("cow", "sheep")))
        summary = run(tmp_path / name, tmp_path / name, search=search, trials=1)
        found.append((told(summary), summary.hidden, summary.photos, summary.best))
    assert found[0] == found[1]
    assert all(found[0][0] != other[0] for other in found[2:])


def test_no_trial_is_trained_on_hidden_classes_or_on_what_it_is_scored_on(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that reach a step hold neither hidden nor unseen classes, and the photos of the score are kept aside."""
    from zsseg import train as training

    step, shown = training._step, set()
    measured, tasks = sweeping._measured, []

    def noting(task: Any, state: Any, given: Any, labels: Any, **options: Any) -> None:
        shown.update(labels.unique().tolist())
        step(task, state, given, labels, **options)

    def scoring(task: Any, state: Any, bench: Any, photos: Any, void: Any) -> float:
        tasks.append((task, tuple(photos), tuple(void)))
        return measured(task, state, bench, photos, void)

    monkeypatch.setattr(training, "_step", noting)
    monkeypatch.setattr(sweeping, "_measured", scoring)
    monkeypatch.setattr(sweeping, "_with_model", lambda summary, *_, **__: summary)
    run(inputs, tmp_path, trials=1)
    assert shown == {0, 2, 255}  # cat (1) is hidden; cow and sheep (3, 4) are unseen
    for task, photos, void in tasks:
        assert set(photos).isdisjoint(task.train.tolist())
        assert void == (3, 4)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_and_writes_what_came_out(
    inputs: Path, whole: SweepSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table leads with the best trial; the JSON has them all."""
    monkeypatch.setattr(sweeping, "sweep", lambda *_, **__: replace(whole, running=0))
    write_file(tmp_path)
    at = ("--data", inputs / "data.h5", "--split", inputs / "split.h5", "--workspace", tmp_path)
    table = zsseg("sweep", tmp_path / "try.toml", "--json", tmp_path / "found.json", *at).stdout
    rows = [line.split() for line in table.splitlines()]
    assert rows[1][:4] == ["trial", "lr", "dim", "objective"]
    assert rows[3][0] == str(whole.best)
    assert "harmonic mIoU with cat hidden" in table
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["number"] for each in found["trials"]] == list(range(TRIALS))
    assert found["trials"][whole.best or 0]["values"] == whole.trials[whole.best or 0].values
