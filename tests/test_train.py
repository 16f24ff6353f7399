"""Training: exact repetition, interruption and resume, the schedule, and what labels of unseen classes may reach."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import NAMES, label_map, write_folder, zsseg

from zsseg.artifacts import create, open_artifact
from zsseg.config import FetchConfig, SplitConfig, TrainConfig
from zsseg.errors import ArtifactError, SettingError, TrainingError
from zsseg.fetch import fetch_data
from zsseg.split import make_split
from zsseg.train import TrainSummary, learning_rate, recorded_config, train

DIM = 6
QUICK = TrainConfig(epochs=2, batch=2, crop=64, workers=0, device="cpu")
FROZEN = replace(QUICK, frozen=True)
MAPS = {
    "one": (0, 1, 2, 0), "two": (1, 0, 0, 2), "three": (0, 3, 1, 2), "four": (4, 0, 2, 1),
    "five": (0, 1, 3, 2), "six": (4, 3, 0, 1),
}  # fmt: skip


def write_labels(folder: Path, *, names: tuple[str, ...] = NAMES) -> Path:
    """Write class vectors drawn by seed: this file needs no words."""
    vectors = np.random.default_rng(7).normal(size=(len(names), DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with create(folder / "labels.h5", "labels", params={}, inputs={}, force=True) as writer:
        writer.put("names", names)
        writer.put("words", names)
        writer.put("vectors", vectors)
        writer.put("raw", vectors)
        writer.put("mean", np.zeros(DIM))
        writer.put("components", np.eye(DIM))
        writer.put("explained_variance", np.full(DIM, 1 / DIM))
    return folder / "labels.h5"


def workspace(
    folder: Path,
    *,
    quarters: dict[str, Any] | None = None,
    unseen: tuple[str, ...] = ("cow", "sheep"),
    policy: Any = "ignore",
) -> Path:
    """Make data, labels and split in a folder."""
    write_folder(folder / "set", quarters=quarters)
    fetch_data(folder / "data.h5", FetchConfig("folder"), root=folder / "set")
    make_split(folder / "data.h5", folder / "split.h5", SplitConfig(unseen=unseen, policy=policy))
    write_labels(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the inputs that the tests share, and only read."""
    return workspace(tmp_path_factory.mktemp("inputs"))


def run(inputs: Path, out: Path, config: TrainConfig = FROZEN, **options: Any) -> TrainSummary:
    labels = None if config.loss == "softmax" else inputs / "labels.h5"
    return train(inputs / "data.h5", inputs / "split.h5", labels, out, config, **options)


def weights(path: Path) -> dict[str, NDArray[Any]]:
    with open_artifact(path, "model") as model:
        return model.arrays("weights")


def history(path: Path) -> list[float]:
    with open_artifact(path, "model") as model:
        return [*model.array("loss").tolist(), *model.array("val_seen_miou").tolist()]


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    "config", [FROZEN, QUICK, replace(QUICK, loss="softmax")], ids=["frozen", "fine-tuned", "softmax"],
)  # fmt: skip
def test_the_same_run_twice_gives_the_same_bytes(inputs: Path, tmp_path: Path, config: TrainConfig) -> None:
    """Two runs with one seed write byte-identical models."""
    run(inputs, tmp_path / "a.h5", config)
    run(inputs, tmp_path / "b.h5", config)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_another_seed_is_another_run(inputs: Path, tmp_path: Path) -> None:
    """The seed is used: another one draws other weights and another order."""
    run(inputs, tmp_path / "a.h5")
    run(inputs, tmp_path / "b.h5", replace(FROZEN, seed=1))
    assert history(tmp_path / "a.h5")[1] != history(tmp_path / "b.h5")[1]


def test_the_number_of_workers_does_not_change_the_result(inputs: Path, tmp_path: Path) -> None:
    """Augmentation is drawn by image and epoch, so worker processes change nothing, not a byte."""
    run(inputs, tmp_path / "a.h5", replace(QUICK, epochs=1))
    run(inputs, tmp_path / "b.h5", replace(QUICK, epochs=1, workers=2))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_training_leaves_the_global_random_state_alone(inputs: Path, tmp_path: Path) -> None:
    """Nothing seeds a global: torch's and numpy's states are the same before and after."""
    before = torch.random.get_rng_state()
    old_numpy = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    run(inputs, tmp_path / "a.h5", replace(QUICK, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], old_numpy)  # type: ignore[index, arg-type]


