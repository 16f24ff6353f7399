"""zsseg: zero-shot semantic segmentation from the shell and from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zsseg.inference import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, *, device: str = "auto") -> Model:
    """Load a trained model.

    Args:
        path: A `model.h5` that `zsseg train` wrote.
        device: "auto", "cpu" or "cuda".

    Returns:
        A model whose `predict` maps an image to a label map, as `zsseg predict` does.

    Raises:
        ZssegError: The file is missing, damaged, or of another kind.
    """
    from zsseg.inference import load_model  # torch is loaded only when a model is

    return load_model(Path(path), device=device)
