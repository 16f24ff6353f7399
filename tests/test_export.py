"""ONNX gives the scores that torch gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import zsseg

from zsseg import load
from zsseg.inference import as_rgb, load_model

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_onnx_equals_torch(size: tuple[int, int], trained: Path, tmp_path: Path) -> None:
    """On photos of several sizes the scores of onnxruntime are those of `predict`, calibration included."""
    out = tmp_path / "sub" / "model.onnx"
    report = json.loads(zsseg("export", trained / "model.h5", out, "--json", "-").stdout)
    assert report["error"] < 1e-3
    tile = as_rgb(trained / "images" / "five.png")
    photo = np.tile(tile, (2, 3, 1))[: size[0], : size[1]]
    model = load(trained / "model.h5", device="cpu", precision="float32")
    session = onnxruntime.InferenceSession(out.read_bytes())
    [scores] = session.run(None, {"image": photo[None].astype(np.float32)})
    np.testing.assert_allclose(scores[0], model.predict(photo).scores, atol=1e-3)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["names"]) == list(model.names)
    assert json.loads(about["unseen"]) == list(model.unseen)
    assert about["model"] == load_model(trained / "model.h5").digest


def test_an_existing_file_is_kept(trained: Path, tmp_path: Path) -> None:
    """Without --force nothing is replaced."""
    (tmp_path / "model.onnx").write_text("mine")
    result = zsseg("export", trained / "model.h5", tmp_path / "model.onnx", expect=1)
    assert "--force" in result.stderr
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_without_the_package(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = zsseg("export", trained / "model.h5", tmp_path / "model.onnx", expect=1)
    assert "pip install zsseg[onnx]" in " ".join(result.stderr.split())
