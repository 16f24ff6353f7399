"""Self-training: where pseudo-labels are put, that they need no unseen label, and what becomes of them."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from test_train import (
    DIM,
    MAPS,
    assert_same_weights,
    history,
    run,
    stop_after_one_epoch,
    weights,
    workspace,
    write_changed,
)
from tiny import COLOURS, NAMES, SIDE, zsseg
from torch import Tensor

from zsseg import calibration, selftrain
from zsseg.artifacts import create, open_artifact
from zsseg.batches import FeatureCache
from zsseg.config import TrainConfig
from zsseg.dataset import Position, TrainingSet, fill_void, seen_pixels
from zsseg.errors import SettingError
from zsseg.images import decode_label_map, encode_label_map
from zsseg.inference import Model
from zsseg.models import SegmentationNet, build
from zsseg.progress import SILENT

VOID = 255
SEEN, UNSEEN = (0, 1, 2), (3, 4)
PLAIN: dict[str, Any] = {"calibration": "none", "gate": False, "anchors": "none"}
FROZEN, QUICK = (replace(test_train.QUICK, frozen=frozen, **PLAIN) for frozen in (True, False))
VOID_ONLY = replace(FROZEN, self_train="void")
ANYWHERE = replace(FROZEN, self_train="anywhere")


# --- pure functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_inner_void_is_further_than_the_margin_from_every_label(margin: int) -> None:
    """The inside is what a plain loop over all pixels finds, at the photo's edges, too."""
    rng = np.random.default_rng(margin)
    labels = np.where(rng.random((17, 23)) < 0.02, 1, VOID).astype(np.uint8)
    labels[5:9, :6] = 0
    expected = np.zeros(labels.shape, dtype=bool)
    for y, x in np.ndindex(*labels.shape):
        near = labels[max(0, y - margin) : y + margin + 1, max(0, x - margin) : x + margin + 1]
        expected[y, x] = (near == VOID).all()
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(selftrain.inner_void(labels, margin), expected)


