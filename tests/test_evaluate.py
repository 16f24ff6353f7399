"""Protocols of `eval`: grid, background and means, each against a count of its own; and the curve in the artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import FROZEN, run, workspace
from tiny import NAMES, zsseg

from zsseg.artifacts import Artifact, open_artifact
from zsseg.config import EvalConfig
from zsseg.evaluate import PROTOCOLS, evaluate, on_grid
from zsseg.inference import load_model
from zsseg.metrics import iou


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a trained model beside its data, to be read only."""
    folder = workspace(tmp_path_factory.mktemp("evaluate"))
    run(folder, folder / "model.h5", FROZEN)
    return folder


def evaluated(space: Path, out: Path, *options: object) -> dict[str, Any]:
    """Run eval and return its JSON."""
    words = ("--workspace", space, "--out", out, "--json", "-", "--force", "--device", "cpu", *options)
    found: dict[str, Any] = json.loads(zsseg("eval", *words).stdout)
    return found


def truths(data: Artifact) -> list[Any]:
    """Return the label maps of the validation photos."""
    import io

    return [np.array(Image.open(io.BytesIO(data.bytes_at("label_maps", int(index))))) for index in data.array("val")]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (312, 416)), ((500, 333), (468, 312)), ((64, 64), (312, 312)), ((1, 3), (312, 936))],
)
def test_zs3_grid(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The short side becomes 312, the long one is cut to a whole number of pixels; labels are those of the nearest."""
    truth = np.random.default_rng(0).integers(0, 5, size).astype(np.uint8)
    image, labels = on_grid(np.zeros((*size, 3), np.uint8), truth, "zs3")
    assert image.shape == (*expected, 3)
    assert labels.shape == expected
    assert set(np.unique(labels)) <= set(np.unique(truth))


def test_spnet_and_native_grids() -> None:
    """The spnet grid is 513 × 513 whatever the shape, the native one is the photo's own."""
    truth, photo = np.zeros((20, 50), np.uint8), np.zeros((20, 50, 3), np.uint8)
    assert [each.shape for each in on_grid(photo, truth, "spnet")] == [(513, 513, 3), (513, 513)]
    assert [each.shape for each in on_grid(photo, truth, "native")] == [(20, 50, 3), (20, 50)]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize("options", [(), ("--seen-bias", "0.4")])
def test_truth_of_each_protocol(space: Path, tmp_path: Path, protocol: Any, options: tuple[str, ...]) -> None:
    """Rows of the confusion matrix are the pixels on the protocol's grid; spnet knows no background at all."""
    evaluated(space, tmp_path / "s.h5", "--protocol", protocol, "--max-side", "32", *options)
    with open_artifact(space / "data.h5", "data") as data, open_artifact(tmp_path / "s.h5", "scores") as scores:
        maps = [on_grid(np.zeros((*each.shape, 3), np.uint8), each, protocol)[1] for each in truths(data)]
        expected = np.bincount(np.concatenate([each.ravel() for each in maps]), minlength=256)[: len(NAMES)]
        if protocol == "spnet":
            expected[0] = 0
            assert not scores.array("confusion")[:, 0].any()
            assert not scores.array("confusion_vanilla")[:, 0].any()
        for matrix in ("confusion", "confusion_vanilla"):
            np.testing.assert_array_equal(scores.array(matrix).sum(axis=1), expected)
        assert scores.params["protocol"] == {"name": protocol, **PROTOCOLS[protocol]}
        np.testing.assert_array_equal(scores.array("gap_counts")[[1, 3]].sum(axis=(1, 2)), [expected.sum()] * 2)


def test_means_of_zs3(space: Path, tmp_path: Path) -> None:
    """zs3 counts a class that is neither shown nor predicted as 0, native leaves it out, and both say so."""
    found = evaluated(space, tmp_path / "s.h5", "--protocol", "zs3", "--partition", "train")
    with open_artifact(tmp_path / "s.h5", "scores") as scores:
        values = iou(scores.array("confusion"))
    assert found["generalized"]["miou"] == pytest.approx(float(np.nan_to_num(values).mean()))
    assert found["protocol"]["means"].startswith("over all classes, 0")
    assert evaluated(space, tmp_path / "s.h5")["protocol"]["means"] == "over classes with truth or prediction"


def test_a_protocol_without_background(tmp_path: Path) -> None:
    """Without a class named background, zs3 and spnet say what is missing."""
    from tiny import write_folder

    from zsseg.config import FetchConfig, SplitConfig
    from zsseg.fetch import fetch_data
    from zsseg.split import make_split

    names = ("wall", *NAMES[1:])
    write_folder(tmp_path / "set", names=names)
    fetch_data(tmp_path / "data.h5", FetchConfig("folder"), root=tmp_path / "set")
    make_split(tmp_path / "data.h5", tmp_path / "split.h5", SplitConfig(unseen=("cow",)))
    from test_train import write_labels

    write_labels(tmp_path, names=names)
    run(tmp_path, tmp_path / "model.h5", FROZEN)
    for protocol in ("zs3", "spnet"):
        result = zsseg("eval", "--workspace", tmp_path, "--protocol", protocol, expect=1)
        assert "'background'" in result.stderr
        assert "--protocol native" in result.stderr
    zsseg("eval", "--workspace", tmp_path, "--protocol", "native")


def test_curve_of_the_artifact_is_that_of_eval_with_a_bias(space: Path, tmp_path: Path) -> None:
    """The oracle's point is what `eval --seen-bias` gives with it; a picture of the curve is drawn."""
    oracle = evaluated(space, tmp_path / "scores.h5")["curve"]["oracle (chosen on the test photos)"]
    found = evaluated(space, tmp_path / "biased.h5", "--seen-bias", repr(oracle["seen_bias"]))
    for key in ("seen_miou", "unseen_miou", "harmonic_miou"):
        assert found["generalized"][key] == pytest.approx(oracle[key], abs=2e-3)  # gaps on the edge, by rounding
    assert found["generalized"]["harmonic_miou"] > 0
    shown = zsseg("visualize", tmp_path / "scores.h5", "--out", tmp_path / "pictures").stdout
    assert "scores_curve.png" in shown
    assert (
        "oracle (chosen on the test photos)" in zsseg("eval", "--workspace", space, "--out", tmp_path / "t.h5").stdout
    )


def test_photos_scored_side_by_side_give_what_they_give_one_by_one(space: Path, tmp_path: Path) -> None:
    """Threads change no count."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            evaluate(space / "model.h5", space / "data.h5", tmp_path / f"{threads}.h5", EvalConfig(device="cpu"))
    finally:
        torch.set_num_threads(before)
    with open_artifact(tmp_path / "1.h5", "scores") as one, open_artifact(tmp_path / "2.h5", "scores") as two:
        for name in ("confusion", "confusion_vanilla", "images_per_class", "gap_counts"):
            np.testing.assert_array_equal(one.array(name), two.array(name))


def test_without_unseen_classes_there_is_no_curve(tmp_path: Path) -> None:
    """A model of seen classes only is scored as before, without curve and picture of it."""
    folder = workspace(tmp_path, unseen=())
    run(folder, folder / "model.h5", FROZEN)
    found = evaluated(folder, folder / "scores.h5")
    assert found["curve"] is None
    assert found["generalized"]["iou"] == found["vanilla"]["iou"]
    assert "curve" not in zsseg("visualize", folder / "scores.h5", "--out", folder / "pictures").stdout
    with open_artifact(folder / "data.h5", "data") as data, open_artifact(folder / "scores.h5", "scores") as scores:
        assert "gap_counts" not in scores
        model = load_model(folder / "model.h5", device="cpu")
        photo = int(data.array("val")[0])
        assert model.predict(np.array(Image.open(folder / "set" / "images" / "five.png"))).areas.sum() == 64 * 64
        assert data.strings("ids")[photo] == "five"