def test_the_learning_rate_warms_up_and_decays_to_zero(inputs: Path, tmp_path: Path) -> None:
    """The recorded rates are peak × min(1, (s+1)/w) × (1 − s/S)^0.9 with w = a tenth of the run, at most 100 steps."""
    for total, warmup in ((5, 1), (50, 5), (5000, 100)):
        for step in {0, 1, warmup - 1, warmup, total // 2, total - 1}:
            expected = 0.02 * min(1.0, (step + 1) / warmup) * (1 - step / total) ** 0.9
            assert learning_rate(step, total, 0.02) == pytest.approx(expected)
    summary = run(inputs, tmp_path / "a.h5", replace(FROZEN, lr=0.01, epochs=3))
    with open_artifact(tmp_path / "a.h5", "model") as model:
        assert model.array("lr").tolist() == pytest.approx([learning_rate(step, 6, 0.01) for step in range(6)])
    assert (summary.steps, summary.total_steps, summary.finished) == (6, 6, True)


def test_the_loss_starts_at_the_constant_guess_and_falls(inputs: Path, tmp_path: Path) -> None:
    """From an output of 0 the loss is ‖w‖² = 1 for unit vectors, or log(seen classes), and gets well below it."""
    run(inputs, tmp_path / "mse.h5", replace(FROZEN, epochs=15))
    losses = history(tmp_path / "mse.h5")[:30]
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert np.mean(losses[-4:]) < 0.4
    run(inputs, tmp_path / "softmax.h5", replace(FROZEN, epochs=15, loss="softmax"))
    losses = history(tmp_path / "softmax.h5")[:30]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-5)
    assert np.mean(losses[-4:]) < 0.5


def test_frequency_weighting_changes_what_is_learned(inputs: Path, tmp_path: Path) -> None:
    """Classes are unevenly frequent here, so weights by frequency give other losses and other weights."""
    maps = {**MAPS, "one": (0, 0, 0, 1), "two": (0, 0, 0, 2)}
    space = workspace(tmp_path / "w", quarters=maps)
    run(space, tmp_path / "a.h5")
    run(space, tmp_path / "b.h5", replace(FROZEN, weighting="frequency"))
    assert history(tmp_path / "a.h5")[1] != history(tmp_path / "b.h5")[1]


def test_the_frozen_backbone_stays_as_it_was(inputs: Path, tmp_path: Path) -> None:
    """--frozen changes the head only; without it the backbone learns, too."""
    run(inputs, tmp_path / "one.h5", replace(FROZEN, epochs=1))
    run(inputs, tmp_path / "two.h5", FROZEN)
    run(inputs, tmp_path / "tuned.h5", QUICK)
    one, two, tuned = (weights(tmp_path / f"{name}.h5") for name in ("one", "two", "tuned"))
    backbone = [name for name in one if name.startswith("backbone.")]
    assert all(np.array_equal(one[name], two[name]) for name in backbone)
    assert any(not np.array_equal(one[name], two[name]) for name in one if name not in backbone)
    assert any(not np.array_equal(one[name], tuned[name]) for name in backbone if name.endswith("weight"))


# --- what labels of unseen classes may reach --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "other"),
    [(FROZEN, 3), (QUICK, 255), (replace(FROZEN, weighting="frequency"), 255), (replace(FROZEN, loss="softmax"), 3)],
    ids=["frozen", "fine-tuned", "weighted", "softmax"],
)
def test_labels_of_unseen_classes_reach_nothing(tmp_path: Path, config: TrainConfig, other: int) -> None:
    """Label maps that differ in the ids of unseen pixels alone train identical weights with an identical history."""
    workspace(tmp_path / "a")
    changed = {name: tuple(other if each == 4 else each for each in ids) for name, ids in MAPS.items()}
    write_changed(tmp_path / "b", changed)
    for name in ("a", "b"):
        run(tmp_path / name, tmp_path / f"{name}.h5", config)
    assert (tmp_path / "a" / "data.h5").read_bytes() != (tmp_path / "b" / "data.h5").read_bytes()
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")
    assert history(tmp_path / "a.h5") == history(tmp_path / "b.h5")


