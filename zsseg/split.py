"""make-split: choose the unseen classes, and the images that training may use.

Policies, for a training image that holds a pixel of an unseen class:
    ignore: it stays, its unseen pixels become void (SPNet's protocol; the network sees them, but not their label);
    drop: it leaves training (ZS3Net's protocol).
Validation images are the data's own, unchanged.

Unseen classes are named, are those of a paper (a preset, also where the data spells them another way), or are drawn
by seed: at random, or stratified, that is evenly over the supercategories of WordNet (`wordnet.groups`).

The label maps of unseen classes are read here for two ends only: to apply the policy and to count what it hides.
Nothing but class ids and image indices goes into the artifact; training takes its labels through
`dataset.hide_unseen` whatever the policy. The audit (`difficulty`) goes to the user alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg import artifacts, difficulty, wordnet
from zsseg.artifacts import Artifact
from zsseg.classes import ALIASES, UNSEEN_PRESETS, VOID
from zsseg.config import SplitConfig
from zsseg.difficulty import Prospect
from zsseg.errors import DataError, SettingError, suggestion
from zsseg.images import decode_label_map
from zsseg.progress import SILENT, Progress

NEVER_DRAWN = ("background", "void")  # what is drawn are things that can be photographed

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class SplitSummary:
    """What `make_split` wrote. The four counts have one entry a class, in index order.

    Attributes:
        path: The artifact.
        names: Class names in index order.
        seen: Names of the seen classes.
        unseen: Names of the unseen classes.
        policy: "ignore" or "drop".
        images: Training images that show the class to training; 0 for an unseen class.
        pixels: Pixels of the class that training sees; 0 for an unseen class.
        hidden: Pixels of the class in the data's training images that training does not see: made void or dropped.
        hidden_images: Training images that hold such pixels.
        train_before: Training images in the data.
        train_after: Training images left after the policy.
        train_empty: Those of them without a single seen, non-void pixel; they stay, and teach nothing.
        val: Validation images.
        audit: What can be expected of each unseen class; empty where it was not asked for.
    """

    path: Path
    names: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    policy: str
    images: tuple[int, ...]
    pixels: tuple[int, ...]
    hidden: tuple[int, ...]
    hidden_images: tuple[int, ...]
    train_before: int
    train_after: int
    train_empty: int
    val: int
    audit: tuple[Prospect, ...] = ()


@dataclass
class _Counts:
    """Running totals over the training images, int64 (4, C).

    Of each class: images, pixels, hidden pixels, and images with hidden pixels.
    """

    totals: Int64
    kept: list[int] = field(default_factory=list)
    empty: int = 0


def make_split(
    data: Path,
    out: Path,
    config: SplitConfig,
    *,
    audit_with: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> SplitSummary:
    """Write the `split` artifact: seen and unseen class ids, training and validation image indices.

    Args:
        data: The `data` artifact.
        out: The artifact to write.
        config: Which classes are unseen, and what becomes of images that hold them.
        audit_with: A `labels` artifact of the same classes, to audit the split with; None: no audit.
        force: Whether an existing artifact may be replaced.
        progress: Told of each label map read.

    Raises:
        SettingError: A class is unknown, settings contradict each other, nothing would be left to train on, or
            nothing is there to audit.
        DataError: A label map cannot be used.
        ArtifactError: The data or labels cannot be read or do not fit, or the output is refused or cannot be written.
    """
    artifacts.check_output(out, force=force)
    with artifacts.open_artifact(data, "data") as source:
        names, train, val = source.strings("names"), source.array("train"), source.array("val")
        unseen = choose_unseen(names, config)
        if audit_with is not None and not unseen:
            raise SettingError("--audit: no class is unseen, nothing to audit; choose some, for example with --unseen")
        vectors = None if audit_with is None else _class_vectors(audit_with, data, names)
        counts = _count(source, train, unseen, config, progress)
        inputs = {"data": source.digest}
    images, pixels, hidden, hidden_images = (tuple(total.tolist()) for total in counts.totals)
    if not any(pixels):
        raise SettingError(_nothing_left(data, names, unseen, config, train.size))
    audit: tuple[Prospect, ...] = ()
    if vectors is not None:
        audit = difficulty.prospects(
            names, unseen, vectors, images=images, hidden_images=hidden_images, hidden_pixels=hidden,
            folder=_folder(config),
        )  # fmt: skip
    seen = [index for index in range(len(names)) if index not in unseen]
    with artifacts.create(out, "split", params=_params(names, unseen, config), inputs=inputs, force=force) as writer:
        fields = {"names": names, "seen": seen, "unseen": unseen, "train": sorted(counts.kept), "val": np.sort(val)}
        for name, values in fields.items():
            writer.put(name, values)
    return SplitSummary(
        out, tuple(names), tuple(names[index] for index in seen), tuple(names[index] for index in unseen),
        config.policy, images, pixels, hidden, hidden_images,
        int(train.size), len(counts.kept), counts.empty, int(val.size), audit,
    )  # fmt: skip


def as_json(summary: SplitSummary) -> dict[str, Any]:
    """Return the summary as JSON values, the audit among them where there is one."""
    counts = zip(summary.images, summary.pixels, summary.hidden_images, summary.hidden, strict=True)
    keys = ("train_images", "train_pixels", "hidden_images", "hidden_pixels")
    return {
        "seen": list(summary.seen),
        "unseen": list(summary.unseen),
        "policy": summary.policy,
        "classes": {name: dict(zip(keys, each, strict=True)) for name, each in zip(summary.names, counts, strict=True)},
        "train_before": summary.train_before,
        "train_after": summary.train_after,
        "train_empty": summary.train_empty,
        "val": summary.val,
        "audit": difficulty.as_json(summary.audit),
        "verdict_bounds": {"near": difficulty.NEAR, "far": difficulty.FAR},
    }


def choose_unseen(names: Sequence[str], config: SplitConfig) -> list[int]:
    """Return the ids of the unseen classes, ascending.

    Args:
        names: Class names in index order.
        config: At most one of `unseen`, `preset`, `random` and `stratified` is set; with none every class is seen.

    Raises:
        SettingError: More than one is set, a class or preset is unknown, also to WordNet where that is asked, or no
            class would be seen.
    """
    given = [
        option
        for option, value in (
            ("--unseen", config.unseen or None),
            ("--preset", config.preset),
            ("--random", config.random),
            ("--stratified", config.stratified),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise SettingError(f"{' and '.join(given)}: both choose the unseen classes, expected one; leave the other out")
    if config.preset is not None:
        unseen = set(_from_preset(names, config.preset).values())
    elif config.random is not None:
        unseen = _at_random(names, config.random, config.seed)
    elif config.stratified is not None:
        unseen = _stratified(names, config.stratified, config.seed, _folder(config))
    else:
        unseen = {_id_of(name, names) for name in config.unseen}
    if len(unseen) == len(names):
        raise SettingError(f"all {len(names)} classes are unseen, expected at least one to train on; name fewer")
    return sorted(unseen)


def _params(names: Sequence[str], unseen: Sequence[int], config: SplitConfig) -> dict[str, Any]:
    """Return what the artifact records of the choice."""
    params: dict[str, Any] = {
        "unseen": [names[index] for index in unseen], "preset": config.preset, "random": config.random,
        "stratified": config.stratified, "seed": config.seed, "policy": config.policy, "wordnet": None,
    }  # fmt: skip
    if config.preset is not None:
        found = _from_preset(names, config.preset)
        params["preset_classes"] = {name: names[index] for name, index in found.items()}
    if config.stratified is not None:
        objects = [names[index] for index in _drawable(names)]
        params["wordnet"] = wordnet.hierarchy(objects, _folder(config)).source
        members = _groups(names, _folder(config))
        drawn = {group: [names[index] for index in ids if index in unseen] for group, ids in members.items()}
        params["groups"] = {group: of_group for group, of_group in drawn.items() if of_group}
    return params


def _folder(config: SplitConfig) -> Path | None:
    return None if config.wordnet is None else Path(config.wordnet)


def _class_vectors(labels: Path, data: Path, names: Sequence[str]) -> NDArray[np.float32]:
    with artifacts.open_artifact(labels, "labels") as words:
        artifacts.same_names(words.strings("names"), names, f"{labels} and {data}")
        vectors: NDArray[np.float32] = words.array("vectors")
        return vectors


def _from_preset(names: Sequence[str], preset: str) -> dict[str, int]:
    """Return the paper's name of each class -> its id in the data."""
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
    return {name: index for name, index in found.items() if index is not None}


