"""ONNX gives the scores that torch gives."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import zsseg
from torch import nn

from zsseg import load
from zsseg.config import ModelName
from zsseg.export import export_onnx
from zsseg.inference import as_rgb, load_model
from zsseg.models import FCN, build
from zsseg.models.wide import WideConv2d

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


@pytest.mark.parametrize("name", ["fcn8s", "aspp", "hourglass"])
def test_other_networks(name: ModelName, trained: Path, tmp_path: Path) -> None:
    """Networks other than the default can be expressed; the export itself compares two sizes with torch."""
    given = load_model(trained / "model.h5", device="cpu", precision="float32")
    assert given.vectors is not None
    dim = given.vectors.shape[1]
    torch.manual_seed(0)
    net = build(name, dim).eval()
    if isinstance(net, FCN):  # a thousandth of its weights will do
        net.fc6, net.fc7, net.score = WideConv2d(512, 16, 7, padding=3), WideConv2d(16, 16, 1), nn.Conv2d(16, dim, 1)
    for parameter in net.parameters():
        if not parameter.any():  # last layers start from 0, where all scores would be alike
            torch.nn.init.normal_(parameter, std=0.02)
    summary = export_onnx(replace(given, net=net, calibration=None), tmp_path / "model.onnx")
    assert summary.error < 1e-3


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
