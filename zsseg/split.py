"""make-split: choose the unseen classes, and the images that training may use.

Policies, for a training image that holds a pixel of an unseen class:
    ignore: it stays, its unseen pixels become void (SPNet's protocol; the network sees them, but not their label);
    drop: it leaves training (ZS3Net's protocol).
Validation images are the data's own, unchanged.

The label maps of unseen classes are read here for two ends only: to apply the policy and to count what it hides.
Nothing but class ids and image indices goes into the artifact; training takes its labels through
`dataset.hide_unseen` whatever the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsseg import artifacts
from zsseg.artifacts import Artifact
from zsseg.classes import ALIASES, UNSEEN_PRESETS, VOID
from zsseg.config import SplitConfig
from zsseg.errors import DataError, SettingError, suggestion
from zsseg.images import decode_label_map
from zsseg.progress import SILENT, Progress

NEVER_DRAWN = ("background", "void")  # --random draws things that can be photographed

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class SplitSummary:
    """What `make_split` wrote. The three counts have one entry a class, in index order.

    Attributes:
        path: The artifact.
        names: Class names in index order.
        seen: Names of the seen classes.
        unseen: Names of the unseen classes.
        policy: "ignore" or "drop".
        images: Training images that show the class to training; 0 for an unseen class.
        pixels: Pixels of the class that training sees; 0 for an unseen class.
        hidden: Pixels of the class in the data's training images that training does not see: made void or dropped.
        train_before: Training images in the data.
        train_after: Training images left after the policy.
        train_empty: Those of them without a single seen, non-void pixel; they stay, and teach nothing.
        val: Validation images.
    """

    path: Path
    names: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    policy: str
    images: tuple[int, ...]
    pixels: tuple[int, ...]
    hidden: tuple[int, ...]
    train_before: int
    train_after: int
    train_empty: int
    val: int


@dataclass
class _Counts:
    """Running totals over the training images, int64 (3, C): images, pixels and hidden pixels of each class."""

    totals: Int64
    kept: list[int] = field(default_factory=list)
    empty: int = 0


def make_split(
    data: Path, out: Path, config: SplitConfig, *, force: bool = False, progress: Progress = SILENT
) -> SplitSummary:
    """Write the `split` artifact: seen and unseen class ids, training and validation image indices.

    Args:
        data: The `data` artifact.
        out: The artifact to write.
        config: Which classes are unseen, and what becomes of images that hold them.
        force: Whether an existing artifact may be replaced.
        progress: Told of each label map read.

    Raises:
        SettingError: A class is unknown, settings contradict each other, or nothing would be left to train on.
        DataError: A label map cannot be used.
        ArtifactError: The data cannot be read, or the output is refused or cannot be written.
    """
    artifacts.check_output(out, force=force)
    with artifacts.open_artifact(data, "data") as source:
        names, train, val = source.strings("names"), source.array("train"), source.array("val")
        unseen = choose_unseen(names, config)
        counts = _count(source, train, unseen, config, progress)
        inputs = {"data": source.digest}
    images, pixels, hidden = (tuple(total.tolist()) for total in counts.totals)
    if not any(pixels):
        raise SettingError(_nothing_left(data, names, unseen, config, train.size))
    seen = [index for index in range(len(names)) if index not in unseen]
    params = {
        "unseen": [names[index] for index in unseen], "preset": config.preset, "random": config.random,
        "seed": config.seed, "policy": config.policy,
    }  # fmt: skip
    with artifacts.create(out, "split", params=params, inputs=inputs, force=force) as writer:
        fields = {"names": names, "seen": seen, "unseen": unseen, "train": sorted(counts.kept), "val": np.sort(val)}
        for name, values in fields.items():
            writer.put(name, values)
    return SplitSummary(
        out, tuple(names), tuple(names[index] for index in seen), tuple(names[index] for index in unseen),
        config.policy, images, pixels, hidden,
        int(train.size), len(counts.kept), counts.empty, int(val.size),
    )  # fmt: skip


def choose_unseen(names: Sequence[str], config: SplitConfig) -> list[int]:
    """Return the ids of the unseen classes, ascending.

    Args:
        names: Class names in index order.
        config: At most one of `unseen`, `preset` and `random` is set; with none every class is seen.

    Raises:
        SettingError: More than one is set, a class or preset is unknown, or no class would be seen.
    """
    given = [
        option
        for option, value in (
            ("--unseen", config.unseen or None),
            ("--preset", config.preset),
            ("--random", config.random),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise SettingError(f"{' and '.join(given)}: both choose the unseen classes, expected one; leave the other out")
    if config.preset is not None:
        unseen = _from_preset(names, config.preset)
    elif config.random is not None:
        unseen = _at_random(names, config.random, config.seed)
    else:
        unseen = {_id_of(name, names) for name in config.unseen}
    if len(unseen) == len(names):
        raise SettingError(f"all {len(names)} classes are unseen, expected at least one to train on; name fewer")
    return sorted(unseen)


def _from_preset(names: Sequence[str], preset: str) -> set[int]:
    if preset not in UNSEEN_PRESETS:
        raise SettingError(
            f"--preset {preset}: unknown{suggestion(preset, UNSEEN_PRESETS)}; "
            f"expected one of {', '.join(UNSEEN_PRESETS)}"
        )
    found = {name: _same_class(name, names) for name in UNSEEN_PRESETS[preset]}
    missing = [name for name, index in found.items() if index is None]
    if missing:
        raise SettingError(
            f"--preset {preset}: the data lacks {', '.join(missing)}; name the unseen classes with --unseen instead"
        )
    return {index for index in found.values() if index is not None}


def _at_random(names: Sequence[str], count: int, seed: int) -> set[int]:
    candidates = [index for index, name in enumerate(names) if name.lower() not in NEVER_DRAWN]
    if not 1 <= count <= len(candidates):
        raise SettingError(
            f"--random {count}: expected 1 to {len(candidates)}, the classes that can be drawn (never background)"
        )
    if seed < 0:
        raise SettingError(f"--seed {seed}: expected 0 or more")
    drawn = np.random.default_rng(seed).choice(candidates, size=count, replace=False)
    return {int(index) for index in drawn}


def _id_of(name: str, names: Sequence[str]) -> int:
    """Return the id of a class that the user typed; letter case does not matter."""
    if name in names:
        return names.index(name)
    lower = [known.lower() for known in names]
    if name.strip().lower() in lower:
        return lower.index(name.strip().lower())
    same = _same_class(name, names)
    hint = suggestion(name, lower) if same is None else f"; did you mean {names[same]}?"
    raise SettingError(f"--unseen {name}: the data has no such class{hint or '; it has ' + ', '.join(names)}")


def _same_class(name: str, names: Sequence[str]) -> int | None:
    """Return the id of the class that the data calls by this name, by an alias of it, or has as an alias; or None."""
    known = {_plain(other): index for index, other in reversed(list(enumerate(names)))}
    for spelling in (name, *ALIASES.get(name.lower(), ())):
        if _plain(spelling) in known:
            return known[_plain(spelling)]
    for index, other in enumerate(names):
        if _plain(name) in map(_plain, ALIASES.get(other.lower(), ())):
            return index
    return None


def _plain(name: str) -> str:
    """Return the name in lower case without separators, so that "Potted plant" is "pottedplant"."""
    return "".join(letter for letter in name.lower() if letter not in " _-")


def _count(
    data: Artifact, train: Iterable[int], unseen: Sequence[int], config: SplitConfig, progress: Progress
) -> _Counts:
    """Apply the policy image by image, and count what training will see and what is hidden from it."""
    names, ids = data.strings("names"), data.strings("ids")
    counts = _Counts(np.zeros((3, len(names)), dtype=np.int64))
    indices = [int(index) for index in train]
    for index in progress.track(indices, "reading label maps", len(indices)):
        pixels = _pixels_per_class(data.bytes_at("label_maps", index), ids[index], len(names))
        visible = pixels.copy()
        visible[list(unseen)] = 0  # what dataset.hide_unseen does to the label map
        if config.policy == "drop" and pixels[list(unseen)].any():
            visible[:] = 0
        else:
            counts.kept.append(index)
            counts.empty += not visible.any()
        counts.totals += np.stack([visible > 0, visible, pixels - visible])
    return counts


def _pixels_per_class(encoded: bytes, name: str, classes: int) -> Int64:
    """Return how many pixels each class has in a label map, int64 (C,); none where there is no label map."""
    if not encoded:
        return np.zeros(classes, dtype=np.int64)
    pixels = np.bincount(decode_label_map(encoded, name).ravel(), minlength=256)
    strange = np.flatnonzero(pixels[classes:VOID]) + classes
    if strange.size:
        raise DataError(
            f"{name}: label map holds {strange[0]}, expected 0 to {classes - 1} or {VOID} (void); mend the label map"
        )
    return pixels[:classes].astype(np.int64)


def _nothing_left(data: Path, names: Sequence[str], unseen: Sequence[int], config: SplitConfig, train: int) -> str:
    if not train:
        return f"{data}: has no training images, expected at least one; fetch data with a train list"
    hidden = ", ".join(names[index] for index in unseen) or "none"
    advice = "name fewer unseen classes" + (", or use --policy ignore" if config.policy == "drop" else "")
    return f"no training pixel is left of {train:,} images (unseen: {hidden}; policy {config.policy}); {advice}"
