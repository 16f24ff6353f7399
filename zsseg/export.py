"""Write a model as ONNX: image in, calibrated class scores on the coarse grid out.

    input    image   float32 (1, H, W, 3): upright RGB, 0 to 255; H and W are multiples of `pad_to`
    output   scores  float32 (1, C, h, w): h and w are H and W divided by the stride

A photo of another size is padded at the bottom and right with the `mean` colour. The label map is the argmax of the
scores, upsampled bilinearly with aligned cell centres and cut to the photo's size, as `inference` does it. The file's
metadata hold class names, ids of seen and unseen classes, stride, pad_to, mean, calibration, and the digest of
model.h5. The network runs in float32. What was written is run by onnxruntime on two sizes and compared with torch.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zsseg.artifacts import check_output, write_file
from zsseg.calibration import none
from zsseg.dataset import normalise
from zsseg.errors import SettingError
from zsseg.inference import Model, calibrate, finer, joint_scores
from zsseg.winners import ScoreGrid

log = logging.getLogger(__name__)

SIZES = ((96, 128), (160, 64))  # pixels: of the traced image, and of another to check with
TOLERANCE = 1e-3  # by which scores may differ


@dataclass(frozen=True)
class ExportSummary:
    """What `export` wrote.

    Attributes:
        path: The ONNX file.
        names: Class names in the order of the scores.
        stride: Pixels between neighbouring cells of the scores.
        calibration: The method that is part of it.
        error: By how much its scores differ from torch's at most, as far as that was tried.
    """

    path: Path
    names: tuple[str, ...]
    stride: int
    calibration: str
    error: float


def as_json(summary: ExportSummary) -> dict[str, Any]:
    """Return the summary as JSON values."""
    return {
        "path": str(summary.path),
        "names": list(summary.names),
        "stride": summary.stride,
        "calibration": summary.calibration,
        "error": summary.error,
    }


class _Scores(nn.Module):
    """A whole model as a module: float32 (1, H, W, 3) -> float32 (1, C, h, w)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = model.net.float()
        self._model = model

    def forward(self, image: Tensor) -> Tensor:
        net, model = self.net, self._model
        features = net.features(normalise(image, net.mean, net.std))
        outputs = net.head(features)[0]
        cells, prior = net.gate_cells(features), net.prior(features)
        squares = outputs.square().sum(dim=0) if model.vectors is not None and cells is None else None
        scores = joint_scores(model, outputs, finer(cells, net), finer(prior, net))
        grid = ScoreGrid(scores, net.stride, (0, 0), (0, 0), squares)
        return calibrate(grid, model.calibration or none(len(model.names))).scores[None]


def export_onnx(model: Model, path: Path, *, force: bool = False) -> ExportSummary:
    """Write a model as ONNX; the module docstring says what goes in and out.

    Args:
        model: On the CPU.
        path: The file.
        force: Whether an existing file may be replaced.

    Raises:
        SettingError: The packages onnx and onnxruntime are not installed, or the model cannot be expressed.
        ArtifactError: The output is refused or cannot be written.
    """
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as missing:
        raise SettingError(
            "ONNX: the packages onnx and onnxruntime are missing; run `pip install zsseg[onnx]`"
        ) from missing
    check_output(path, force=force)
    if model.calibration is not None and model.calibration.top2:
        log.info("%s: that only a pixel's two best classes compete is not part of the scores", model.calibration.method)
    scores = _Scores(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "model.onnx"
        _trace(scores, draft)
        written = onnx.load(draft)
    for key, value in _metadata(model).items():
        written.metadata_props.add(key=key, value=value)
    content = written.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    error = max(_difference(scores, session, size) for size in SIZES)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
    method = "none" if model.calibration is None else model.calibration.method
    return ExportSummary(path, model.names, model.net.stride, method, error)


@torch.no_grad()
def _trace(scores: nn.Module, path: Path) -> None:
    """Trace the network; where sizes are multiples of `pad_to`, what padding it does inside does not depend on them.

    Raises:
        SettingError: It does something that ONNX has no word for.
    """
    try:
        _write(scores, path)
    except torch.onnx.errors.OnnxExporterError as refused:
        raise SettingError(f"ONNX: cannot express this network ({str(refused).splitlines()[0]})") from refused


def _write(scores: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that become constants, and of torch's newer exporter
        torch.onnx.export(
            scores,
            (torch.zeros((1, *SIZES[0], 3)),),
            str(path),
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {1: "height", 2: "width"}, "scores": {2: "rows", 3: "columns"}},
            dynamo=False,
        )


@torch.no_grad()
def _difference(scores: nn.Module, session: Any, size: tuple[int, int]) -> float:
    """Return by how much ONNX and torch differ on an image of noise.

    Raises:
        SettingError: By more than `TOLERANCE`, or ONNX does not run at this size.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.float32)
    expected = scores(torch.from_numpy(image)).numpy()
    try:
        got = session.run(None, {"image": image})[0]
    except Exception as refused:  # onnxruntime has kinds of its own
        raise SettingError(f"ONNX: this network runs at the traced size alone ({type(refused).__name__})") from refused
    error = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
    if not error <= TOLERANCE:
        raise SettingError(
            f"ONNX: the scores at {size[0]} × {size[1]} differ by {error:.2g} from torch's, expected 0.001"
        )
    return error


def _metadata(model: Model) -> dict[str, str]:
    method = "none" if model.calibration is None else model.calibration.method
    return {
        "names": json.dumps(list(model.names)),
        "seen": json.dumps(list(model.seen)),
        "unseen": json.dumps(list(model.unseen)),
        "stride": str(model.net.stride),
        "pad_to": str(model.net.pad_to),
        "mean": json.dumps([round(255 * each, 4) for each in model.net.mean]),
        "calibration": method,
        "model": model.digest,
    }
