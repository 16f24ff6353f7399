"""Pictures of every kind of artifact: they exist, show what is inside, and never replace one unasked."""

from __future__ import annotations

import base64
import io
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from tiny import zsseg

from zsseg import tables
from zsseg import visualize as drawing
from zsseg.artifacts import create, open_artifact
from zsseg.classes import VOC_NAMES
from zsseg.config import PictureConfig
from zsseg.errors import ArtifactError, SettingError
from zsseg.images import UInt8, colour, decode_image, encode_label_map, voc_palette
from zsseg.pictures import palette
from zsseg.progress import SILENT
from zsseg.projection import principal_plane
from zsseg.schema import Kind
from zsseg.visualize import PICTURES, fits, preview, visualize

NAMES = ("background", "cow", "price in $ or $", "traffic_light", "猫")  # a formula, if taken as one
UNSEEN = (1, 3)
SIZE = (60, 80)
PHOTO = (200, 90, 160)  # a colour of neither text nor palette
VERMILLION, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def write(path: Path, kind: Kind, params: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Write an artifact of these fields."""
    with create(path, kind, params=params or {}, inputs={}, force=True) as writer:
        for name, values in fields.items():
            writer.put(name, values)
    return path


def label_maps(count: int) -> list[UInt8]:
    """Return label maps with a bar of one class each over background."""
    maps = np.zeros((count, *SIZE), dtype=np.uint8)
    for index in range(count):
        maps[index, 20:40] = 1 + index % (len(NAMES) - 1)
        maps[index, 20:22] = 255
    return list(maps)


def write_data(path: Path, ids: Sequence[str], *, lacking: Sequence[int] = (), size: tuple[int, int] = SIZE) -> Path:
    """Write a data artifact of photos of one colour; those at `lacking` have no label map."""
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], PHOTO).save(buffer, "PNG")
    encoded = [encode_label_map(one) for one in label_maps(len(ids))]
    return write(
        path,
        "data",
        names=NAMES,
        ids=ids,
        images=[buffer.getvalue()] * len(ids),
        label_maps=[b"" if index in lacking else one for index, one in enumerate(encoded)],
        sizes=[size] * len(ids),
        train=range(len(ids) - 1),
        val=[len(ids) - 1],
    )


def write_split(path: Path, names: Sequence[str] = NAMES) -> Path:
    """Write a split in which `UNSEEN` are unseen."""
    seen = [index for index in range(len(names)) if index not in UNSEEN]
    return write(path, "split", names=names, seen=seen, unseen=UNSEEN, train=[0], val=[1])


def write_labels(path: Path, names: Sequence[str], vectors: NDArray[Any]) -> Path:
    """Write class vectors; the fields that are not drawn are zeros."""
    dims = vectors.shape[1]
    return write(
        path, "labels", names=names, words=names, vectors=vectors, raw=vectors, mean=np.zeros(dims),
        components=np.zeros((dims, dims)), explained_variance=np.zeros(dims),
    )  # fmt: skip


def write_model(path: Path, loss: NDArray[Any], miou: Sequence[float]) -> Path:
    """Write a model with this history and a single weight."""
    return write(
        path, "model", {"model": "lite0", "loss": "mse"}, names=NAMES, seen=[0, 2, 4], unseen=UNSEEN, loss=loss,
        lr=np.linspace(1e-3, 0, len(loss)), val_seen_miou=miou, weights={"w": np.zeros(1)},
    )  # fmt: skip


def write_scores(path: Path, confusion: NDArray[Any], names: Sequence[str] = NAMES, **params: int) -> Path:
    """Write scores of this confusion matrix; class i occurs in i + 1 photos."""
    seen = [index for index in range(len(names)) if index not in UNSEEN]
    return write(
        path, "scores", params, names=names, seen=seen, unseen=UNSEEN, confusion=confusion,
        confusion_vanilla=confusion, images_per_class=np.arange(1, len(names) + 1),
        gap_edges=np.array([-0.5, 0.0, 0.5]), gap_counts=np.ones((4, len(names), 4), np.int64),
    )  # fmt: skip


def write_predictions(path: Path, ids: Sequence[str]) -> Path:
    """Write predictions that equal the label maps of `write_data`, with void as background."""
    maps = [np.where(one == 255, 0, one).astype(np.uint8) for one in label_maps(len(ids))]
    return write(
        path, "predictions", names=NAMES, ids=ids, sources=[f"{name}.jpg" for name in ids],
        label_maps=[encode_label_map(one) for one in maps], mean_scores=np.zeros((len(ids), len(NAMES))),
        areas=[np.bincount(one.ravel(), minlength=len(NAMES)) for one in maps],
    )  # fmt: skip


def near(picture: UInt8, shade: tuple[int, int, int]) -> int:
    """Return how many pixels have this colour, up to rounding."""
    return int((np.abs(picture.astype(int) - shade).max(axis=-1) <= 2).sum())


def read(path: Path) -> UInt8:
    """Return the pixels of a picture."""
    return decode_image(path, path.name)


@pytest.fixture
def each_kind(tmp_path: Path) -> dict[str, Path]:
    """Return an artifact of each kind that can be drawn."""
    rng = np.random.default_rng(3)
    ids = ["a", "b", "c"]
    return {
        "data": write_data(tmp_path / "data.h5", ids),
        "labels": write_labels(tmp_path / "labels.h5", NAMES, rng.normal(size=(5, 6))),
        "model": write_model(tmp_path / "model.h5", rng.uniform(1, 2, 200), [0.1, 0.2, 0.3]),
        "scores": write_scores(tmp_path / "scores.h5", rng.integers(0, 99, (5, 5))),
        "predictions": write_predictions(tmp_path / "predictions.h5", ids),
        "split": write_split(tmp_path / "split.h5"),
    }


def draw(each_kind: dict[str, Path], kind: str, out: Path, **options: Any) -> tuple[Path, ...]:
    """Draw an artifact of `each_kind`, a split with its data."""
    return visualize(each_kind[kind], out, data=each_kind["data"] if kind == "split" else None, **options)


@pytest.mark.parametrize("kind", list(PICTURES))
def test_each_kind_is_drawn(each_kind: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Every kind gives its pictures in a folder that is made, nothing else in it, the same bytes each time."""
    paths = draw(each_kind, kind, tmp_path / "new" / "out")
    assert [path.name for path in paths] == list(PICTURES[kind])
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(PICTURES[kind])
    for path in paths:
        picture = read(path)
        assert min(picture.shape[:2]) > 60
        assert picture.std() > 5
    again = draw(each_kind, kind, tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


@pytest.mark.parametrize("kind", list(PICTURES))
def test_existing_pictures_are_kept(each_kind: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """An existing picture is refused before any work, even the last of several, and replaced with force."""
    last = tmp_path / "out" / PICTURES[kind][-1]
    last.parent.mkdir()
    last.write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=f"{last.name}: exists already; add --force"):
        draw(each_kind, kind, tmp_path / "out")
    assert last.read_bytes() == b"mine"
    assert [path.name for path in last.parent.iterdir()] == [last.name]
    draw(each_kind, kind, tmp_path / "out", force=True)
    assert read(last).ndim == 3


def test_what_cannot_be_drawn(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """A split without data, a foreign, a missing file, a file as folder and a limit of 0 get one clear line each."""
    with pytest.raises(ArtifactError, match="needs the data artifact it was made from; name it with --data"):
        visualize(each_kind["split"], tmp_path / "out")
    (tmp_path / "note.txt").write_text("no artifact")
    with pytest.raises(ArtifactError, match=r"note\.txt: not a readable HDF5 file"):
        visualize(tmp_path / "note.txt", tmp_path / "out")
    with pytest.raises(ArtifactError, match="no such file"):
        visualize(tmp_path / "none.h5", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match="cannot make this folder"):
        visualize(each_kind["model"], tmp_path / "note.txt")
    with pytest.raises(SettingError, match="--limit 0: expected 1 or more"):
        visualize(each_kind["data"], tmp_path / "out", config=PictureConfig(limit=0))


def test_data_shows_evenly_spread_photos_also_without_label_map(tmp_path: Path) -> None:
    """A limit of three shows the first, middle and last photo; the one without a label map stands alone."""
    path = write_data(tmp_path / "data.h5", [f"photo{index}" for index in range(9)], lacking=[4])
    sheet = read(visualize(path, tmp_path / "out", config=PictureConfig(limit=3))[0])
    palette = voc_palette()
    # photos 0 and 8 have a bar of class 1; photo 4 would have one too, any other would show another class
    assert near(sheet, tuple(palette[1])) > 50
    assert all(near(sheet, tuple(palette[index])) == 0 for index in (2, 3, 4))
    # the photos themselves, and below the two label maps the void pixels, which an overlay leaves visible
    assert near(sheet, PHOTO) == 3 * SIZE[0] * SIZE[1] + 2 * 2 * SIZE[1]


def test_data_without_any_label_map_or_photo(tmp_path: Path) -> None:
    """Photos alone can be drawn; an artifact without photos is an error."""
    visualize(write_data(tmp_path / "data.h5", ["a", "b"], lacking=[0, 1]), tmp_path / "out")
    empty = write(
        tmp_path / "empty.h5", "data", names=NAMES, ids=[], images=[], label_maps=[],
        sizes=np.zeros((0, 2)), train=[], val=[],
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=r"empty\.h5: holds no images"):
        visualize(empty, tmp_path / "none")


def test_unseen_classes_are_coloured(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """With a split, names and points of unseen classes are vermillion; without one nothing is."""
    split = write_split(tmp_path / "split.h5")
    for kind in ("labels", "data"):
        plain = read(visualize(each_kind[kind], tmp_path / f"{kind}-plain")[-1])
        marked = read(visualize(each_kind[kind], tmp_path / f"{kind}-marked", split=split)[-1])
        assert near(plain, VERMILLION) == 0 < near(marked, VERMILLION)


def test_a_split_of_other_classes_is_passed_over(
    each_kind: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A split that speaks of other classes marks nothing, and a note says so."""
    other = write_split(tmp_path / "other.h5", VOC_NAMES)
    plane = read(visualize(each_kind["labels"], tmp_path / "out", split=other)[0])
    assert near(plane, VERMILLION) == 0
    assert "other.h5 speaks of other classes than labels.h5" in caplog.text


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 50), (90, 20)])
def test_labels_of_any_number(shape: tuple[int, int], tmp_path: Path) -> None:
    """One class or 90, one dimension or many, a zero vector among them: drawn without a warning."""
    vectors = np.random.default_rng(0).normal(size=shape)
    vectors[0] = 0
    paths = visualize(write_labels(tmp_path / "l.h5", [f"class_{i}" for i in range(shape[0])], vectors), tmp_path / "o")
    assert all(max(read(path).shape) < 4000 for path in paths)


def test_principal_plane_keeps_plane_distances() -> None:
    """Vectors that lie in a plane keep their distances, and the shares of variance are those of the covariance."""
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(12, 2)) * (3, 1)
    turned = flat @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T + rng.normal(size=7)
    points, shares = principal_plane(turned)
    for one in range(12):
        for other in range(12):
            expected = np.sqrt(((flat[one] - flat[other]) ** 2).sum())
            assert np.sqrt(((points[one] - points[other]) ** 2).sum()) == pytest.approx(expected)
    variances = np.sort(np.linalg.eigvalsh(np.cov(flat.T)))[::-1]
    np.testing.assert_allclose(shares, variances / variances.sum())


def test_labels_stand_apart() -> None:
    """Names of points on one spot are put on places that do not cover each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = np.zeros((6, 2))
    axes.scatter(*points.T)
    drawing._place_labels(axes, points, [f"name {index}" for index in range(6)], ["black"] * 6)
    boxes = [text.get_window_extent() for text in figure.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[index + 1 :])


def test_moving_average_leaves_out_what_is_not_finite() -> None:
    """The smoothed loss equals a loop over the finite values of each window."""
    values = np.random.default_rng(2).normal(size=40)
    values[[0, 5, 6, 7, 8, 20]] = np.nan
    values[30] = np.inf
    smooth = drawing._smoothed(values, 3)
    for index in range(40):
        window = [value for value in values[max(0, index - 2) : index + 1] if np.isfinite(value)]
        if window:
            assert smooth[index] == pytest.approx(np.mean(window))
        else:
            assert np.isnan(smooth[index])


@pytest.mark.parametrize(
    ("loss", "miou"),
    [([], []), ([1.5], []), ([np.nan, np.nan], [np.nan]), ([1.0, np.nan, 0.0, np.inf, -1.0], [0.1, np.nan, 0.3])],
)
def test_any_history_is_drawn(loss: list[float], miou: list[float], tmp_path: Path) -> None:
    """A model without steps or epochs, or with values that are not finite, is drawn without a warning."""
    visualize(write_model(tmp_path / "m.h5", np.array(loss), miou), tmp_path / "out")


def test_scores_leave_out_absent_classes(tmp_path: Path) -> None:
    """A class with neither truth nor prediction has no row, so the matrix gets smaller; means are coloured lines."""
    confusion = np.full((5, 5), 7)
    full = visualize(write_scores(tmp_path / "full.h5", confusion), tmp_path / "full")
    many = np.zeros((21, 21), dtype=int)
    many[:5, :5] = 7
    part = visualize(write_scores(tmp_path / "part.h5", many, VOC_NAMES), tmp_path / "part")
    assert abs(read(full[0]).shape[0] - read(part[0]).shape[0]) <= 2
    for path in (full[1], part[1]):
        assert near(read(path), BLUE) > 500
        assert near(read(path), VERMILLION) > 500


def test_classes_left_out_of_the_means_are_grey(tmp_path: Path) -> None:
    """With min_images, as eval recorded it, the bars of classes in fewer photos are grey and move no mean."""
    scores = write_scores(tmp_path / "s.h5", np.full((5, 5), 7), min_images=3)
    bars = read(visualize(scores, tmp_path / "out")[1])
    plain = read(visualize(write_scores(tmp_path / "p.h5", np.full((5, 5), 7)), tmp_path / "plain")[1])
    assert near(bars, (0x99, 0x99, 0x99)) > 500 > near(plain, (0x99, 0x99, 0x99))


def test_scores_of_many_classes(tmp_path: Path) -> None:
    """A confusion matrix of 90 classes is drawn without a warning."""
    names = [f"class_{index}" for index in range(90)]
    visualize(write_scores(tmp_path / "s.h5", np.eye(90, dtype=int), names), tmp_path / "out")


def test_scores_without_a_pixel(tmp_path: Path) -> None:
    """A confusion matrix of zeros is an error, not an empty picture."""
    with pytest.raises(ArtifactError, match="holds no scored pixel"):
        visualize(write_scores(tmp_path / "s.h5", np.zeros((5, 5), dtype=int)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_predictions_beside_photo_and_truth(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """With data each prediction stands beside photo and truth; where there is no truth, beside the photo."""
    alone = read(visualize(each_kind["predictions"], tmp_path / "alone")[0])
    over = read(visualize(each_kind["predictions"], tmp_path / "over", data=each_kind["data"])[0])
    assert near(alone, PHOTO) == 0
    assert near(over, PHOTO) >= 3 * SIZE[0] * SIZE[1]
    bare = write_data(tmp_path / "bare.h5", ["a", "b", "c"], lacking=[0, 1, 2])
    less = read(visualize(each_kind["predictions"], tmp_path / "less", data=bare)[0])
    assert near(less, PHOTO) == 3 * SIZE[0] * SIZE[1]


def test_predictions_alone_have_plain_colours(
    each_kind: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without data the label map is shown as it is, and a note says how to see more."""
    caplog.set_level(logging.INFO, "zsseg")
    sheet = read(visualize(each_kind["predictions"], tmp_path / "out", config=PictureConfig(limit=1))[0])
    expected = colour(np.where(label_maps(1)[0] == 255, 0, label_maps(1)[0]).astype(np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (*SIZE, 3))
    assert (windows[:, :, 0] == expected).all(axis=(2, 3, 4)).any()
    assert "--data" in caplog.text


def test_photos_that_do_not_belong_are_refused(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """Data of other ids, other sizes or other classes is an error that names the mismatch."""
    others = write_data(tmp_path / "others.h5", ["x", "y"])
    with pytest.raises(ArtifactError, match=r"holds none of the 3 images of predictions\.h5 \(the first is 'a'\)"):
        visualize(each_kind["predictions"], tmp_path / "out", data=others)
    larger = write_data(tmp_path / "larger.h5", ["a"], lacking=[0], size=(70, 80))
    with pytest.raises(ArtifactError, match=r"photo 'a' has 70×80 pixels, its label map in predictions\.h5 60×80"):
        visualize(each_kind["predictions"], tmp_path / "out", data=larger)
    renamed = write(
        tmp_path / "renamed.h5", "data", names=["other", *NAMES[1:]], ids=["a"], images=[b""], label_maps=[b""],
        sizes=[SIZE], train=[0], val=[],
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="class 0 is 'background' and 'other'"):
        visualize(each_kind["predictions"], tmp_path / "out", data=renamed)
    with pytest.raises(ArtifactError, match="holds 'labels', expected 'data'"):
        visualize(each_kind["predictions"], tmp_path / "out", data=each_kind["labels"])
    assert not list((tmp_path / "out").glob("*"))
    assert fits(each_kind["predictions"], each_kind["data"])
    for unfit in (others, renamed, each_kind["labels"], tmp_path / "none.h5"):
        assert not fits(each_kind["predictions"], unfit)


def test_predictions_partly_in_the_data(
    each_kind: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Predictions whose photos are elsewhere are left out, and a note counts them."""
    caplog.set_level(logging.INFO, "zsseg")
    visualize(each_kind["predictions"], tmp_path / "out", data=write_data(tmp_path / "d.h5", ["b", "z"]))
    assert "2 of 3 predictions" in caplog.text


def test_the_users_style_does_not_matter(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """A matplotlibrc of the user changes no picture and is in force afterwards as before."""
    import matplotlib

    before = visualize(each_kind["scores"], tmp_path / "before")
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "black"}):
        after = visualize(each_kind["scores"], tmp_path / "after")
        assert matplotlib.rcParams["font.size"] == 31
    assert [path.read_bytes() for path in before] == [path.read_bytes() for path in after]


def test_real_photos_and_vectors(data_root: Path, tmp_path: Path) -> None:
    """Real photos with their label maps and real class vectors are drawn without a warning."""
    voc = data_root / "voc-animals" / "VOC2012"
    ids = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:4]
    photos = [(voc / "JPEGImages" / f"{name}.jpg").read_bytes() for name in ids]
    data = write(
        tmp_path / "data.h5", "data", names=VOC_NAMES, ids=ids, images=photos,
        label_maps=[(voc / "SegmentationClass" / f"{name}.png").read_bytes() for name in ids],
        sizes=[decode_image(photo, "photo").shape[:2] for photo in photos], train=[], val=range(4),
    )  # fmt: skip
    rows = (data_root / "vectors" / "voc21-word2vec-300d.txt").read_text().splitlines()[1:]
    vectors = np.array([row.split()[1:] for row in rows], dtype=np.float32)
    labels = write_labels(tmp_path / "labels.h5", [row.split()[0] for row in rows], vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = visualize(data, tmp_path / "out") + visualize(labels, tmp_path / "out")
    assert len(paths) == 4


@pytest.mark.parametrize("kind", list(PICTURES))
def test_each_kind_is_drawn_as_svg(each_kind: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """An SVG of each picture is well-formed, loads nothing from elsewhere, and is the same each time."""
    paths = draw(each_kind, kind, tmp_path / "out", config=PictureConfig(format="svg"))
    assert [path.name for path in paths] == [Path(name).with_suffix(".svg").name for name in PICTURES[kind]]
    for path in paths:
        root = ElementTree.fromstring(path.read_bytes())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:")) for link in links)
    again = draw(each_kind, kind, tmp_path / "again", config=PictureConfig(format="svg"))
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_an_svg_of_photos_holds_their_pixels(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """The picture inside an SVG is the PNG that is drawn otherwise."""
    png = visualize(each_kind["predictions"], tmp_path / "png")[0].read_bytes()
    svg = visualize(each_kind["predictions"], tmp_path / "svg", PictureConfig(format="svg"))[0].read_text()
    assert base64.b64encode(png).decode() in svg


def test_labels_of_an_svg_stand_beside_their_points(tmp_path: Path) -> None:
    """Names are placed in the SVG as in the PNG, whose dots are of another size."""
    names = ["left", "right", "top"]
    vectors = np.array([[0.0, 0.0], [9.0, 0.0], [4.0, 3.0]])
    path = visualize(write_labels(tmp_path / "l.h5", names, vectors), tmp_path / "o", PictureConfig(format="svg"))[0]
    root = ElementTree.fromstring(path.read_bytes())
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    space = "{http://www.w3.org/2000/svg}"
    dots = [(float(use.attrib["x"]), float(use.attrib["y"])) for use in root.iter(f"{space}use")
            if "x" in use.attrib and "fill: #0072b2" in use.attrib.get("style", "")]  # fmt: skip
    found = [
        re.search(r"translate\(([\d.]+) ([\d.]+)\)", node.attrib.get("transform", ""))
        for node in root.iter(f"{space}g")
    ]
    texts = [(float(each[1]), float(each[2])) for each in found if each]
    assert len(dots) >= 3
    for x, y in dots[:3]:
        assert 0 < x < width
        assert min(np.hypot(x - left, y - base) for left, base in texts) < 45
    assert height > 0


def test_a_safe_palette_recolours_label_maps(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """With the safe palette a prediction is drawn in its colours, not in VOC's."""
    sheet = read(visualize(each_kind["predictions"], tmp_path / "o", PictureConfig(limit=1, palette="safe"))[0])
    assert near(sheet, tuple(palette("safe")[1])) > 500
    assert near(sheet, tuple(voc_palette()[1])) == 0


def test_a_split_counts_its_parts(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """Bars of a split are of the photos that it names; its unseen classes are coloured."""
    with open_artifact(each_kind["split"], "split") as split, open_artifact(each_kind["data"], "data") as data:
        photos, pixels = drawing._counted(data, {part: split.array(part).tolist() for part in ("train", "val")}, SILENT)
    maps = label_maps(3)
    for row, index in enumerate((0, 1)):
        expected = np.bincount(maps[index][maps[index] != 255].ravel(), minlength=len(NAMES))
        np.testing.assert_array_equal(pixels[row], expected)
        np.testing.assert_array_equal(photos[row], expected > 0)
    drawn = read(draw(each_kind, "split", tmp_path / "out")[0])
    assert min(near(drawn, shade) for shade in (BLUE, (0, 0x9E, 0x73), VERMILLION)) > 20


def test_a_split_of_other_data_is_refused(each_kind: dict[str, Path], tmp_path: Path) -> None:
    """A split is drawn with the data that it was made from only, which `fits` knows."""
    other = write_data(tmp_path / "other.h5", ["x", "y", "z"])
    with open_artifact(other, "data") as data:
        digest = data.digest
    with create(tmp_path / "s.h5", "split", params={"policy": "drop"}, inputs={"data": digest}) as writer:
        for name, values in (("names", NAMES), ("seen", [0, 2, 4]), ("unseen", UNSEEN), ("train", [0]), ("val", [9])):
            writer.put(name, values)
    assert fits(tmp_path / "s.h5", other)
    assert not fits(tmp_path / "s.h5", each_kind["data"])
    with pytest.raises(ArtifactError, match="was made from another data artifact than"):
        visualize(tmp_path / "s.h5", tmp_path / "out", data=each_kind["data"])
    with pytest.raises(ArtifactError, match="holds 3 images, the split names image 9"):
        visualize(tmp_path / "s.h5", tmp_path / "out", data=other)


def test_a_preview_is_small_and_true(each_kind: dict[str, Path]) -> None:
    """A preview has the terminal's width, two pixels a line, the shares of the whole map, and the photo where known."""
    alone = preview(each_kind["predictions"], PictureConfig(limit=1), columns=40, split=each_kind["split"])
    (first,) = alone.shown
    assert first.picture.shape == (2 * 15, 40, 3)
    assert first.label_map.shape == (15, 40)
    assert first.shares == ((0, pytest.approx(42 / 60)), (1, pytest.approx(18 / 60)))
    assert alone.unseen == frozenset(UNSEEN)
    over = preview(each_kind["predictions"], PictureConfig(limit=1), columns=40, data=each_kind["data"])
    assert np.abs(over.shown[0].picture.astype(int) - first.picture).max() > 50
    with pytest.raises(ArtifactError, match="holds 'data'; --preview shows predictions"):
        preview(each_kind["data"], columns=40)


@pytest.mark.parametrize("colours", [True, False])
def test_a_preview_as_characters(each_kind: dict[str, Path], colours: bool) -> None:
    """A terminal with colours gets half blocks, another one letters; the legend names classes and marks unseen ones."""
    shown = preview(each_kind["predictions"], PictureConfig(limit=1), columns=40, split=each_kind["split"])
    console = Console(width=60, color_system="truecolor" if colours else None, file=io.StringIO(), record=True)
    console.print(tables.previewed(shown, colours=colours))
    text = console.export_text()
    assert "background 70.0%" in text
    assert "cow (unseen) 30.0%" in text
    lines = text.splitlines()
    assert lines[0] == "a"
    assert set(lines[1]) == ({"▀"} if colours else {"."})
    assert len(lines[1]) == 40
    assert colours or "a" * 40 in lines


def test_no_curve_without_an_unseen_class_that_counts(trained: Path, tmp_path: Path) -> None:
    """Where --min-images leaves every unseen class out, neither the table nor a picture shows a curve of nothing."""
    scores = tmp_path / "scores.h5"
    shown = zsseg("eval", "--min-images", 5, "--workspace", trained, "--out", scores).stdout
    assert "seen–unseen curve" not in shown
    zsseg("visualize", scores, "--workspace", trained, "--out", tmp_path / "pictures")
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"scores_confusion.png", "scores_classes.png"}
