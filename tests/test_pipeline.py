"""End to end through the command line: a slice of real photos, and the built-in sample as an oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny import zsseg

from zsseg import load, sample
from zsseg.artifacts import Artifact, open_artifact
from zsseg.classes import VOID
from zsseg.images import decode_image, decode_label_map
from zsseg.vectors import WHEEL, read_vocabulary


def label_map(data: Artifact, index: int) -> NDArray[np.uint8]:
    return decode_label_map(data.bytes_at("label_maps", index), "truth")


# --- real photos ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the steps up to eval on 48 photos of animals, with cow and sheep unseen."""
    space = tmp_path_factory.mktemp("photos")
    vectors = data_root / "vectors"
    for words in (
        ("fetch-data", "folder", "--root", data_root / "voc-animals" / "VOC2012", "--limit", 48),
        ("embed-labels", "--vectors", vectors / "voc21-word2vec-300d.txt",
         "--vocabulary", vectors / "cocostuff182-word2vec-300d.txt", "--dim", 50),
        ("make-split", "--unseen", "cow,sheep"),
        ("train", "--frozen", "--epochs", 4, "--batch", 4),
        ("eval",),
    ):  # fmt: skip
        zsseg(*words, "--workspace", space)
    return space


def test_photos_are_divided_as_their_lists_say(photos: Path) -> None:
    """48 photos keep the proportion of the lists, 3131 to 222, and the classes of VOC."""
    with open_artifact(photos / "data.h5", "data") as data:
        assert (len(data.array("train")), len(data.array("val"))) == (45, 3)
        names = data.strings("names")
    with open_artifact(photos / "split.h5", "split") as split:
        assert [names[index] for index in split.array("unseen")] == ["cow", "sheep"]


def test_the_loss_on_photos_falls(photos: Path) -> None:
    """Four epochs of the head alone bring the loss from 1, that of unit vectors, to under 60 % of it."""
    with open_artifact(photos / "model.h5", "model") as model:
        loss = model.array("loss")
        assert model.array("val_seen_miou").shape == (4,)
    assert loss[0] == pytest.approx(1, abs=1e-3)
    assert np.mean(loss[-12:]) < 0.6 * loss[0]


def test_the_confusion_counts_every_pixel_once(photos: Path) -> None:
    """The matrix holds all non-void pixels of the validation photos, and its rows are the truth."""
    with open_artifact(photos / "data.h5", "data") as data:
        maps = [label_map(data, index) for index in data.array("val")]
    pixels = sum(np.bincount(each.ravel(), minlength=256) for each in maps)
    pixels[VOID] = 0
    with open_artifact(photos / "scores.h5", "scores") as scores:
        confusion = scores.array("confusion")
        assert scores.array("confusion_vanilla").sum() == pixels.sum()
    assert confusion.sum() == pixels.sum()
    assert confusion.sum(axis=1).tolist() == pixels[: len(confusion)].tolist()


