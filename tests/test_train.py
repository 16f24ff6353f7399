"""Training: exact repetition, interruption and resume, the schedule, and what labels of unseen classes may reach."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import NAMES, SIDE, label_map, write_folder, zsseg

from zsseg import checkpoint
from zsseg import train as training
from zsseg.artifacts import create, open_artifact
from zsseg.batches import FeatureCache
from zsseg.checkpoint import recorded_config
from zsseg.config import FetchConfig, ModelName, SplitConfig, TrainConfig
from zsseg.dataset import Position, normalise, read_image, sample_labels, training_labels
from zsseg.errors import ArtifactError, SettingError, TrainingError
from zsseg.fetch import fetch_data
from zsseg.inference import load_model
from zsseg.models import build
from zsseg.progress import SILENT
from zsseg.split import make_split
from zsseg.train import TrainSummary, learning_rate, train

DIM = 6
QUICK = TrainConfig(
    frozen=False, epochs=2, batch=2, crop=64, workers=0, device="cpu", calibration="none", anchors="none"
)
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


@pytest.mark.parametrize("config", [FROZEN, QUICK], ids=["frozen", "fine-tuned"])
def test_the_validation_curve_is_that_of_the_model_of_each_epoch(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: TrainConfig
) -> None:
    """Scored anew from the photos after each epoch; a frozen backbone sees each of them once, another every time."""
    seen, anew = [], []
    features, validate = training.image_features, training._validate

    def noted(*words: Any, **options: Any) -> Any:
        seen.append(1)
        return features(*words, **options)

    def also_anew(task: Any, net: Any, kept: Any) -> float:
        before = len(seen)
        anew.append(validate(task, net, None))
        del seen[before:]
        return validate(task, net, kept)

    monkeypatch.setattr(training, "image_features", noted)
    monkeypatch.setattr(training, "_validate", also_anew)
    run(inputs, tmp_path / "a.h5", replace(config, epochs=3))
    with open_artifact(tmp_path / "a.h5", "model") as model, open_artifact(inputs / "split.h5", "split") as split:
        assert model.array("val_seen_miou").tolist() == pytest.approx(anew)
        photos = len(split.array("val"))
    assert len(seen) == (photos if config.frozen else 3 * photos) > 0


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


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ({"loss": "cosine"}, 1.0),
        ({"loss": "hinge"}, 2 * 0.1),
        ({"loss": "hinge", "negatives": "hardest"}, 0.1),
        ({"loss": "hinge", "negatives": "semi-hard"}, 2 * 0.1),
        ({"loss": "softmax-embed"}, math.log(3)),
        ({"loss": "infonce"}, math.log(3)),
        ({"loss": "joem"}, None),
    ],
    ids=lambda words: " ".join(words.values()) if isinstance(words, dict) else "",
)
def test_every_loss_starts_at_its_constant_guess_and_falls(
    inputs: Path, tmp_path: Path, words: dict[str, Any], start: float | None
) -> None:
    """Heads start from an output of 0 (3 seen classes, 2 negatives); every loss leaves it and more than halves."""
    run(inputs, tmp_path / "a.h5", replace(FROZEN, epochs=10, **words))
    losses = history(tmp_path / "a.h5")[:20]
    assert start is None or losses[0] == pytest.approx(start, abs=1e-5)
    assert np.mean(losses[-4:]) < 0.5 * losses[0]


@pytest.mark.parametrize("weighting", ["frequency", "effective-number", "image"])
@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_a_weighting_changes_what_is_learned(tmp_path: Path, weighting: Any, loss: Any) -> None:
    """Classes are unevenly frequent here, so weights give other losses and other weights."""
    maps = {**MAPS, "one": (0, 0, 0, 1), "two": (0, 0, 0, 2)}
    space = workspace(tmp_path / "w", quarters=maps)
    run(space, tmp_path / "a.h5", replace(FROZEN, loss=loss))
    run(space, tmp_path / "b.h5", replace(FROZEN, loss=loss, weighting=weighting))
    assert history(tmp_path / "a.h5")[1] != history(tmp_path / "b.h5")[1]


def test_the_negatives_change_what_is_learned(inputs: Path, tmp_path: Path) -> None:
    """The kind of negatives reaches the rank loss and is recorded; a model of another loss records none."""
    hinge = replace(FROZEN, loss="hinge", epochs=4)
    seen = set()
    for negatives in ("all", "hardest", "semi-hard"):
        summary = run(inputs, tmp_path / f"{negatives}.h5", replace(hinge, negatives=negatives))
        assert summary.settings["negatives"] == negatives
        seen.add(history(tmp_path / f"{negatives}.h5")[7])
    assert len(seen) == 3
    assert "negatives" not in run(inputs, tmp_path / "mse.h5", replace(FROZEN, epochs=1)).settings


@pytest.mark.parametrize("loss", ["softmax-embed", "infonce"])
def test_the_temperature_is_learned(inputs: Path, tmp_path: Path, loss: Any) -> None:
    """The scale starts at CLIP's 1/0.07, moves, stays within CLIP's limits, and other losses record none."""
    from zsseg.losses import LOG_SCALE

    summary = run(inputs, tmp_path / "a.h5", replace(FROZEN, loss=loss))
    assert summary.settings["log_scale"] != pytest.approx(LOG_SCALE, abs=1e-4)
    summary = run(inputs, tmp_path / "b.h5", replace(FROZEN, loss=loss, lr=0.0))
    assert summary.settings["log_scale"] == pytest.approx(LOG_SCALE, abs=1e-6)  # no weight decay either
    summary = run(inputs, tmp_path / "c.h5", replace(FROZEN, loss=loss, lr=3.0))
    assert 0 <= summary.settings["log_scale"] <= math.log(100) + 1e-6
    assert "log_scale" not in run(inputs, tmp_path / "mse.h5", replace(FROZEN, epochs=1)).settings


@pytest.mark.parametrize("loss", ["cosine", "softmax-embed"])
def test_losses_of_directions_keep_unit_vectors(inputs: Path, tmp_path: Path, loss: Any) -> None:
    """Where the loss looks at directions the model holds unit vectors, so that NNE ranks classes as the loss does."""
    space = tmp_path / "w"
    space.mkdir()
    change_vectors(inputs / "labels.h5", space / "labels.h5", lambda vectors: vectors * np.arange(1, 6)[:, None])
    for name in ("data.h5", "split.h5"):
        (space / name).symlink_to(inputs / name)
    run(space, tmp_path / "a.h5", replace(FROZEN, loss=loss, epochs=1))
    run(space, tmp_path / "b.h5", replace(FROZEN, epochs=1))
    with open_artifact(inputs / "labels.h5", "labels") as labels:
        unit = labels.array("vectors")
    with open_artifact(tmp_path / "a.h5", "model") as angular, open_artifact(tmp_path / "b.h5", "model") as euclidean:
        np.testing.assert_allclose(angular.array("vectors"), unit, atol=1e-6)
        np.testing.assert_allclose(euclidean.array("vectors"), unit * np.arange(1, 6)[:, None], rtol=1e-6)


def change_vectors(source: Path, out: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    """Write labels.h5 anew with other class vectors."""
    with open_artifact(source, "labels") as labels, create(out, "labels", params={}, inputs={}) as writer:
        for name in ("names", "words"):
            writer.put(name, labels.strings(name))
        writer.put("vectors", change(labels.array("vectors")))
        for name in ("raw", "mean", "components", "explained_variance"):
            writer.put(name, labels.array(name))


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
    [
        (FROZEN, 3),
        (QUICK, 255),
        (replace(FROZEN, weighting="frequency"), 255),
        (replace(FROZEN, loss="softmax"), 3),
        (replace(FROZEN, loss="infonce", weighting="effective-number"), 255),
        (replace(FROZEN, loss="joem", weighting="image"), 3),
        (replace(FROZEN, loss="hinge"), 255),
    ],
    ids=["frozen", "fine-tuned", "frequency", "softmax", "infonce, effective number", "joem, image", "hinge"],
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


@pytest.mark.parametrize("loss", ["mse", "hinge", "infonce", "joem"])
def test_vectors_of_unseen_classes_reach_nothing(inputs: Path, tmp_path: Path, loss: Any) -> None:
    """An unseen class is no target, negative or denominator: other vectors of them change no weight."""
    config = replace(FROZEN, loss=loss, epochs=1)
    run(inputs, tmp_path / "a.h5", config)
    sign = np.array([1, 1, 1, -1, -1])[:, None]
    change_vectors(inputs / "labels.h5", tmp_path / "labels.h5", lambda vectors: vectors * sign)
    train(inputs / "data.h5", inputs / "split.h5", tmp_path / "labels.h5", tmp_path / "b.h5", config)
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")
    assert history(tmp_path / "a.h5")[:2] == history(tmp_path / "b.h5")[:2]


def test_the_drop_policy_trains_on_photos_without_unseen_classes(tmp_path: Path) -> None:
    """With drop, two of the four photos leave training: half the steps, and what they showed does not matter."""
    space = workspace(tmp_path / "w", policy="drop")
    summary = run(space, tmp_path / "a.h5", replace(FROZEN, batch=1))
    assert summary.total_steps == 2 * FROZEN.epochs
    other = workspace(tmp_path / "v", quarters={**MAPS, "three": (3, 3, 4, 2), "four": (4, 4, 0, 3)}, policy="drop")
    run(other, tmp_path / "b.h5", replace(FROZEN, batch=1))
    assert_same_weights(tmp_path / "a.h5", tmp_path / "b.h5")


@pytest.mark.parametrize(
    "config",
    [FROZEN, QUICK, replace(FROZEN, loss="infonce", weighting="image"), replace(FROZEN, loss="joem")],
    ids=["frozen", "fine-tuned", "infonce", "joem"],
)
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


def test_negatives_belong_to_the_rank_loss(inputs: Path) -> None:
    """--negatives with another loss would be silently without effect, so it is refused."""
    result = zsseg("train", "--negatives", "hardest", "--workspace", inputs, "--out", inputs / "x.h5", expect=1)
    assert "--negatives: belongs to --loss hinge, not mse" in result.stderr
    assert not (inputs / "x.h5").exists()


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
        (("--frozen", "--loss", "infonce", "--weighting", "image"), signal.SIGINT),
    ],
    ids=["frozen", "fine-tuned", "softmax", "temperature"],
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
        assert ("exp_avg:log_scale" in model.arrays("optimizer")) == ("infonce" in words)
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
        (("--self-train", "void"), ("self_train", "none", "void")),
        (("--model", "fcn32s"), ("lite0", "fcn32s")),
        (("--loss", "softmax"), ("loss", "mse", "softmax")),
        (("--loss", "infonce"), ("loss", "mse", "infonce")),
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


def test_a_resume_without_a_model(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--resume` where nothing was begun trains from the start, and says so."""
    with caplog.at_level(logging.INFO, logger="zsseg.checkpoint"):
        assert run(inputs, tmp_path / "model.h5", resume=True).finished
    assert "model.h5: no unfinished model is there, training from the start" in caplog.text
    run(inputs, tmp_path / "other.h5")
    assert (tmp_path / "model.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.h5", "other.h5"}


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


