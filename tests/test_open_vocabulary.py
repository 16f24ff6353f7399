"""Any words: beside the model's classes, alone, and as a reading of regions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from tiny import zsseg

from zsseg.artifacts import open_artifact
from zsseg.errors import SettingError
from zsseg.images import decode_label_map
from zsseg.inference import Model, as_rgb, load_model, predict_grid, score_image
from zsseg.models.anchors import NEVER
from zsseg.open_vocabulary import embed_image, listed, new_words, read_regions, with_words
from zsseg.recipe import Places, embed_words, read_recipe


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    """Return the tiny model."""
    return load_model(trained / "model.h5", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def photo(trained: Path) -> np.ndarray:
    """Return one of its photos."""
    return as_rgb(trained / "images" / "five.png")


def vectors_of(trained: Path, *names: str) -> np.ndarray:
    return embed_words(names, read_recipe(trained / "model.h5"), Places())


def test_listed_words() -> None:
    """A list is split at commas; each word counts once, however it is spelt."""
    assert listed(" zebra, television  set,, Zebra ,dining_table,diningtable") == (
        "zebra", "television set", "dining_table",
    )  # fmt: skip


def test_classes_of_the_model_are_not_new(model: Model) -> None:
    """A name or an alias of a class is that class."""
    assert new_words(model, ["Cat", "zebra", "dog", "grass", "ZEBRA"]) == ["zebra", "grass"]


def test_a_typed_word_scores_as_if_it_had_been_held_out(model: Model, photo: np.ndarray, trained: Path) -> None:
    """A model that has forgotten its unseen classes scores their names as it did, gate and anchors included."""
    names = [model.names[index] for index in model.unseen]
    forgetful = replace(model, names=tuple(f"? {name}" if name in names else name for name in model.names))
    asked = with_words(forgetful, names, vectors_of(trained, *names), add=False)
    before = score_image(model, photo, max_side=512).scores[list(model.unseen)]
    torch.testing.assert_close(asked.score(photo, max_side=512).scores[1:], before, rtol=1e-4, atol=1e-4)
    assert getattr(model.net, "anchors", None) is not None, "the fixture's model has anchors, or this says little"


def test_what_imagenet_shows_of_a_word_is_taken_out(model: Model, trained: Path) -> None:
    """No classifier of a typed word has a say: ImageNet's zebra is out where zebra is asked for, and not otherwise."""
    zebra = ImageNetInfo().label_names().index("n02391049")
    with_zebra = with_words(model, ["zebra"], vectors_of(trained, "zebra"), add=True).scorer.net
    with_grass = with_words(model, ["grass"], vectors_of(trained, "grass"), add=True).scorer.net
    offsets = [net.get_submodule("anchors").get_buffer("offset")[zebra].item() for net in (with_zebra, with_grass)]
    assert offsets[0] == NEVER
    assert offsets[1] == model.net.get_submodule("anchors").get_buffer("offset")[zebra].item() != NEVER