def test_other_photos_are_labelled_better_than_by_the_commonest_class(
    photos: Path, data_root: Path, tmp_path: Path
) -> None:
    """On 19 photos of another artifact, pixel accuracy over the seen classes beats calling everything background."""
    root = data_root / "voc-animals" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "classes.txt"):
        (tmp_path / name).symlink_to(root / name)
    ids = (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    (tmp_path / "val.txt").write_text("\n".join(ids[::12]) + "\n")
    zsseg("fetch-data", "folder", "--root", tmp_path, "--out", tmp_path / "other.h5")
    files = ("--data", tmp_path / "other.h5", "--out", tmp_path / "scores.h5")
    written = json.loads(zsseg("eval", *files, "--json", "-", "--workspace", photos).stdout)
    with open_artifact(tmp_path / "scores.h5", "scores") as scores:
        confusion, seen = scores.array("confusion"), scores.array("seen")
    assert written["images"] == 19
    assert written["generalized"]["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    among_seen = confusion[seen]
    accuracy = confusion[seen, seen].sum() / among_seen.sum()
    assert accuracy > among_seen[0].sum() / among_seen.sum() + 0.03


def test_predictions_of_photos(photos: Path, data_root: Path) -> None:
    """Files, the artifact's photos and `zsseg.load` all give the label map that eval counted, at the photo's size."""
    with open_artifact(photos / "data.h5", "data") as data:
        index = int(data.array("val")[0])
        ids, truth = data.strings("ids"), label_map(data, index)
        image = decode_image(data.bytes_at("images", index), "photo")
    folder = data_root / "voc-animals" / "VOC2012" / "JPEGImages"
    files = [folder / f"{ids[index]}.jpg", folder / f"{ids[0]}.jpg"]
    result = zsseg("predict", *files, "--workspace", photos)
    assert all(file.stem in result.stdout for file in files)
    for file in files:
        with Image.open(file) as photo, Image.open(photos / "predictions" / f"{file.stem}.png") as picture:
            assert (picture.size, picture.mode) == (photo.size, "P")
        with Image.open(photos / "predictions" / f"{file.stem}_overlay.png") as overlay:
            assert min(overlay.size) > 100
    predicted = decode_label_map(photos / "predictions" / f"{ids[index]}.png", "prediction")
    assert predicted.shape == truth.shape
    again = load(photos / "model.h5", device="cpu").predict(image)
    assert np.array_equal(again.label_map, predicted)
    with open_artifact(photos / "predictions.h5", "predictions") as predictions:
        assert predictions.strings("ids") == [file.stem for file in files]
        assert np.array_equal(predictions.array("areas")[0], np.bincount(predicted.ravel(), minlength=21))
    zsseg("visualize", photos / "predictions.h5", "--workspace", photos)


@pytest.mark.parametrize("kind", ["data", "labels", "model", "scores"])
def test_pictures_of_photos(photos: Path, kind: str) -> None:
    """Each artifact of the real photos can be drawn."""
    result = zsseg("visualize", photos / f"{kind}.h5", "--workspace", photos)
    for line in result.stdout.splitlines():
        with Image.open(line) as picture:
            assert min(picture.size) > 200


# --- the sample: unseen classes are found by their words, and only by them --------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the sample and its split."""
    space = tmp_path_factory.mktemp("sample")
    zsseg("fetch-data", "sample", "--workspace", space)
    zsseg("make-split", "--unseen", ",".join(sample.UNSEEN), "--workspace", space)
    return space


def shuffled_vectors(path: Path, names: list[str], *, seed: int) -> Path:
    """Write GloVe's vectors with those of the class names passed round in one cycle: none keeps its own."""
    vocabulary = read_vocabulary(WHEEL, wanted=names, frequent=2_000)
    words, vectors = vocabulary.frequent(2_000)
    table = {word: vector / np.linalg.norm(vector) for word, vector in zip(words, vectors, strict=True)}
    order = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    table |= {name: vocabulary.unit(other) for name, other in zip(order, [*order[1:], order[0]], strict=True)}
    lines = [f"{word} {' '.join(f'{number:.6f}' for number in vector)}" for word, vector in table.items()]
    path.write_text(f"{len(lines)} 50\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def unseen_miou(space: Path, *, embed: tuple[object, ...] = ()) -> dict[str, Any]:
    """Embed, train, and return the generalized scores."""
    zsseg("embed-labels", *embed, "--force", "--workspace", space)
    zsseg("train", "--force", "--workspace", space)
    scores: dict[str, Any] = json.loads(zsseg("eval", "--force", "--json", "-", "--workspace", space).stdout)
    return scores["generalized"]  # type: ignore[no-any-return]


def test_unseen_classes_of_the_sample_are_found(scenes: Path) -> None:
    """With plain NNE the classes that training never showed are found from their words."""
    found = unseen_miou(scenes)
    assert found["unseen_miou"] > 0.5
    assert found["seen_miou"] > 0.5


def test_unseen_classes_are_lost_when_words_are_shuffled(scenes: Path) -> None:
    """With the class vectors passed round among the classes, unseen ones are no longer found."""
    with open_artifact(scenes / "data.h5", "data") as data:
        names = data.strings("names")
    vectors = shuffled_vectors(scenes / "shuffled.txt", names, seed=0)
    found = unseen_miou(scenes, embed=("--vectors", vectors))
    assert found["unseen_miou"] < 0.15
    assert found["seen_miou"] > 0.4  # trained all the same: only which word is where has changed