def write_changed(folder: Path, maps: dict[str, tuple[int, ...]]) -> None:
    """Make a workspace with the photos of `MAPS` and other label maps."""
    write_folder(folder / "set")
    for name, ids in maps.items():
        Image.fromarray(label_map(ids)).save(folder / "set" / "masks" / f"{name}.png")
    fetch_data(folder / "data.h5", FetchConfig("folder"), root=folder / "set")
    make_split(folder / "data.h5", folder / "split.h5", SplitConfig(unseen=("cow", "sheep")))
    write_labels(folder)


def test_vectors_of_unseen_classes_reach_nothing(inputs: Path, tmp_path: Path) -> None:
    """A class vector is used only where a pixel of its class is: other vectors of unseen classes change no weight."""
    run(inputs, tmp_path / "a.h5", replace(FROZEN, epochs=1))
    with open_artifact(inputs / "labels.h5", "labels") as labels:
        vectors = labels.array("vectors")
    vectors[3:] = -vectors[3:]
    other = tmp_path / "labels.h5"
    with (
        open_artifact(inputs / "labels.h5", "labels") as labels,
        create(other, "labels", params={}, inputs={}) as writer,
    ):
        for name in ("names", "words"):
            writer.put(name, labels.strings(name))
        writer.put("vectors", vectors)
        for name in ("raw", "mean", "components", "explained_variance"):
            writer.put(name, labels.array(name))
    train(inputs / "data.h5", inputs / "split.h5", other, tmp_path / "b.h5", replace(FROZEN, epochs=1))
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")


def test_the_drop_policy_trains_on_photos_without_unseen_classes(tmp_path: Path) -> None:
    """With drop, two of the four photos leave training: half the steps, and what they showed does not matter."""
    space = workspace(tmp_path / "w", policy="drop")
    summary = run(space, tmp_path / "a.h5", replace(FROZEN, batch=1))
    assert summary.total_steps == 2 * FROZEN.epochs
    other = workspace(tmp_path / "v", quarters={**MAPS, "three": (3, 3, 4, 2), "four": (4, 4, 0, 3)}, policy="drop")
    run(other, tmp_path / "b.h5", replace(FROZEN, batch=1))
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")


@pytest.mark.parametrize("config", [FROZEN, QUICK], ids=["frozen", "fine-tuned"])
def test_a_batch_of_void_only(tmp_path: Path, config: TrainConfig) -> None:
    """A photo that shows unseen classes alone gives a step of loss 0, not NaN."""
    space = workspace(tmp_path / "w", quarters={**MAPS, "three": (3, 3, 4, 4), "four": (4, 4, 3, 3)})
    summary = run(space, tmp_path / "a.h5", replace(config, batch=1))
    losses = history(tmp_path / "a.h5")[:8]
    assert losses.count(0.0) == 4
    assert math.isfinite(summary.last_loss)


@pytest.mark.parametrize("config", [FROZEN, QUICK], ids=["frozen", "fine-tuned"])
def test_photos_without_a_label_map(inputs: Path, tmp_path: Path, config: TrainConfig) -> None:
    """An unlabelled photo is void all over: it trains like a label map of void, and is no error in validation."""
    space = tmp_path / "w"
    space.mkdir()
    write_labels(space)
    with (
        open_artifact(inputs / "data.h5", "data") as data,
        create(space / "data.h5", "data", params={}, inputs={}) as writer,
    ):
        for name in ("names", "ids"):
            writer.put(name, data.strings(name))
        writer.put("images", [data.bytes_at("images", index) for index in range(6)])
        writer.put("label_maps", [b"" if index in (1, 5) else data.bytes_at("label_maps", index) for index in range(6)])
        for name in ("sizes", "train", "val"):
            writer.put(name, data.array(name))
    make_split(space / "data.h5", space / "split.h5", SplitConfig(unseen=("cow", "sheep")))
    summary = run(space, tmp_path / "a.h5", replace(config, batch=1))
    assert history(tmp_path / "a.h5")[:8].count(0.0) == 2
    assert math.isfinite(summary.val_seen_miou)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_leaves_the_old_model(inputs: Path, tmp_path: Path) -> None:
    """A learning rate beyond reason ends in one clear error with a lower one to try; the old model stays."""
    out = tmp_path / "model.h5"
    run(inputs, out, replace(FROZEN, epochs=1))
    before = out.read_bytes()
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ of 12 .*try --lr 1e\+29"):
        run(inputs, out, replace(FROZEN, epochs=6, lr=1e30), force=True)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_an_existing_model_is_kept_without_force(inputs: Path, tmp_path: Path) -> None:
    """Training does not begin where its result would be refused."""
    (tmp_path / "model.h5").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        run(inputs, tmp_path / "model.h5")
    assert (tmp_path / "model.h5").read_text() == "mine"


