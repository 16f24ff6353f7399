"""zsseg: zero-shot semantic segmentation from the shell and from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsseg.api import Model, Result
    from zsseg.config import Device, Precision

__version__ = "0.1.0"
__all__ = ["Model", "Result", "__version__", "load"]


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    vectors: Sequence[str | Path] = (),
    labels: str | Path | None = None,
) -> Model:
    """Load a trained model.

    Args:
        path: A `model.h5` that `zsseg train` wrote.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "float32" or "bfloat16".
        vectors: Files of word vectors that the model was trained with, to predict words; found by name where they are
            built in, downloaded, or beside the model.
        labels: The labels artifact of a model of an earlier zsseg, which does not record its vectors; to predict words.

    Returns:
        A model whose `predict` maps an image to a label map, as `zsseg predict` does.

    Raises:
        ZssegError: The file is missing, damaged, or of another kind.
    """
    from zsseg import api  # torch is loaded only when a model is

    return api.load(path, device=device, precision=precision, vectors=vectors, labels=labels)


def __getattr__(name: str) -> Any:
    """Load `Model` and `Result` when they are first asked for."""
    if name in ("Model", "Result"):
        from zsseg import api

        return getattr(api, name)
    raise AttributeError(f"module 'zsseg' has no attribute {name!r}")