def _at_random(names: Sequence[str], count: int, seed: int) -> set[int]:
    candidates = _drawable(names)
    _check_draw("--random", count, seed, len(candidates))
    drawn = np.random.default_rng(seed).choice(candidates, size=count, replace=False)
    return {int(index) for index in drawn}


def _stratified(names: Sequence[str], count: int, seed: int, folder: Path | None) -> set[int]:
    """Draw one class of every group in turn, groups in an order drawn by seed, until there are enough."""
    candidates = _drawable(names)
    _check_draw("--stratified", count, seed, len(candidates))
    groups = _groups(names, folder)
    unknown = sorted(set(candidates) - {index for ids in groups.values() for index in ids})
    if unknown:
        raise SettingError(
            f"--stratified {count}: WordNet has no noun {', '.join(names[index] for index in unknown)}, and so no "
            "group to draw from; rename in classes.txt, or use --random"
        )
    rng = np.random.default_rng(seed)
    queues: list[list[int]] = [rng.permutation(ids).tolist() for ids in groups.values()]
    in_turn = [queues[place] for place in rng.permutation(len(queues))]
    drawn = [queue[turn] for turn in range(max(map(len, queues))) for queue in in_turn if turn < len(queue)]
    return set(drawn[:count])


def _groups(names: Sequence[str], folder: Path | None) -> dict[str, list[int]]:
    """Return the ids of the classes of each supercategory of WordNet, without those that are never drawn."""
    candidates = _drawable(names)
    groups = wordnet.groups([names[index] for index in candidates], folder)
    return {group: [candidates[place] for place in places] for group, places in groups.items()}


def _drawable(names: Sequence[str]) -> list[int]:
    return [index for index, name in enumerate(names) if name.lower() not in NEVER_DRAWN]


def _check_draw(option: str, count: int, seed: int, classes: int) -> None:
    if not 1 <= count <= classes:
        raise SettingError(
            f"{option} {count}: expected 1 to {classes}, the classes that can be drawn (never background)"
        )
    if seed < 0:
        raise SettingError(f"--seed {seed}: expected 0 or more")


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
    return "".join(letter for letter in name.lower() if letter not in " _-/")


def _count(
    data: Artifact, train: Iterable[int], unseen: Sequence[int], config: SplitConfig, progress: Progress
) -> _Counts:
    """Apply the policy image by image, and count what training will see and what is hidden from it."""
    names, ids = data.strings("names"), data.strings("ids")
    counts = _Counts(np.zeros((4, len(names)), dtype=np.int64))
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
        counts.totals += np.stack([visible > 0, visible, pixels - visible, pixels > visible])
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