def test_a_learning_rate_of_zero_is_not_the_default(inputs: Path, tmp_path: Path) -> None:
    """--lr 0 trains nothing: the rate that was asked for is the rate that is used."""
    summary = run(inputs, tmp_path / "a.h5", replace(FROZEN, lr=0.0))
    assert summary.settings["lr"] == 0


def test_a_joint_embedding_needs_labels(inputs: Path, tmp_path: Path) -> None:
    """Without labels.h5 the mse loss has no target."""
    with pytest.raises(SettingError, match="embed-labels"):
        train(inputs / "data.h5", inputs / "split.h5", None, tmp_path / "a.h5", FROZEN)


# --- interruption and resume ------------------------------------------------------------------------------------------

EPOCHS = 10
SLOW = ("--epochs", EPOCHS, "--batch", 2, "--crop", 64, "--workers", 0, "--device", "cpu")


def interrupted_run(space: Path, *words: object, number: int = signal.SIGINT, after: int = 2) -> tuple[int, str]:
    """Start `python -m zsseg train`, send it a signal after some epochs, and return exit code and stderr."""
    command = [sys.executable, "-m", "zsseg", "train", *map(str, words), "--workspace", str(space)]
    log = space / "stderr.txt"
    with log.open("w") as stderr:
        # as many threads as this process has: sums over pixels depend on how they are shared out
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, **threads})
        try:
            end = time.monotonic() + 60
            while process.poll() is None and f"epoch {after}/" not in log.read_text() and time.monotonic() < end:
                time.sleep(0.005)
            process.send_signal(number)
            code = process.wait(timeout=60)
        finally:
            process.kill()
    text = log.read_text()
    log.unlink()
    return code, text


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("--frozen",), signal.SIGINT),
        ((), signal.SIGINT),
        (("--loss", "softmax"), signal.SIGTERM),
    ],
    ids=["frozen", "fine-tuned", "softmax"],
)
def test_an_interrupted_run_goes_on_exactly(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], number: int
) -> None:
    """Ctrl-C keeps what was trained and says how to go on; after --resume not a byte differs from a whole run."""
    space = workspace(tmp_path / "w")
    out = space / "model.h5"
    code, stderr = interrupted_run(space, *SLOW, *words, number=number)
    if code == 0:
        pytest.skip("the run was over before the signal came")
    assert code == 130
    last = stderr.splitlines()[-1]
    assert last.startswith("zsseg: error: interrupted")
    assert re.search(rf"{re.escape(str(out))}.*`zsseg train .*--workspace {re.escape(str(space))} --resume`", last)
    with open_artifact(out, "model") as model:
        done = model.params["step"]
        assert 2 * 2 <= done < 2 * EPOCHS
        assert len(model.array("loss")) == done
        assert "optimizer" in model
    zsseg("train", "--resume", "--workspace", space)
    resumed = out.read_bytes()
    zsseg("train", *SLOW, *words, "--workspace", space, "--force")
    with open_artifact(out, "model") as model:
        assert model.params["step"] == 2 * EPOCHS
        assert "optimizer" not in model
        whole = model.digest
    (tmp_path / "resumed.h5").write_bytes(resumed)
    assert_same_weights(out, tmp_path / "resumed.h5")
    with open_artifact(tmp_path / "resumed.h5", "model") as model:
        assert model.digest == whole
    assert resumed == out.read_bytes()


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with an unfinished model: stopped by its own signal after the first epoch."""
    space = workspace(tmp_path_factory.mktemp("unfinished"))
    stop_after_one_epoch(space, space / "model.h5", FROZEN)
    return space


def stop_after_one_epoch(space: Path, out: Path, config: TrainConfig) -> TrainSummary:
    """Train until the first epoch is told of, then interrupt: without a process of its own, hence quick."""

    class Stop(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("epoch 1/"):
                signal.raise_signal(signal.SIGINT)

    logger = logging.getLogger("zsseg.train")
    handler, level = Stop(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return run(space, out, config)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_an_interrupt_is_told_in_the_summary(inputs: Path, tmp_path: Path) -> None:
    """The summary says that training is unfinished, and Ctrl-C means again what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    summary = stop_after_one_epoch(inputs, tmp_path / "a.h5", replace(FROZEN, epochs=5))
    assert (summary.finished, summary.steps, summary.total_steps) == (False, 2, 10)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resume_with_worker_processes(inputs: Path, tmp_path: Path) -> None:
    """Worker processes read ahead of an interrupt; the resumed run still draws every batch as a whole run does."""
    config = replace(QUICK, epochs=4, workers=1)
    stop_after_one_epoch(inputs, tmp_path / "a.h5", config)
    run(inputs, tmp_path / "a.h5", config, resume=True)
    run(inputs, tmp_path / "b.h5", replace(config, workers=0))
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")