def test_an_added_word_scores_like_an_unseen_class(
    model: Model, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word with the vector of an unseen class scores as that class does, gate and calibration included.

    The class itself may have a prior of the anchors, so the word is compared where the anchors say nothing.
    """
    monkeypatch.setattr("zsseg.open_vocabulary._shares", lambda *_: None)
    cow = model.names.index("cow")
    assert model.vectors is not None
    anchors = getattr(model.net, "anchors", None)
    if anchors is not None:
        anchors.get_buffer("share").zero_()
    asked = with_words(model, ["twin"], model.vectors[[cow]].numpy(), add=True)
    scores = asked.score(photo, max_side=512).scores
    torch.testing.assert_close(scores[-1], scores[cow])
    torch.testing.assert_close(scores[:-1], score_image(model, photo, max_side=512).scores)
    given = asked.shown.calibration
    assert given is not None
    assert model.calibration is not None
    assert given.bias[-1] == pytest.approx(model.calibration.bias[list(model.unseen)].mean())
    np.testing.assert_array_equal(given.bias[:-1], model.calibration.bias)


def test_added_words_leave_the_model_as_it_was(model: Model, photo: np.ndarray, trained: Path) -> None:
    """The weights are shared, and nothing of the model given changes."""
    before = score_image(model, photo, max_side=512).scores
    asked = with_words(model, ["zebra", "grass"], vectors_of(trained, "zebra", "grass"), add=True)
    asked.score(photo, max_side=512)
    torch.testing.assert_close(score_image(model, photo, max_side=512).scores, before)
    assert next(asked.scorer.net.parameters()) is next(model.net.parameters())


def test_words_alone(model: Model, photo: np.ndarray, trained: Path) -> None:
    """Only the words are predicted; background keeps id 0 and is predicted where it was asked for, and only there."""
    asked = with_words(model, ["zebra", "cat"], vectors_of(trained, "zebra"), add=False)
    assert asked.shown.names == ("background", "zebra", "cat")
    assert asked.shown.unseen == (1,)
    found = predict_grid(asked.shown, asked.score(photo, max_side=512))
    assert found.areas[0] == 0
    assert found.areas.sum() == photo.shape[0] * photo.shape[1]
    with_background = with_words(model, ["zebra", "cat", "background"], vectors_of(trained, "zebra"), add=False)
    assert with_background.shown.names == asked.shown.names
    full = with_background.score(photo, max_side=512).scores
    torch.testing.assert_close(full[1:], asked.score(photo, max_side=512).scores[1:])
    assert (full[0] > -1e6).all()


def test_the_classes_by_their_own_names_are_the_model(model: Model, photo: np.ndarray) -> None:
    """Asking for all classes of the model gives what asking for nothing gives."""
    asked = with_words(model, list(model.names), None, add=False)
    torch.testing.assert_close(asked.score(photo, max_side=512).scores, score_image(model, photo, max_side=512).scores)
    assert asked.shown.seen == model.seen


def test_too_many_words(model: Model) -> None:
    """A label map holds 255 classes."""
    names = [f"w{index}" for index in range(260)]
    with pytest.raises(SettingError, match="at most 255"):
        with_words(model, names, np.ones((260, 10), np.float32), add=False)


def test_a_reading_is_the_nearest_words_of_each_region(model: Model, photo: np.ndarray) -> None:
    """Regions cover the photo; each region's words are those of a naive search over its mean embedding."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 10)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"word{index}" for index in range(40)]
    reading = read_regions(model, photo, words, vectors, max_side=512, regions=3, nearest=4)
    shares = [region.share for region in reading.regions]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert len(shares) <= 3
    assert reading.region_map.shape == photo.shape[:2]
    for index, region in enumerate(reading.regions):
        assert (reading.region_map == index).mean() == pytest.approx(region.share)
        top, left, bottom, right = region.box
        assert (reading.region_map[top:bottom, left:right] == index).sum() == (reading.region_map == index).sum()
        cosines = [cosine for _, cosine in region.words]
        assert cosines == sorted(cosines, reverse=True)
    one = read_regions(model, photo, words, vectors, max_side=512, regions=1, nearest=4).regions
    mean = embed_image(model, photo, max_side=512).scores.flatten(1).mean(dim=1).numpy()
    naive = sorted(range(40), key=lambda index: -float(vectors[index] @ mean))[:4]
    assert [word for word, _ in one[0].words] == [words[index] for index in naive]
    cosine = float(vectors[naive[0]] @ mean / np.linalg.norm(mean))
    assert one[0].words[0][1] == pytest.approx(cosine, abs=1e-5)


# --- the command ------------------------------------------------------------------------------------------------------


def predict(trained: Path, out: Path, *words: object, expect: int = 0) -> tuple[str, str]:
    """Run predict on a photo, with the outputs elsewhere."""
    to = ("--workspace", trained, "--out", out / "p.h5", "--pictures", out / "pictures")
    result = zsseg("predict", trained / "images" / "five.png", *to, *words, expect=expect)
    return result.stdout, " ".join(result.stderr.split())


def test_predict_words(trained: Path, tmp_path: Path) -> None:
    """`--classes` writes the words as classes, and its pictures and its JSON agree with the artifact."""
    stdout, _ = predict(trained, tmp_path, "--classes", "zebra, television set", "--json", "-")
    report = json.loads(stdout)
    with open_artifact(tmp_path / "p.h5", "predictions") as found:
        assert found.strings("names") == ["background", "zebra", "television set"]
        assert found.params["classes"] == ["zebra", "television set"]
        areas = found.array("areas")[0]
    labels = decode_label_map(tmp_path / "pictures" / "five.png", "five")
    np.testing.assert_array_equal(np.bincount(labels.ravel(), minlength=3), areas)
    shares = {each["name"]: each["share"] for each in report["photos"][0]["classes"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(each["unseen"] for each in report["photos"][0]["classes"])


def test_predict_words_beside_the_classes(trained: Path, tmp_path: Path) -> None:
    """`--add` keeps the ids of the model's classes and puts the words after them."""
    predict(trained, tmp_path, "--classes", "zebra,dog", "--add")
    with open_artifact(tmp_path / "p.h5", "predictions") as found:
        assert found.strings("names") == ["background", "cat", "dog", "cow", "sheep", "zebra"]


def test_predict_reads_out(trained: Path, tmp_path: Path) -> None:
    """`--vocabulary` labels each region with its nearest word, and keeps all of them in the artifact."""
    stdout, _ = predict(trained, tmp_path, "--vocabulary", "500", "--regions", "3", "--nearest", "2")
    with open_artifact(tmp_path / "p.h5", "predictions") as found:
        names, areas = found.strings("names"), found.array("areas")[0]
        [reading] = (json.loads(text) for text in found.strings("readings"))
    assert names[0] == "background"
    labels = decode_label_map(tmp_path / "pictures" / "five.png", "five")
    for index in np.unique(labels):
        share = sum(each["share"] for each in reading if each["words"][0]["word"] == names[index])
        assert (labels == index).mean() == pytest.approx(share)
        assert areas[index] == (labels == index).sum()
        assert names[index] in stdout
    assert all(len(each["words"]) == 2 for each in reading)


def test_photos_are_read_out_one_after_the_other(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words get their ids in the order of the photos, which threads side by side would not keep."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("photos were worked on side by side")

    monkeypatch.setattr("zsseg.predict.side_by_side", refuse)
    predict(trained, tmp_path, "--vocabulary", "500")
    with pytest.raises(AssertionError, match="side by side"):  # where words are given, they may be
        predict(trained, tmp_path, "--classes", "zebra", "--force")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--classes", "zebbra"), "did you mean zebra"),
        (("--classes", " , "), "--classes: no word"),
        (("--add",), "--add: adds the words of --classes"),
        (("--vocabulary", "many"), "--vocabulary many: expected a number"),
        (("--vocabulary", "50", "--classes", "zebra"), "leave one out"),
        (("--classes", "zebra", "--vectors", "none.txt"), "none.txt: no such file"),
    ],
)
def test_predict_refuses(words: tuple[str, ...], says: str, trained: Path, tmp_path: Path) -> None:
    """What cannot be met is one line that says what to do, and nothing is written."""
    _, stderr = predict(trained, tmp_path, *words, expect=1)
    assert says in stderr
    assert not (tmp_path / "p.h5").exists()


def test_a_model_without_its_recipe(trained: Path, tmp_path: Path) -> None:
    """A model of an earlier zsseg asks for its labels.h5, takes it, and refuses another."""
    old = strip_recipe(trained / "model.h5", tmp_path / "old.h5")
    _, stderr = predict(trained, tmp_path, "--model", old, "--classes", "zebra", expect=1)
    assert "--labels labels.h5" in stderr
    predict(trained, tmp_path, "--model", old, "--classes", "zebra", "--labels", trained / "labels.h5")
    zsseg("embed-labels", "--dim", "5", "--workspace", trained, "--out", tmp_path / "other.h5")
    wrong = ("--model", old, "--classes", "zebra", "--labels", tmp_path / "other.h5", "--force")
    _, stderr = predict(trained, tmp_path, *wrong, expect=1)
    assert "not the labels artifact" in stderr
    predict(trained, tmp_path, "--model", old, "--force")


def strip_recipe(model: Path, out: Path) -> Path:
    """Write a model as a zsseg before recipes did."""
    from zsseg.artifacts import create
    from zsseg.schema import SCHEMA

    with open_artifact(model, "model") as artifact:
        params = {key: value for key, value in artifact.params.items() if key != "recipe"}
        with create(out, "model", params=params, inputs=artifact.inputs) as writer:
            for name, field in SCHEMA["model"].items():
                if name in artifact and not name.startswith("recipe"):
                    read = {"arrays": artifact.arrays, "str": artifact.strings}.get(field.dtype, artifact.array)
                    writer.put(name, read(name))
    return out


def test_paths_from_stdin(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find ... | zsseg predict -` predicts the photos that are listed, in their order."""
    photos = [trained / "images" / name for name in ("six.png", "five.png")]
    monkeypatch.chdir(tmp_path)
    from typer.testing import CliRunner

    from zsseg.cli import app

    arguments = ["predict", "-", "--model", str(trained / "model.h5")]
    result = CliRunner().invoke(app, arguments, input="".join(f"{path}\n" for path in photos))
    assert result.exit_code == 0, result.output
    with open_artifact(tmp_path / "predictions.h5", "predictions") as found:
        assert found.strings("ids") == ["six", "five"]
    empty = CliRunner().invoke(app, [*arguments, "--force"], input="\n")
    assert empty.exit_code == 1
    assert "stdin holds no path" in empty.stderr
    with Image.open(tmp_path / "predictions" / "six.png") as picture:
        assert picture.mode == "P"