def test_checkpoints_by_steps(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --checkpoint-steps the unfinished model is written at its multiples, but not when the run is over anyway."""
    written = []
    save = checkpoint.Journal.save

    def spy(self: Any, stage: str, state: Any, *rest: Any) -> None:
        written.append((stage, state.step))
        save(self, stage, state, *rest)

    monkeypatch.setattr(checkpoint.Journal, "save", spy)
    run(inputs, tmp_path / "a.h5", replace(FROZEN, epochs=4, checkpoint_steps=3))
    assert written == [("model", 3), ("model", 6), ("model", 8)]


def test_data_that_is_replaced_in_mid_run(tmp_path: Path) -> None:
    """Training does not go on with other photos than it began with, nor with missing ones; the old model stays."""
    for change, message in ((lambda path: path.unlink(), "no such file"), (other_data, "was replaced while it was")):
        space = workspace(tmp_path / message[:2])
        (space / "model.h5").write_text("mine")
        gone = [False]

        class Change(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.getMessage().startswith("epoch 1/") and not gone[0]:  # noqa: B023
                    gone[0] = True  # noqa: B023
                    change(space / "data.h5")  # noqa: B023

        logger = logging.getLogger("zsseg.train")
        handler, level = Change(), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with pytest.raises(ArtifactError, match=rf"data\.h5: {message}"):
                run(space, space / "model.h5", FROZEN, force=True)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        assert (space / "model.h5").read_text() == "mine"


def other_data(path: Path) -> None:
    """Replace a data artifact by one of fewer photos."""
    fetch_data(path, FetchConfig("folder", limit=3), root=path.parent / "set", force=True)


# --- other models -----------------------------------------------------------------------------------------------------

TINY = {
    "aspp": replace(QUICK, model="aspp", backbone="test_resnet"),
    "hourglass": replace(FROZEN, model="hourglass", backbone="test_resnet", stacks=2),
    "vit": replace(QUICK, model="vit", backbone="test_vit"),
    "vit-value": replace(FROZEN, model="vit", backbone="test_vit", dense_features="value"),
}


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Save timm's tiny models, randomly initialised, as their weights are published."""
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in ("test_resnet", "test_vit"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            files[name] = str(folder / f"{name}.safetensors")
            save_file(timm.create_model(name).state_dict(), files[name])
    return files


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_other_models_train_repeat_and_resume(
    inputs: Path, tmp_path: Path, tiny_files: dict[str, str], config: TrainConfig
) -> None:
    """Each model learns, gives the same bytes again, also after an interrupt, and is rebuilt from its file alone."""
    backbone = str(config.backbone)
    config = replace(config, weights=tiny_files[backbone], epochs=5, lr=3e-3)
    run(inputs, tmp_path / "a.h5", config)
    stop_after_one_epoch(inputs, tmp_path / "b.h5", config)
    run(inputs, tmp_path / "b.h5", config, resume=True)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    losses = history(tmp_path / "a.h5")[:10]
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert np.mean(losses[-4:]) < 0.8
    model = load_model(tmp_path / "a.h5", device="cpu")
    assert model.params["backbone"].startswith(f"{backbone}.")
    assert model.params["pretrained"]["architecture"] == backbone
    assert "local file" in model.params["pretrained"]["seen"]
    assert model.predict(np.zeros((33, 65, 3), dtype=np.uint8)).label_map.shape == (33, 65)


def test_a_plain_hourglass_trains_every_stack_from_random(inputs: Path, tmp_path: Path) -> None:
    """Without a backbone all is trained; each stack's prediction, 0 at the start, has moved; the record says `none`."""
    config = replace(QUICK, model="hourglass", backbone="none", stacks=3, epochs=1)
    run(inputs, tmp_path / "a.h5", config)
    with open_artifact(tmp_path / "a.h5", "model") as model:
        assert model.params["pretrained"]["source"] == "none"
        assert "from random" in model.params["pretrained"]["seen"]
        trained = model.arrays("weights")
    for stack in range(3):
        assert np.abs(trained[f"stacks.{stack}.out.weight"]).max() > 1e-4
    with pytest.raises(SettingError, match="--frozen keeps the backbone as it is, --backbone none has none"):
        run(inputs, tmp_path / "b.h5", replace(config, frozen=True))


def test_the_loss_of_stacks_is_their_mean(inputs: Path, tmp_path: Path) -> None:
    """From predictions of 0 every stack has the loss 1, and so has their mean, whatever their number."""
    for stacks in (1, 3):
        config = replace(QUICK, model="hourglass", backbone="none", stacks=stacks, epochs=1)
        run(inputs, tmp_path / "a.h5", config, force=True)
        assert history(tmp_path / "a.h5")[0] == pytest.approx(1.0, abs=1e-5)


def test_a_resume_with_another_backbone_names_both(inputs: Path, tmp_path: Path, tiny_files: dict[str, str]) -> None:
    """The full name of the backbone is part of the settings; its short name means the same."""
    config = replace(TINY["aspp"], weights=tiny_files["test_resnet"])
    stop_after_one_epoch(inputs, tmp_path / "a.h5", config)
    with pytest.raises(SettingError, match=r"backbone 'test_resnet\.r160_in1k'.*'test_convnext\.r160_in1k'"):
        run(inputs, tmp_path / "a.h5", replace(config, backbone="test_convnext"), resume=True)
    assert run(inputs, tmp_path / "a.h5", config, resume=True).finished


@pytest.mark.parametrize(
    ("model", "backbone"), [("aspp", "test_resnet"), ("vit", "test_vit"), ("vit", "vit_small_patch14_dinov2")]
)
def test_windows_of_cached_features_lie_on_their_labels(
    inputs: Path, tmp_path: Path, model: ModelName, backbone: str
) -> None:
    """At any stride, a window of --frozen holds the unfrozen model's features, and the labels of the same place."""
    net = build(model, DIM, backbone=backbone).eval()
    step, stride = net.pad_to, net.stride
    with open_artifact(inputs / "data.h5", "data") as data:
        cache = FeatureCache(net, data, np.array([0]), unseen=[], folder=tmp_path, precision="float32", progress=SILENT)
        pixels = torch.from_numpy(read_image(data, 0))[None]
        truth = sample_labels(training_labels(data, 0, [], (SIDE, SIDE)))
    with torch.inference_mode():
        fine = net.features(net.pad(normalise(pixels, net.mean, net.std)))[0][0].half().float()
    whole = fine.shape[1] * stride
    labels = np.full((whole // 4, whole // 4), 255)
    labels[: SIDE // 4, : SIDE // 4] = truth
    places = set()
    for maps, window in cache.batches([[Position(epoch, 0)] for epoch in range(12)], crop=step, seed=0):
        for top, left, mirrored in itertools.product(range(0, whole, step), range(0, whole, step), (False, True)):
            cells = tuple(slice(start // stride, (start + step) // stride) for start in (top, left))
            cut = labels[top // 4 : (top + step) // 4, left // 4 : (left + step) // 4]
            if torch.equal(maps[0][0], fine[:, *cells].flip(2) if mirrored else fine[:, *cells]):
                assert np.array_equal(window[0].numpy(), cut[:, ::-1] if mirrored else cut)
                places.add((top, left))
                break
        else:
            pytest.fail("a window that is not in the features")
    assert len(places) > 2