def test_borders_between_labels_vanish() -> None:
    """A void strip of twice the margin has no inside; one that is a pixel wider has a line of it."""
    for width, left in ((2 * selftrain.MARGIN, 0), (2 * selftrain.MARGIN + 1, 1)):
        labels = np.zeros((20, 30), dtype=np.uint8)
        labels[:, 10 : 10 + width] = VOID
        assert selftrain.inner_void(labels).sum() == 20 * left


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_region_means(share: float) -> None:
    """Each pixel's scores are mixed with the mean of its region, as a plain loop does it; numbers may be missing."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 40)).astype(np.float32)
    regions = rng.choice([1, 2, 5], 40)
    found = selftrain.with_region_means(scores, regions, share)
    for c, p in np.ndindex(3, 40):
        mean = np.mean([scores[c, q] for q in range(40) if regions[q] == regions[p]])
        assert found[c, p] == pytest.approx((1 - share) * scores[c, p] + share * mean, abs=1e-6)


def test_views_must_agree() -> None:
    """A pixel keeps its class only where every vote is the same; a vote for nothing is one against."""
    votes = np.array([[[3, 3, 4, 255]], [[3, 4, 4, 3]], [[3, 3, 4, 255]]], dtype=np.uint8)
    assert selftrain.agreed(list(votes)).tolist() == [[3, 255, 4, 255]]


def test_pseudo_labels_and_labels_never_mix() -> None:
    """Proposals on seen labels are dropped, and pseudo-labels fill void pixels only."""
    labels = np.array([[0, 1, 255, 255]], dtype=np.uint8)
    proposed = np.array([[3, 255, 3, 255]], dtype=np.uint8)
    kept = selftrain.yield_to_seen(proposed, labels)
    assert kept.tolist() == [[255, 255, 3, 255]]
    assert fill_void(labels, kept).tolist() == [[0, 1, 3, 255]]
    assert fill_void(labels, proposed).tolist() == [[0, 1, 3, 255]]


# --- proposals of a model whose embedding is the colour ---------------------------------------------------------------


class ColourNet(SegmentationNet):
    """The mean colour of each 4 × 4 pixels is the embedding; `lean` adds to the third number, from left to right."""

    mean, std, stride, pad_to = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 4, 4

    def __init__(self, lean: float = 0.0) -> None:
        super().__init__()
        self.lean = lean

    def features(self, images: Tensor) -> list[Tensor]:
        return [images]

    def head(self, features: list[Tensor]) -> Tensor:
        cells = F.avg_pool2d(features[0], 4)
        cells[:, 2] += torch.linspace(-self.lean, self.lean, cells.shape[-1])
        return cells


def colour_model(*, lean: float = 0.0, **options: Any) -> Model:
    vectors = torch.tensor(COLOURS).float() / 255
    return Model(
        net=ColourNet(lean),
        names=NAMES, seen=SEEN, unseen=UNSEEN, vectors=vectors, device=torch.device("cpu"), precision="float32",
        params={}, **options,
    )  # fmt: skip


def painted(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(COLOURS, dtype=np.uint8)[labels]


@pytest.fixture
def scene() -> NDArray[np.uint8]:
    """Return the truth of a photo without symmetry, whose sides are no multiple of the stride: a cow and a sheep."""
    labels = np.zeros((50, 70), dtype=np.uint8)
    labels[4:30, 40:66] = 3
    labels[32:48, 6:30] = 4
    labels[8:24, 4:30] = 1
    return labels


def test_blind_proposals_are_where_the_model_sees_unseen_classes(scene: NDArray[np.uint8]) -> None:
    """Inside every object the proposal is right, elsewhere there is none; borders between colours may go either way."""
    found = selftrain.propose(colour_model(), painted(scene))
    flat = np.zeros(scene.shape, dtype=bool)
    for y, x in np.ndindex(*scene.shape):
        around = scene[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7]
        flat[y, x] = (around == scene[y, x]).all()
    expected = np.where(np.isin(scene, UNSEEN), scene, VOID)
    assert {*np.unique(expected[flat])} == {3, 4, VOID}
    assert np.array_equal(found[flat], expected[flat])


def test_blind_proposals_follow_the_calibration(scene: NDArray[np.uint8]) -> None:
    """A calibration that favours seen classes above all leaves no proposal."""
    model = colour_model(calibration=calibration.stacking(len(NAMES), SEEN, -100.0))
    assert (selftrain.propose(model, painted(scene)) == VOID).all()


def test_inside_pixels_choose_among_the_unseen(scene: NDArray[np.uint8]) -> None:
    """Inside pixels get an unseen class whatever they look like, all others none."""
    labels = np.where(np.isin(scene, UNSEEN), np.uint8(VOID), scene)
    labels[10:22, 6:28] = VOID  # a piece of the cat: red is nearer to sheep's yellow than to cow's blue
    inside = selftrain.inner_void(labels)
    found = selftrain.propose_inside(colour_model(), painted(scene), inside)
    expected = np.where(scene == 1, 4, scene)
    assert np.array_equal(found[inside], expected[inside])
    assert (found[~inside] == VOID).all()


def test_a_region_draws_its_odd_pixels_along() -> None:
    """A spot that alone looks more like a sheep takes the class of the cow around it."""
    image = painted(np.full((48, 48), 3, dtype=np.uint8))
    image[16:32, 16:32] = (164, 168, 129)  # two thirds of the way from the cow's colour to the sheep's
    inside = np.ones((48, 48), dtype=bool)
    model = colour_model()
    assert (selftrain.propose_inside(model, image, inside) == 3).all()
    split = inside.copy()
    split[[15, 32], 15:33] = split[15:33, [15, 32]] = False  # a region of its own
    assert (selftrain.propose_inside(model, image, split)[20:28, 20:28] == 4).all()


def test_what_changes_in_the_mirror_is_dropped() -> None:
    """A model that calls grey a cow on the right and a sheep on the left, mirrored or not, gives it no class."""
    image = np.full((40, 64, 3), 140, dtype=np.uint8)
    model = colour_model(lean=1.0)
    one = selftrain.inner_void(np.full((40, 64), VOID, dtype=np.uint8))
    found = selftrain.propose_inside(model, image, one)
    assert (found[:, :24] == VOID).all()
    assert (found[:, 40:] == VOID).all()


def test_large_photos_are_compared_at_a_smaller_size(monkeypatch: pytest.MonkeyPatch, scene: NDArray[np.uint8]) -> None:
    """The proposals of a photo above the largest side have the photo's own size, and are right inside objects."""
    monkeypatch.setattr(selftrain, "_working_size", lambda _: (60, 84))
    large = painted(scene).repeat(2, axis=0).repeat(2, axis=1)
    found = selftrain.propose(colour_model(), large)
    assert found.shape == (100, 140)
    assert (found[28:40, 100:112] == 3).all()
    assert (found[78:82, 30:40] == 4).all()


