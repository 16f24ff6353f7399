"""What the values of an artifact must be besides their dtypes and shapes: only a crafted file breaks these rules.

Whoever reads an artifact may rely on them: indices point at something, names are few enough for label maps of 8 bits,
counts count, vectors are numbers, and settings are of the kind that their readers take them for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.classes import VOID
from zsseg.schema import Kind

# Indices, strictly ascending, and the field whose rows they count; None: of another artifact.
INDICES: dict[Kind, dict[str, str | None]] = {
    "data": {"train": "ids", "val": "ids"},
    "split": {"seen": "names", "unseen": "names"},
    "model": {"seen": "names", "unseen": "names", "pseudo_images": None},
    "scores": {"seen": "names", "unseen": "names"},
    "features": {"images": None},
}
LEAST: dict[Kind, dict[str, int]] = {
    "data": {"sizes": 1},
    "split": {"train": 0, "val": 0},
    "scores": {"confusion": 0, "confusion_vanilla": 0, "images_per_class": 0, "gap_counts": 0},
    "predictions": {"areas": 0},
    "features": {"shapes": 1},
}
FINITE: dict[Kind, tuple[str, ...]] = {
    "labels": ("vectors", "raw", "mean", "components"),
    "model": ("vectors", "recipe_mean", "recipe_components", "calibration_scale", "calibration_bias"),
    "scores": ("gap_edges",),
}
_NUMBER = (int, float)
_TEXT_OR_NONE = (str, NoneType)
SETTINGS: dict[Kind, dict[str, tuple[type, ...]]] = {
    "data": {"source": (str,)},
    "labels": {"normalize": (str,), "sources": (list,), "vectors": (str, list)},
    "split": {"policy": (str,)},
    "model": {
        "model": (str,), "backbone": _TEXT_OR_NONE, "dense_features": _TEXT_OR_NONE, "stacks": (int, NoneType),
        "gate": (bool, NoneType), "anchors": (str,), "out_dim": (int,), "loss": (str,), "calibration": (str,),
        "calibration_choice": (dict,), "fresh": (list,), "pretrained": (dict,), "recipe": (dict,),
        "step": (int,), "total_steps": (int,), "log_scale": _NUMBER, "lr": _NUMBER, "crop": (int,),
        "presence_sharpness": _NUMBER,
        "val_classes": (list,), "stage": (str,), "self_training": (dict,), "seed": (int,),
    },
    "scores": {
        "calibrated_by": (dict,), "model": (dict,), "protocol": (dict,), "min_images": (int,), "partition": (str,),
    },
    "predictions": {"calibrated_by": (dict,)},
}  # fmt: skip
# What a network is built from: more than anybody trains, but no more than memory holds.
RANGES: dict[Kind, dict[str, tuple[float, float]]] = {
    "model": {
        "out_dim": (1, 1 << 14), "stacks": (1, 16), "step": (0, 1 << 40), "total_steps": (1, 1 << 40),
        "log_scale": (-100, 100), "lr": (0, 1e6), "crop": (1, 1 << 16), "seed": (0, 1 << 62),
        "presence_sharpness": (1e-3, 1e3),
    },
    "scores": {"min_images": (0, 1 << 62)},
}  # fmt: skip


def fault(
    kind: Kind,
    names: Sequence[str],
    rows: Mapping[str, int],
    read: Callable[[str], NDArray[Any]],
    settings: Mapping[str, Any],
) -> str | None:
    """Return what is wrong with an artifact's values, in a few words; None where nothing is.

    Args:
        kind: Which artifact.
        names: Its class names.
        rows: How many rows each field has that is there.
        read: Returns a field by name.
        settings: Its params.
    """
    if not 1 <= len(names) <= VOID or (kind != "predictions" and len(set(names)) < len(names)):
        return f"it has {len(names)} class names, expected 1 to {VOID}, each once"
    for name, target in INDICES.get(kind, {}).items():
        if name in rows and not _is_index(read(name), None if target is None else rows[target]):
            return f"field {name!r} holds what is no index, or not in ascending order"
    for name, lowest in LEAST.get(kind, {}).items():
        if name in rows and read(name).min(initial=lowest) < lowest:
            return f"field {name!r} holds numbers below {lowest}"
    for name in FINITE.get(kind, ()):
        if name in rows and not np.isfinite(read(name)).all():
            return f"field {name!r} holds what is no number"
    for name, types in SETTINGS.get(kind, {}).items():
        value = settings.get(name)
        if name in settings and not (type(value) in types or (isinstance(value, dict) and dict in types)):
            return f"its setting {name!r} is of another type"
    for name, (least, most) in RANGES.get(kind, {}).items():
        if settings.get(name) is not None and not least <= settings[name] <= most:
            return f"its setting {name!r} is out of all range"
    return _misfit(kind, rows, read, settings)


def _misfit(
    kind: Kind, rows: Mapping[str, int], read: Callable[[str], NDArray[Any]], settings: Mapping[str, Any]
) -> str | None:
    """Return which parts of an artifact do not fit each other, though each is fine; see `fault`."""
    if kind == "model" and "out_dim" in settings:
        outputs = read("vectors").shape[1] if "vectors" in rows else rows["seen"]
        if outputs != settings["out_dim"]:
            return f"its network has {settings['out_dim']} outputs, its classes need {outputs}"
    edges = rows.get("gap_edges", 0)
    if "gap_counts" in rows and (not edges or read("gap_counts").shape[2] != edges + 1):
        return "fields 'gap_counts' and 'gap_edges' do not fit each other"
    return None


def _is_index(values: NDArray[Any], most: int | None) -> bool:
    if not len(values):
        return True
    inside = values[0] >= 0 and (most is None or values[-1] < most)
    return bool(inside and (values[1:] > values[:-1]).all())  # differences could overflow
