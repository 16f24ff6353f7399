"""Does the default learning rate train every model, loss and dimension? Draws the falling curves.

    python benchmarks/stability.py --root ../shared/data/voc-animals/VOC2012 --vectors FILE --vocabulary FILE \
        --vgg vgg16-hed.safetensors --out docs/images/stability.png

One run for each of lite0, fcn32s, fcn16s, fcn8s times mse at 20, 50, 100 dims and softmax: the same photos in the same
order, default settings but for a smaller crop and batch and fewer steps, so that it takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from zsseg.artifacts import open_artifact
from zsseg.config import EmbedConfig, FetchConfig, SplitConfig, TrainConfig
from zsseg.embed import embed_labels
from zsseg.fetch import fetch_data
from zsseg.split import make_split
from zsseg.train import train

MODELS = ("lite0", "fcn32s", "fcn16s", "fcn8s")
DIMS = (20, 50, 100)


def main() -> None:
    """Run the grid and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--vgg", default="none", help="VGG-16 weight file")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    curves: dict[tuple[str, str], np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, split = work / "data.h5", work / "split.h5"
        fetch_data(data, FetchConfig("folder", limit=options.images), root=options.root)
        make_split(data, split, SplitConfig(unseen=("cow", "sheep")))
        with open_artifact(data, "data") as images:
            names = images.strings("names")
        for dim in DIMS:
            vocabulary = () if options.vocabulary is None else (options.vocabulary,)
            config = EmbedConfig(vectors=(options.vectors,), vocabulary=vocabulary, dim=dim)
            embed_labels(names, work / f"labels{dim}.h5", config)
        for model in options.models.split(","):
            for loss, dim in [*(("mse", dim) for dim in DIMS), ("softmax", None)]:
                config = TrainConfig(
                    model=model, frozen=False, epochs=options.epochs, crop=options.crop, batch=4,
                    calibration="none", gate=False, anchors="none",
                )  # fmt: skip
                config = dataclasses.replace(config, loss=loss, weights=None if model == "lite0" else options.vgg)
                label = f"{loss} {dim}" if dim else loss
                curves[model, label] = _losses(work, data, split, dim, config)
                _report(model, label, curves[model, label])
                _draw(curves, options.out)  # each time, for a look at what is there so far


def _losses(work: Path, data: Path, split: Path, dim: int | None, config: TrainConfig) -> np.ndarray:
    start = time.perf_counter()
    labels = work / f"labels{dim}.h5" if dim else None
    train(data, split, labels, work / "model.h5", config, force=True)
    with open_artifact(work / "model.h5", "model") as model:
        curve = model.array("loss")
    print(f"{(time.perf_counter() - start) / len(curve):.2f} s a step", end="  ")
    return curve


def _report(model: str, label: str, curve: np.ndarray) -> None:
    parts = np.array_split(curve, 5)
    print(f"{model:8} {label:8} mean loss of each fifth:", " ".join(f"{part.mean():.3f}" for part in parts), flush=True)


def _draw(curves: dict[tuple[str, str], np.ndarray], out: Path) -> None:
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in curves))
    figure = Figure(figsize=(3.2 * len(models), 3.2), layout="constrained")
    for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for (name, label), curve in curves.items():
            if name == model:
                window = max(1, len(curve) // 10)
                smooth = np.convolve(curve / curve[:3].mean(), np.ones(window) / window, mode="valid")
                axis.plot(np.arange(len(smooth)) + window, smooth, label=label)
        axis.set(title=model, xlabel="step", ylim=(0, 1.3))
    figure.axes[0].set_ylabel("loss / loss at the start")
    figure.axes[0].legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