def test_at_most_so_many_photos_are_looked_at(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rules stop at the bound; which photos it takes is up to the seed, and `void` skips those without inside."""
    found = {}
    for rule in ("void", "anywhere"):
        for photos, bound in ((4, 2000), (1, 1)):
            monkeypatch.setattr(selftrain, "PHOTOS", bound)
            with open_artifact(inputs / "data.h5", "data") as data:
                made = [
                    selftrain.pseudo_labels(rule, colour_model(), data, np.arange(4), seed=seed, progress=SILENT)  # type: ignore[arg-type]
                    for seed in range(8)
                ]
            assert {each.record["photos"] for each in made} == {min(photos, 2 if rule == "void" else 4)}
            found[rule, bound] = {tuple(each.maps) for each in made}
    assert found["void", 2000] == {(2, 3)}  # photos three and four show a cow and a sheep
    assert found["void", 1] == {(2,), (3,)}
    assert found["anywhere", 1] == {(), (2,), (3,)}


def test_a_photo_without_a_label_map(tmp_path: Path, inputs: Path) -> None:
    """A photo that nobody labelled is void all over, and not of unseen classes: only the blind rule looks at it."""
    bare = tmp_path / "bare.h5"
    with open_artifact(inputs / "data.h5", "data") as data, create(bare, "data", params={}, inputs={}) as writer:
        for name in ("names", "ids"):
            writer.put(name, data.strings(name))
        writer.put("images", [data.bytes_at("images", index) for index in range(6)])
        writer.put("label_maps", [b""] * 6)
        for name in ("sizes", "train", "val"):
            writer.put(name, data.array(name))
    with open_artifact(bare, "data") as data:
        options: dict[str, Any] = {"seed": 0, "progress": SILENT}
        void = selftrain.pseudo_labels("void", colour_model(), data, np.arange(4), **options)
        blind = selftrain.pseudo_labels("anywhere", colour_model(), data, np.arange(4), **options)
        assert (void.record["photos"], void.maps) == (0, {})
        assert tuple(blind.maps) == (2, 3)
        counts = list(seen_pixels(data, [0, 2], UNSEEN, len(NAMES), pseudo=blind.maps))
    assert counts[0].sum() == 0
    assert counts[1].tolist() == [0, 0, 0, blind.record["pixels"]["cow"], 0]


# --- both sources of batches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the inputs that the tests share, and only read."""
    return workspace(tmp_path_factory.mktemp("inputs"))


def test_batches_hold_pseudo_labels(inputs: Path, tmp_path: Path) -> None:
    """Cached windows and augmented crops show a pseudo-label where the label map is void, and nowhere else."""
    pseudo = {2: encode_label_map(np.full((SIDE, SIDE), 4, dtype=np.uint8))}
    net = build("lite0", DIM).eval()
    with open_artifact(inputs / "data.h5", "data") as data:
        cache = FeatureCache(
            net, data, np.array([2]), unseen=UNSEEN, folder=tmp_path, precision="float32", progress=SILENT
        )
    positions = [[Position(epoch, 2)] for epoch in range(4)]
    for hidden in ((), (1,)):
        bare = cache.batches(positions, crop=SIDE, seed=0, hidden=hidden)
        filled = cache.batches(positions, crop=SIDE, seed=0, hidden=hidden, pseudo=pseudo)
        for (_, before), (_, after) in zip(bare, filled, strict=True):
            assert torch.equal(after, torch.where(before == VOID, 4, before))
            assert (1 in after) == (1 not in hidden)
    options: dict[str, Any] = {"unseen": UNSEEN, "crop": 96, "seed": 0}
    without, with_labels = (TrainingSet(inputs / "data.h5", **options, pseudo=each) for each in ({}, pseudo))
    for (position,) in positions:
        before, after = without[position][1], with_labels[position][1]
        assert set(np.unique(after)) >= {0, 4}
        assert np.array_equal(before[after != 4], after[after != 4])
        assert (before[after == 4] == VOID).all()


# --- training ---------------------------------------------------------------------------------------------------------


def near_vectors(space: Path) -> Path:
    """Rewrite class vectors so that unseen classes win somewhere against seen ones even without a calibration."""
    seen = np.eye(DIM)[:3]
    vectors = np.concatenate([seen, [seen[1] * 0.6 + seen[2] * 0.4], [seen[2] * 0.7 + seen[0] * 0.3]])
    with create(space / "labels.h5", "labels", params={}, inputs={}, force=True) as writer:
        for name, values in (
            ("names", NAMES), ("words", NAMES), ("vectors", vectors), ("raw", vectors), ("mean", np.zeros(DIM)),
            ("components", np.eye(DIM)), ("explained_variance", np.full(DIM, 1 / DIM)),
        ):  # fmt: skip
            writer.put(name, values)
    return space


def settings(path: Path) -> dict[str, Any]:
    with open_artifact(path, "model") as model:
        return model.params


@pytest.mark.parametrize(
    "config",
    [
        ANYWHERE,
        replace(VOID_ONLY, rounds=2, loss="joem", weighting="frequency"),
        replace(QUICK, self_train="void", epochs=1, calibration="csls", val_classes=("dog",), loss="softmax-embed"),
    ],
    ids=["anywhere", "void, two rounds", "void, fine-tuned, calibrated"],
)
def test_labels_of_unseen_classes_reach_no_pseudo_label(tmp_path: Path, config: TrainConfig) -> None:
    """With one unseen class's label in place of the other, and void in place of both, nothing of the model changes."""
    changed = {name: tuple({3: 4, 4: 3}.get(each, each) for each in ids) for name, ids in MAPS.items()}
    changed["four"] = tuple(VOID if each in UNSEEN else each for each in MAPS["four"])
    near_vectors(workspace(tmp_path / "a"))
    write_changed(tmp_path / "b", changed)
    near_vectors(tmp_path / "b")
    one, other = tmp_path / "a.h5", tmp_path / "b.h5"
    for path in (one, other):
        run(tmp_path / path.stem, path, config)
    assert sum(settings(one)["self_training"]["pixels"].values()) > 0
    assert settings(one) == settings(other)
    assert history(one) == history(other)
    assert_same_weights(one, other)


def test_self_training_finds_the_unseen_class(tmp_path: Path) -> None:
    """With one unseen class, inside void pixels can only be of it; a model that never predicted it learns it so."""
    space = workspace(tmp_path / "w", unseen=("cow",))
    config = replace(FROZEN, epochs=30)
    for name, each in (("before", config), ("after", replace(config, self_train="void"))):
        run(space, tmp_path / f"{name}.h5", each)
        files = ("--model", tmp_path / f"{name}.h5", "--out", tmp_path / f"{name}.scores.h5")
        zsseg("eval", "--partition", "train", "--workspace", space, *files)
    found = {}
    for name in ("before", "after"):
        with open_artifact(tmp_path / f"{name}.scores.h5", "scores") as scores:
            matrix = scores.array("confusion")
            found[name] = matrix[3, 3] / (matrix[3].sum() + matrix[:, 3].sum() - matrix[3, 3])
    assert found["before"] < 0.2
    assert found["after"] > 0.5
    record = settings(tmp_path / "after.h5")["self_training"]
    assert set(record["pixels"]) == {"cow"}
    quarter = (SIDE // 2) ** 2
    assert 0.6 * quarter < record["pixels"]["cow"] <= quarter + SIDE  # one quarter of one photo, and the void line


def test_no_pseudo_label_trains_the_plain_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing is found a warning says so, no unseen class is a target or a negative, and all is as without."""
    maps = {name: tuple(2 if each in UNSEEN else each for each in ids) for name, ids in MAPS.items()}
    space = workspace(tmp_path / "w", quarters=maps)
    with caplog.at_level(logging.WARNING, logger="zsseg"):
        run(space, tmp_path / "a.h5", replace(VOID_ONLY, loss="infonce"))
    assert "found no pixel of an unseen class; without --calibration" in caplog.text
    run(space, tmp_path / "b.h5", replace(FROZEN, loss="infonce"))
    one, other = weights(tmp_path / "a.h5"), weights(tmp_path / "b.h5")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_record_names_the_setting_everywhere(tmp_path: Path) -> None:
    """model.h5, the summary of train, and eval's table, JSON and scores.h5 all say transductive, and by which rule."""
    space = near_vectors(workspace(tmp_path / "w"))
    words = ("--frozen", "--epochs", 2, "--batch", 2, "--crop", 64, "--no-gate", "--workspace", space, "--force")
    for rule, says in (("void", "self-trained on void pixels"), ("anywhere", "self-trained anywhere, blind")):
        trained = zsseg("train", *words, "--self-train", rule, "--calibration", "stacking", "--val-classes", "dog")
        evaluated = zsseg("eval", "--workspace", space, "--force", "--json", space / "scores.json")
        for result in (trained, evaluated):
            assert f"{says} (transductive)" in " ".join(result.stdout.split())
        alone = "the calibration is of the first model alone" in " ".join(trained.stdout.split())
        assert (alone, "uncalibrated" in evaluated.stdout) == (rule == "void",) * 2
        recorded = settings(space / "model.h5")
        assert (recorded["self_train"], recorded["rounds"]) == (rule, 1)
        said = json.loads((space / "scores.json").read_text())["self_training"]
        assert said == {"self_train": rule, "rounds": 1, **recorded["self_training"]}
        assert said["setting"] == "transductive"
        assert ("margin" in said) == (rule == "void")
        with open_artifact(space / "scores.h5", "scores") as scores:
            assert scores.params["model"]["self_training"] == recorded["self_training"]
    trained = zsseg("train", *words, "--calibration", "none")
    evaluated = zsseg("eval", "--workspace", space, "--force", "--json", space / "scores.json")
    assert "transductive" not in trained.stdout + evaluated.stdout
    assert json.loads((space / "scores.json").read_text())["self_training"] is None
    assert "rounds" not in settings(space / "model.h5")


def test_what_cannot_be_self_trained_is_refused(inputs: Path, tmp_path: Path) -> None:
    """Softmax, a split without unseen classes and one that drops their photos are refused before any work."""
    with pytest.raises(SettingError, match="--self-train void: --loss softmax has no class vectors"):
        run(inputs, tmp_path / "a.h5", replace(VOID_ONLY, loss="softmax"))
    with pytest.raises(SettingError, match="--self-train anywhere: no class is unseen"):
        run(workspace(tmp_path / "all", unseen=()), tmp_path / "a.h5", ANYWHERE)
    with pytest.raises(SettingError, match="policy drops every photo"):
        run(workspace(tmp_path / "drop", policy="drop"), tmp_path / "a.h5", VOID_ONLY)
    assert not (tmp_path / "a.h5").exists()
    result = zsseg("train", "--rounds", 2, "--workspace", inputs, "--out", tmp_path / "a.h5", expect=1)
    assert "--rounds: belongs to --self-train" in result.stderr


# --- interruption and resume ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        replace(VOID_ONLY, calibration="stacking", val_classes=("dog",), gate=True),
        replace(QUICK, self_train="anywhere", gate=True),
    ],
    ids=["void, frozen, calibrated", "anywhere, fine-tuned"],
)
def test_an_interrupted_run_goes_on_exactly(tmp_path: Path, config: TrainConfig) -> None:
    """The unfinished last model carries its pseudo-labels, so that a resume ends in the bytes of a whole run."""
    space = near_vectors(workspace(tmp_path / "w"))
    assert not stop_after_one_epoch(space, space / "model.h5", config).finished
    with open_artifact(space / "model.h5", "model") as model:
        rows = range(len(model.array("pseudo_images")))
        maps = np.stack([decode_label_map(model.bytes_at("pseudo_labels", row), "map") for row in rows])
        record = model.params["self_training"]
        assert (record["gate"], model.params["gate"]) == (True, config.self_train == "anywhere")
        assert model.params["presence"] is False
        assert record["pixels"] == {NAMES[index]: (maps == index).sum() for index in UNSEEN}
    assert run(space, space / "model.h5", config, resume=True).finished
    run(space, tmp_path / "whole.h5", config)
    with open_artifact(tmp_path / "whole.h5", "model") as model:
        assert "pseudo_labels" not in model
    assert (space / "model.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("moment", ["training the model that makes", "pseudo-labels"])
def test_an_interrupt_before_the_last_model(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    """Ctrl-C during the first model or while it makes pseudo-labels writes no model; a resume goes on exactly."""

    class Interrupt:
        def track(self, items: Any, description: str, total: int) -> Any:  # noqa: ARG002
            for item in items:
                if description.startswith(moment):
                    signal.raise_signal(signal.SIGINT)
                yield item

        def status(self, text: str) -> None:
            pass

    config = replace(VOID_ONLY, rounds=2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "a.h5", config, progress=Interrupt())
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted before the self-trained model; go on with --resume" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [".a.h5.unfinished"]
    run(inputs, tmp_path / "a.h5", config, resume=True)
    run(inputs, tmp_path / "b.h5", config)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
