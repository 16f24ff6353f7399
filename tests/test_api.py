"""`zsseg.load` from Python: the same as the command, rich in a notebook, and the examples of docs/api.md."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import zsseg

import zsseg as package
from zsseg.artifacts import open_artifact
from zsseg.errors import SettingError
from zsseg.images import decode_label_map

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"((?:<!-- needs \w+ -->\n)?)```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL
)


@pytest.fixture(scope="module")
def model(trained: Path) -> package.Model:
    """Return the tiny model."""
    return package.load(trained / "model.h5", device="cpu", precision="float32")


def test_the_same_as_the_command(model: package.Model, trained: Path, tmp_path: Path) -> None:
    """A path, a PIL image and an array give the label map that `zsseg predict` writes, by classes and by words."""
    photo = trained / "images" / "five.png"
    for words, classes in (((), None), (("--classes", "zebra, cat"), ["zebra", "cat"])):
        to = ("--out", tmp_path / "p.h5", "--pictures", tmp_path, "--force", "--precision", "float32")
        zsseg("predict", photo, "--workspace", trained, *to, *words)
        written = decode_label_map(tmp_path / "five.png", "five")
        with Image.open(photo) as image:
            for each in (photo, str(photo), image, np.asarray(image)):
                found = model.predict(each, classes)
                np.testing.assert_array_equal(found.label_map, written)
        with open_artifact(tmp_path / "p.h5", "predictions") as predictions:
            assert list(found.names) == predictions.strings("names")
            np.testing.assert_array_equal(found.areas, predictions.array("areas")[0])


def test_scores_explain_the_label_map(model: package.Model, trained: Path) -> None:
    """The class of each pixel is the one whose score map is highest there, and the shares add up."""
    found = model.predict(trained / "images" / "five.png")
    maps = np.stack([found.score_map(name) for name in found.names])
    np.testing.assert_array_equal(maps.argmax(axis=0), found.label_map)
    assert found.scores.shape[0] == len(found.names)
    assert sum(found.shares.values()) == pytest.approx(1)
    for name, share in found.shares.items():
        assert (found.label_map == found.names.index(name)).mean() == pytest.approx(share)


def test_a_notebook_shows_it(model: package.Model, trained: Path) -> None:
    """The rich displays hold the overlay and every class that was found, safely spelt."""
    found = model.predict(trained / "images" / "five.png", ["zebra", "cat"], add=True)
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert picture.size == found.overlay.size
    page = found._repr_html_()
    assert all(f"<td>{name}" in page for name in found.shares)
    assert "data:image/png;base64," in page


def test_a_repeated_question_embeds_words_once(
    model: package.Model, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the same words of a second photo reads no word vectors again."""
    first = model.predict(trained / "images" / "five.png", ["zebra", "grass"])
    monkeypatch.setattr("zsseg.api.embed_words", None)
    again = model.predict(trained / "images" / "five.png", ["zebra", "grass"])
    np.testing.assert_array_equal(first.label_map, again.label_map)


def test_reading(model: package.Model, trained: Path) -> None:
    """A reading from Python has regions with words."""
    reading = model.read(trained / "images" / "five.png", 300, regions=2, nearest=3)
    assert 1 <= len(reading.regions) <= 2
    assert all(len(region.words) == 3 for region in reading.regions)


def test_wrong_words_and_names(model: package.Model, trained: Path) -> None:
    """Errors are those of the command."""
    with pytest.raises(SettingError, match="did you mean zebra"):
        model.predict(trained / "images" / "five.png", ["zebbra"])
    with pytest.raises(SettingError, match="no word"):
        model.predict(trained / "images" / "five.png", [])
    with pytest.raises(SettingError, match=r"none\.txt: no such file"):
        package.load(trained / "model.h5", vectors=["none.txt"])
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


def test_the_page_runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/api.md runs as it stands, in order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.h5").write_bytes((trained / "model.h5").read_bytes())
    with Image.open(trained / "images" / "five.png") as image:
        image.save(tmp_path / "photo.jpg")
    assert len(BLOCKS) == 4
    scope: dict[str, object] = {}
    for needs, code in BLOCKS:
        if not needs or importlib.util.find_spec("onnxruntime"):
            exec(compile(code, "docs/api.md", "exec"), scope)  # the page is ours
    with Image.open(tmp_path / "overlay.png") as overlay, Image.open(tmp_path / "labels.png") as labels:
        assert overlay.width >= labels.width