def test_an_unfinished_model_predicts(unfinished: Path) -> None:
    """What was trained so far is a model like any other."""
    zsseg("eval", "--workspace", unfinished, "--force")


def test_a_resume_takes_the_recorded_settings(unfinished: Path) -> None:
    """`train --resume` alone goes on with the settings of the unfinished model."""
    config = recorded_config(unfinished / "model.h5")
    for key in ("model", "loss", "frozen", "epochs", "batch", "crop", "seed", "weighting"):
        assert getattr(config, key) == getattr(FROZEN, key)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--epochs", 7), ("epochs", "2", "7")),
        (("--batch", 3), ("batch", "2", "3")),
        (("--seed", 5), ("seed", "0", "5")),
        (("--lr", 0.5), ("lr", "0.003", "0.5")),
        (("--weighting", "frequency"), ("weighting", "none", "frequency")),
        (("--model", "fcn32s"), ("lite0", "fcn32s")),
        (("--loss", "softmax"), ("loss", "mse", "softmax")),
    ],
)
def test_a_resume_with_other_options_names_both_values(
    unfinished: Path, words: tuple[object, ...], says: tuple[str, ...]
) -> None:
    """A resume that would not be the same run is refused; the unfinished model stays."""
    before = (unfinished / "model.h5").read_bytes()
    result = zsseg("train", "--resume", *words, "--workspace", unfinished, "-q", expect=1)
    for word in ("model.h5", *says):
        assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert (unfinished / "model.h5").read_bytes() == before


def test_a_resume_from_other_inputs(unfinished: Path, tmp_path: Path) -> None:
    """A resume with another split is refused by name."""
    split = tmp_path / "split.h5"
    make_split(unfinished / "data.h5", split, SplitConfig(unseen=("dog",)))
    with pytest.raises(ArtifactError, match="another split"):
        train(
            unfinished / "data.h5", split, unfinished / "labels.h5", unfinished / "model.h5", FROZEN, resume=True
        )  # fmt: skip


def test_a_finished_model_has_nothing_to_resume(inputs: Path, tmp_path: Path) -> None:
    """A resume of a finished run is refused, and the model stays."""
    run(inputs, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(ArtifactError, match=r"is finished \(4 steps\), nothing to resume"):
        run(inputs, tmp_path / "a.h5", resume=True)
    assert (tmp_path / "a.h5").read_bytes() == before


def test_a_resume_without_a_model(inputs: Path, tmp_path: Path) -> None:
    """`--resume` with no model.h5 says so, and names no option that does something else."""
    with pytest.raises(ArtifactError, match=r"model\.h5: no such file"):
        run(inputs, tmp_path / "model.h5", resume=True)


def test_the_model_is_written_now_and_then(inputs: Path, tmp_path: Path) -> None:
    """With --checkpoint-every 0 the unfinished model is on disk while training goes on."""
    found = []

    class Watch(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            if (tmp_path / "a.h5").exists():
                with open_artifact(tmp_path / "a.h5", "model") as model:
                    found.append(model.params["step"])

    logger = logging.getLogger("zsseg.train")
    handler, level = Watch(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run(inputs, tmp_path / "a.h5", replace(FROZEN, checkpoint_every=0.0))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert found == [1, 3]
