"""The report: what is inside, that it is safe and small, and every interaction in a real browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_visualize import (
    SIZE,
    write,
    write_data,
    write_labels,
    write_model,
    write_predictions,
    write_scores,
    write_split,
)
from tiny import write_folder, zsseg

from zsseg import gallery, metrics
from zsseg.artifacts import open_artifact
from zsseg.classes import VOC_NAMES
from zsseg.config import ReportConfig
from zsseg.curve import read_curve
from zsseg.errors import ArtifactError, SettingError, ZssegError
from zsseg.images import UInt8, decode_image, decode_label_map, encode_label_map
from zsseg.inference import NEVER, calibrate, chosen_calibration, load_model, score_image
from zsseg.pictures import palette
from zsseg.projection import in_plane
from zsseg.report import render, run_lengths, write_report
from zsseg.winners import ScoreGrid, score_tiles

KINDS = ("data", "labels", "split", "model", "scores", "predictions")
HOSTILE = (
    "background",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"quotes\" & 'more' \u2028 {{data}} \\",
    "猫 🐈 é",
)
# read from a copy: chromium's console complains of canvases that are read often
PIXEL = """([id, x, y]) => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pen.drawImage(document.getElementById(id), x, y, 1, 1, 0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Shown:
    """A report in a browser.

    Attributes:
        page: Playwright's page.
        complaints: What its console said, and the errors of its script.
        requests: Every address that it asked for.
    """

    page: Any
    complaints: list[str]
    requests: list[str]

    def text(self, selector: str) -> str:
        """Return the text of the first element that fits, with a plain minus."""
        return str(self.page.locator(selector).first.inner_text()).replace("−", "-")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that fit."""
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]

    def point(self, selector: str, u: float, v: float) -> None:
        """Move the pointer to a place inside an element, in fractions of its size."""
        self.page.locator(selector).scroll_into_view_if_needed()
        box = self.page.locator(selector).bounding_box()
        self.page.mouse.move(box["x"] + u * box["width"], box["y"] + v * box["height"])

    def pixel(self, x: int, y: int) -> list[int]:
        """Return red, green and blue of a pixel of the gallery's picture."""
        return [int(value) for value in self.page.evaluate(PIXEL, ["viewer", x, y])]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with every artifact of a tiny run, and its report."""
    root = tmp_path_factory.mktemp("report")
    write_folder(root / "photos")
    zsseg("fetch-data", "folder", "--root", root / "photos", "--workspace", root)
    zsseg("make-split", "--unseen", "cow,sheep", "--workspace", root)
    zsseg("train", "--epochs", 1, "--anchors", "none", "--workspace", root)
    zsseg("eval", "--workspace", root)
    zsseg("predict", root / "data.h5", "--workspace", root, "--pictures", root / "pictures")
    result = zsseg("visualize", "--report", root / "report.html", "--words", 300, "--workspace", root)
    assert "data, labels, split, model, scores, predictions, 2 photos" in " ".join(result.stdout.split())
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless chromium, or skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; install it (Debian: apt-get install chromium) to test the report's page")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it drives chromium")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


def opened(browser: Any, path: Path, **options: Any) -> Shown:
    """Open a report from disk, with no network."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a machine may be busy
    shown = Shown(page, [], [])
    page.on("console", lambda message: shown.complaints.append(message.text))
    page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    page.on("request", lambda request: shown.requests.append(request.url))
    page.goto(path.as_uri())
    return shown


@pytest.fixture
def shown(browser: Any, space: Path) -> Iterator[Shown]:
    """Open the report of the tiny run; whatever a test does there, the console stays empty."""
    shown = opened(browser, space / "report.html")
    shown.page.wait_for_selector("#viewer[data-ready]")
    yield shown
    shown.page.context.close()
    assert shown.complaints == []


def inside(path: Path) -> dict[str, Any]:
    """Return the data inside a report."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_same_artifacts_give_the_same_bytes(space: Path, tmp_path: Path) -> None:
    """Two reports of one run are equal, and hold no path of this machine."""
    given = [space / f"{kind}.h5" for kind in KINDS]
    write_report(tmp_path / "again.html", given, ReportConfig(words=300))
    content = (tmp_path / "again.html").read_bytes()
    assert content == (space / "report.html").read_bytes()
    assert str(space).encode() not in content


def test_numbers_are_the_artifacts_own(space: Path) -> None:
    """Scores of classes, the confusion matrix and the curve are what the artifacts say."""
    content = inside(space / "report.html")
    with open_artifact(space / "scores.h5", "scores") as scores:
        matrix = scores.array("confusion")
        curve = read_curve(scores)
        assert content["confusion"] == matrix.tolist()
        each = metrics.iou(matrix)
        for row in content["classes"]:
            assert row["iou"] == (None if np.isnan(each[row["id"]]) else pytest.approx(each[row["id"]], abs=1e-6))
        assert curve is not None
        if content["curve"] is not None:
            assert content["curve"]["harmonic"][curve.zero] == pytest.approx(curve.harmonic[curve.zero], abs=1e-6)
    with open_artifact(space / "model.h5", "model") as model:
        assert content["history"]["loss"] == pytest.approx(model.array("loss").tolist(), abs=1e-5)
        assert content["unseen"] == model.array("unseen").tolist()


def test_refusals(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reported on gets one line, before anything is written."""
    out, data = tmp_path / "r.html", space / "data.h5"
    cases: list[tuple[list[Path], ReportConfig, type[ZssegError], str]] = [
        ([], ReportConfig(), ArtifactError, "no artifact to report on"),
        ([data, data], ReportConfig(), ArtifactError, "a second data beside .*; a report takes one artifact of a kind"),
        ([data], ReportConfig(limit=0), SettingError, "--limit 0: expected 1 or more photos"),
        ([data], ReportConfig(words=70_000), SettingError, "--words 70000: expected 0 to 60,000"),
        ([tmp_path / "none.h5"], ReportConfig(), ArtifactError, "no such file"),
        ([data, write_split(tmp_path / "other.h5")], ReportConfig(), ArtifactError, "disagree: class 1 is"),
        ([space / "labels.h5"], ReportConfig(space="umap"), SettingError, "needs the package umap-learn"),
    ]
    monkeypatch.setitem(sys.modules, "umap", None)
    for given, config, kind, says in cases:
        with pytest.raises(kind, match=says):
            write_report(out, given, config)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(ArtifactError, match="exists already; add --force"):
        write_report(out, [data])
    assert out.read_text() == "mine"


def test_predictions_of_words_are_left_out(tmp_path: Path) -> None:
    """Predictions of a vocabulary, such as stand in a workspace after trying words, stop no report of the rest."""
    data = write_data(tmp_path / "data.h5", ["a", "b"])
    maps = [encode_label_map(np.zeros(SIZE, np.uint8))]
    words = write(
        tmp_path / "predictions.h5", "predictions", {"vocabulary": 5000}, names=["background", "zebra"], ids=["a"],
        sources=["a.jpg"], label_maps=maps, mean_scores=np.zeros((1, 2)), areas=np.array([[SIZE[0] * SIZE[1], 0]]),
    )  # fmt: skip
    made = write_report(tmp_path / "r.html", [data, words])
    assert made.kinds == ("data",)
    assert made.notes == (
        "predictions.h5 holds other words than the classes and is left out; it can be reported on alone",
    )
    assert write_report(tmp_path / "alone.html", [words]).kinds == ("predictions",)


def test_artifacts_of_other_runs_are_noted(space: Path, tmp_path: Path) -> None:
    """Scores beside a model that they are not of are shown, with a note on the page."""
    with open_artifact(space / "scores.h5", "scores") as scores:
        fields = {name: scores.array(name) for name in ("seen", "unseen", "confusion", "confusion_vanilla")}
        names = scores.strings("names")
        counts = scores.array("images_per_class")
    other = tmp_path / "model.h5"
    write(other, "model", {"model": "lite0"}, names=names, seen=fields["seen"], unseen=fields["unseen"], loss=[1.0],
          lr=[0.1], val_seen_miou=[0.5], weights={"w": np.zeros(1)})  # fmt: skip
    assert counts.size
    summary = write_report(tmp_path / "r.html", [space / "scores.h5", other])
    assert summary.notes == ("scores.h5 was made from another model than model.h5",)
    assert inside(tmp_path / "r.html")["notes"] == list(summary.notes)


def test_run_lengths_hold_every_pixel() -> None:
    """A label map comes back from its runs, also one with a run longer than a uint16."""
    rng = np.random.default_rng(0)
    for label_map in (
        np.zeros((400, 500), np.uint8),
        rng.integers(0, 3, (20, 31), dtype=np.uint8),
        np.eye(3, dtype=np.uint8),
    ):
        packed = run_lengths(label_map)
        values = np.frombuffer(base64.b64decode(packed["values"]), np.uint8)
        lengths = np.frombuffer(base64.b64decode(packed["lengths"]), "<u2")
        np.testing.assert_array_equal(np.repeat(values, lengths), label_map.ravel())


def test_nothing_in_the_data_can_end_its_script() -> None:
    """Markup in a name is escaped, comes back as it was, and the page forbids itself to load anything."""
    text = render({"names": list(HOSTILE)}).decode()
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert not set("<>&\u2028") & set(data[1])
    assert json.loads(data[1]) == {"names": list(HOSTILE)}
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)\s*=\s*"(?!#|data:)', text)


def interpolated(cells: gallery.Cells, u: float, v: float, index: int) -> float:
    """Return a class's score at a place from the cells, as the page does."""
    steps = np.zeros(cells.ids.shape[:2])
    for row, column in np.ndindex(*steps.shape):
        kept = cells.scores[row, column][cells.ids[row, column] == index]
        steps[row, column] = kept[0] if kept.size else 0
    x, y = np.clip(u * cells.columns - 0.5, 0, steps.shape[1] - 1), np.clip(v * cells.rows - 0.5, 0, steps.shape[0] - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, steps.shape[1] - 1), min(top + 1, steps.shape[0] - 1)
    above = steps[top, left] * (1 - (x - left)) + steps[top, right] * (x - left)
    below = steps[bottom, left] * (1 - (x - left)) + steps[bottom, right] * (x - left)
    return cells.low + float(above * (1 - (y - top)) + below * (y - top)) / 65535 * (cells.high - cells.low)


@pytest.mark.parametrize("size", [(64, 64), (61, 67), (30, 83)])
def test_cells_give_the_models_own_scores(size: tuple[int, int]) -> None:
    """Interpolated between cells every class has the score that the model gives the pixel, padding or not."""
    rows, columns = (-(-length // 32) * 4 for length in size)  # padded to 32, at stride 8
    generator = torch.Generator().manual_seed(1)
    grid = ScoreGrid(torch.randn(4, rows, columns, generator=generator), 8, size, size)
    cells = gallery.best_classes(grid)
    full = torch.cat([scores for _, scores in score_tiles(grid)], dim=1).numpy()
    for y in range(0, size[0], 7):
        for x in range(0, size[1], 5):
            for index in range(4):
                place = (x + 0.5) / size[1], (y + 0.5) / size[0]
                assert interpolated(cells, *place, index) == pytest.approx(float(full[index, y, x]), abs=2e-4)


def test_classes_that_cannot_be_predicted_are_left_out() -> None:
    """A class that scores `NEVER` is in no cell and does not widen the range that the others are rounded to."""
    scores = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    scores[1] = NEVER
    cells = gallery.best_classes(ScoreGrid(scores, 8, (32, 32), (32, 32)))
    assert set(np.unique(cells.ids)) == {0, 2, 255}
    assert cells.low > -10


def test_fine_grids_are_averaged() -> None:
    """A grid of too many cells gets fewer, and a flat score stays what it is up to the border."""
    grid = ScoreGrid(torch.stack([torch.full((128, 128), 2.0), torch.zeros(128, 128)]), 4, (509, 500), (509, 500))
    cells = gallery.best_classes(grid)
    assert cells.ids.shape[0] * cells.ids.shape[1] <= gallery.MAX_CELLS
    for place in ((0.0, 0.0), (0.999, 0.999), (0.5, 0.1)):
        assert interpolated(cells, *place, 0) == pytest.approx(2.0, abs=1e-3)


def test_words_are_the_nearest_of_each_cell() -> None:
    """Each cell's words are those with the smallest distance to its embedding, smallest first."""
    rng = np.random.default_rng(0)
    words = gallery.Words(tuple("abcdefgh"), rng.normal(size=(8, 3)).astype(np.float32))
    embeddings = torch.from_numpy(rng.normal(size=(3, 2, 4)).astype(np.float32))
    found = gallery.embed(ScoreGrid(embeddings, 16, (32, 64), (32, 64)), words)
    assert (found.rows, found.columns) == (2, 4)
    for row, column in np.ndindex(2, 4):
        distances = ((embeddings[:, row, column].numpy() - words.vectors) ** 2).sum(axis=1)
        assert found.words[row, column].tolist() == np.argsort(distances)[: gallery.NEAREST_WORDS].tolist()


def test_samples_come_from_every_class() -> None:
    """A class of few cells is sampled as often as the background, void cells never, and truth is the place's own."""
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[:8, :16], truth[32:] = 3, 255
    embeddings = np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8)
    embedded = gallery.Embedded(embeddings, 8.0, 8.0, np.zeros((8, 8, 1), np.uint16))
    found = gallery.sample(embedded, truth, truth, count=4, rng=np.random.default_rng(0))
    assert sorted(set(found.truth.tolist())) == [0, 3]
    for place, vector in zip(found.places, found.embeddings, strict=True):
        np.testing.assert_array_equal(vector, embeddings[:, int(place[1] * 8), int(place[0] * 8)])


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_planes_keep_groups_apart(method: Any) -> None:
    """Two far groups of points lie apart in the plane, the same plane each time."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 6)) + np.repeat([[0.0], [30.0]], 20, axis=0)
    plane = in_plane(points, method)
    assert plane.shape == (40, 2)
    np.testing.assert_array_equal(plane, in_plane(points, method))
    centres = plane[:20].mean(axis=0), plane[20:].mean(axis=0)
    spread = max(plane[:20].std(), plane[20:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    assert in_plane(points[:2], method).shape == (2, 2)


def test_umap_is_asked_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP, which takes a minute to compile itself, gets the points, a seed and no more neighbours than there are."""
    asked: dict[str, Any] = {}

    class UMAP:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = UMAP  # type: ignore[attr-defined]
    points = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_array_equal(in_plane(points, "umap", seed=5), points[:, :2])
    assert asked["random_state"] == 5
    assert asked["n_neighbors"] == 8


def test_fifty_photos_take_less_than_twenty_megabytes(data_root: Path) -> None:
    """Real photos with real label maps and the densest scores take less than a fiftieth of 20 MB each."""
    voc = data_root / "voc-animals" / "VOC2012"
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:6]
    sizes = []
    for name in names:
        photo = decode_image(voc / "JPEGImages" / f"{name}.jpg", name)
        truth = decode_label_map(voc / "SegmentationClass" / f"{name}.png", name)
        scores = torch.randn(21, 64, 64, generator=torch.Generator().manual_seed(0))
        cells = gallery.best_classes(ScoreGrid(scores, 8, (512, 512), (512, 512)))
        words = np.ones((64, 64, gallery.NEAREST_WORDS), np.uint16)
        embedded = gallery.Embedded(np.zeros((2, 64, 64), np.float32), 64.0, 64.0, words)
        predicted = np.where(truth == 255, 0, truth)
        each = gallery.exhibit(name, photo, truth, predicted, classes=21, cells=cells, embedded=embedded)
        from zsseg.report import _exhibited

        sizes.append(len(json.dumps(_exhibited(each))))
    assert np.mean(sizes) < 20e6 / 50


# --- in a browser -----------------------------------------------------------------------------------------------------


def test_it_opens_without_network_or_complaint(shown: Shown, space: Path) -> None:
    """Every part is there, nothing but the file itself and pictures inside it is asked for."""
    assert shown.texts("main h2") == [
        "Run", "Classes", "Seen and unseen", "Confusion", "Training", "Joint space", "Gallery",
    ]  # fmt: skip
    assert [url for url in shown.requests if not url.startswith("data:")] == [(space / "report.html").as_uri()]
    with open_artifact(space / "scores.h5", "scores") as scores:
        result = metrics.score(
            scores.array("confusion"), seen=scores.array("seen").tolist(), unseen=scores.array("unseen").tolist()
        )
    assert shown.texts(".tile b")[:3] == [
        f"{value:.3f}" for value in (result.seen_miou, result.unseen_miou, result.harmonic_miou)
    ]
    shown.page.locator("summary", has_text="model.h5").click()
    assert "lite0" in shown.text("details[open]")


def test_the_table_sorts(shown: Shown) -> None:
    """A click on a title sorts, a second one turns the order, the keyboard does the same; undefined comes last."""
    rows = "#classes tbody tr td:nth-child({})"
    assert shown.texts(rows.format(1))[0] == "background"
    shown.page.get_by_role("button", name="class", exact=True).click()
    names = [name.split(" ")[0] for name in shown.texts(rows.format(1))]
    assert names == sorted(names)
    shown.page.get_by_role("button", name="IoU", exact=True).focus()
    for key, turned in (("Enter", True), ("Space", False)):
        shown.page.keyboard.press(key)
        values = [float(value.split()[0]) for value in shown.texts(rows.format(2)) if value.strip() != "–"]
        assert values == sorted(values, reverse=turned)
        order = "descending" if turned else "ascending"
        assert shown.page.locator("#classes th").nth(1).get_attribute("aria-sort") == order


def scores_at(space: Path, name: str) -> tuple[NDArray[np.float32], UInt8, UInt8, tuple[str, ...]]:
    """Return what the model itself says of a photo: scores of every pixel, label map, truth and class names."""
    model = load_model(space / "model.h5", device="cpu")
    with open_artifact(space / "data.h5", "data") as data:
        place = data.strings("ids").index(name)
        photo = decode_image(data.bytes_at("images", place), name)
        truth = decode_label_map(data.bytes_at("label_maps", place), name)
    calibration = chosen_calibration(model, "model", None)
    grid = calibrate(score_image(model, photo, max_side=1024), calibration)
    scores = torch.cat([tile for _, tile in score_tiles(grid)], dim=1).numpy()
    return scores, model.predict(photo).label_map, truth, model.names


def test_the_place_under_the_pointer_is_read_out(shown: Shown, space: Path) -> None:
    """Class, truth, score and runner-up of a place are what the model says of this very pixel."""
    shown.page.locator("[data-photo='0']").click()
    scores, predicted, truth, names = scores_at(space, shown.text("#caption b"))
    for x, y in ((3, 5), (40, 20), (60, 61), (20, 45), (31, 32)):
        shown.point("#viewer", (x + 0.5) / 64, (y + 0.5) / 64)
        assert shown.text("#place .soft") == f"place {x}, {y}"
        best = int(predicted[y, x])
        assert shown.text("#place-class").startswith(names[best])
        assert ("(unseen)" in shown.text("#place-class")) == (names[best] in ("cow", "sheep"))
        known = "void" if truth[y, x] == 255 else names[truth[y, x]]
        assert known in shown.text("#place-truth")
        if truth[y, x] != 255:
            assert ("right" if best == truth[y, x] else "wrong") in shown.text("#place-truth")
        others = np.delete(scores[:, y, x], best)
        own, rival = map(float, re.findall(r"-?\d+\.\d+", shown.text("#place-runner-up")))
        assert own == pytest.approx(scores[best, y, x], abs=2e-3)
        assert rival == pytest.approx(others.max(), abs=2e-3)
        assert len(shown.text("#place-words").split(":")[1].split(",")) == gallery.NEAREST_WORDS


def test_layers_paint_what_they_say(shown: Shown, space: Path) -> None:
    """At full opacity truth and prediction have their classes' colours; error is orange or blue; photo is the photo."""
    shown.page.locator("[data-photo='0']").click()
    _, predicted, truth, _ = scores_at(space, shown.text("#caption b"))
    shown.page.evaluate("document.getElementById('opacity').value = 100")
    shown.page.locator("#opacity").dispatch_event("input")
    colours = palette("voc").tolist()
    places = [(5, 5), (50, 8), (9, 55), (55, 50)]
    shown.page.get_by_label("truth", exact=True).check()
    assert [shown.pixel(x, y) for x, y in places] == [colours[truth[y, x]] for x, y in places]
    shown.page.get_by_label("prediction", exact=True).check()
    assert [shown.pixel(x, y) for x, y in places] == [colours[predicted[y, x]] for x, y in places]
    shown.page.get_by_label("photo", exact=True).check()
    plain = [shown.pixel(x, y) for x, y in places]
    shown.page.get_by_label("error", exact=True).check()
    for (x, y), photo in zip(places, plain, strict=True):
        red, _, blue = shown.pixel(x, y)
        if truth[y, x] != predicted[y, x]:
            assert [red, blue] == [230, 0]
        else:
            assert shown.pixel(x, y) != [230, 97, 0]
            assert shown.pixel(x, y) != photo


def test_the_gallery_filters_and_orders(shown: Shown) -> None:
    """A class keeps the photos that hold it, in truth or prediction, and worst first puts its lowest IoU first."""
    content = shown.page.evaluate("DATA.gallery.map(({ present, ious }) => ({ present, ious }))")
    names = shown.page.evaluate("DATA.names")
    shown.page.locator("#order").select_option("worst")
    means = [float(np.mean(list(each["ious"].values()))) for each in content]
    assert (
        shown.page.locator("#strip button").evaluate_all("all => all.map((b) => +b.dataset.photo)")
        == np.argsort(means, kind="stable").tolist()
    )
    for index in sorted({index for each in content for index in each["present"]}):
        shown.page.locator("#filter").select_option(str(index))
        kept = [photo for photo, each in enumerate(content) if index in each["present"]]
        kept.sort(key=lambda photo: content[photo]["ious"].get(str(index), 2.0))
        found = shown.page.locator("#strip button").evaluate_all("all => all.map((b) => +b.dataset.photo)")
        assert found == kept, names[index]
        assert shown.text("#count") == f"{len(kept)} of {len(content)} photos"
    row = shown.page.locator("#classes tbody tr", has_text="dog")
    row.get_by_role("button").click()
    assert shown.page.locator("#filter").input_value() == str(names.index("dog"))


def test_the_gallery_obeys_the_keyboard(shown: Shown) -> None:
    """With the focus on the picture arrows move the place, letters change the layer, brackets turn the photo."""
    shown.page.locator("#viewer").focus()
    assert shown.text("#place .soft") == "place 32, 32"
    for key, place in (
        ("ArrowRight", "40, 32"), ("ArrowDown", "40, 40"), ("Shift+ArrowLeft", "39, 40"), ("Shift+ArrowUp", "39, 39"),
    ):  # fmt: skip
        shown.page.keyboard.press(key)
        assert shown.text("#place .soft") == f"place {place}"
    for _ in range(20):
        shown.page.keyboard.press("ArrowRight")
    assert shown.text("#place .soft") == "place 63, 39"
    for key, layer in (("t", "truth"), ("e", "error"), ("o", "photo"), ("p", "prediction")):
        shown.page.keyboard.press(key)
        assert shown.page.locator("input[name=layer]:checked").input_value() == layer
    first = shown.text("#caption b")
    shown.page.keyboard.press("]")
    assert shown.text("#caption b") != first
    shown.page.keyboard.press("[")
    assert shown.text("#caption b") == first


def test_the_confusion_matrix_is_read_out(shown: Shown, space: Path) -> None:
    """Arrow keys walk through the cells and the pointer finds them; the share is the matrix's own."""
    with open_artifact(space / "scores.h5", "scores") as scores:
        matrix, names = scores.array("confusion"), scores.strings("names")
    present = [i for i in range(5) if matrix[i].any() or matrix[:, i].any()]
    order = [i for i in present if names[i] not in ("cow", "sheep")] + [
        i for i in present if names[i] in ("cow", "sheep")
    ]
    shown.page.locator("#confusion-matrix").focus()
    for key, row, column in (("ArrowDown", 1, 0), ("ArrowRight", 1, 1), ("ArrowUp", 0, 1), ("ArrowLeft", 0, 0)):
        shown.page.keyboard.press(key)
        truth, predicted = order[row], order[column]
        said = shown.text("#confusion-readout")
        assert f"truth: {names[truth]}" in said
        assert f"predicted: {names[predicted]}" in said
        share = 100 * matrix[truth, predicted] / matrix[truth].sum() if matrix[truth].sum() else None
        assert (f"{share:.1f} % ({matrix[truth, predicted]:,} pixels)" if share is not None else "no true") in said
    shown.point("#confusion-matrix", 0.985, 0.985)
    assert f"truth: {names[order[-1]]}" in shown.text("#confusion-readout")
    assert f"predicted: {names[order[-1]]}" in shown.text("#confusion-readout")


def test_charts_are_read_out(shown: Shown, space: Path) -> None:
    """The slider and the pointer move along a curve, and the numbers are the artifact's."""
    with open_artifact(space / "model.h5", "model") as model:
        loss = model.array("loss")
    assert shown.text("#loss-chart-readout") == f"step 1: loss {loss[0]:.4f}"
    shown.page.locator("#loss-chart-slider").focus()
    shown.page.keyboard.press("End")
    assert shown.text("#loss-chart-readout") == f"step {len(loss)}: loss {loss[-1]:.4f}"
    shown.point("#loss-chart svg", 0.01, 0.5)
    assert shown.text("#loss-chart-readout") == f"step 1: loss {loss[0]:.4f}"
    with open_artifact(space / "scores.h5", "scores") as scores:
        curve = read_curve(scores)
    assert curve is not None
    numbers = f"seen {curve.seen[curve.zero]:.3f}, unseen {curve.unseen[curve.zero]:.3f}"
    assert numbers in shown.text("#curve-chart-readout")
    shown.page.locator("#curve-chart-slider").focus()
    shown.page.keyboard.press("Home")
    assert f"seen {curve.seen[0]:.3f}, unseen {curve.unseen[0]:.3f}" in shown.text("#curve-chart-readout")


def test_the_joint_space_answers(shown: Shown) -> None:
    """The pointer and the arrow keys name points, boxes hide kinds of them, Enter opens a pixel's place."""
    at = shown.page.locator("#space-plane rect[width='12']").first.bounding_box()
    shown.page.locator("#space-plane").scroll_into_view_if_needed()
    at = shown.page.locator("#space-plane rect[width='12']").first.bounding_box()
    shown.page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    assert "cow (unseen)" in shown.text("#space-readout")
    assert "class vector of" in shown.text("#space-readout")
    shown.page.locator("#space-unseen").uncheck()
    shown.page.locator("#space-classes").uncheck()
    visible = "all => all.filter((node) => node.getAttribute('visibility') !== 'hidden').length"
    assert shown.page.locator("#space-plane text").evaluate_all(visible) == 0
    assert shown.page.locator("#space-plane rect[width='12']").evaluate_all(visible) == 0
    assert "pixel" in shown.text("#space-readout")
    shown.page.locator("#space-plane").focus()
    before = shown.text("#space-readout")
    said = set()
    for _ in range(8):
        shown.page.keyboard.press("ArrowRight")
        said.add(shown.text("#space-readout"))
    assert len(said | {before}) > 1
    assert "nearest words:" in shown.text("#space-readout")
    photo = shown.text("#space-readout").splitlines()[-1].removeprefix("in ")
    predicted = re.search(r"predicted: (\w+)", shown.text("#space-readout"))
    shown.page.keyboard.press("Enter")
    assert shown.text("#caption b") == photo
    assert predicted
    assert shown.text("#place-class").startswith(predicted[1])
    shown.page.locator("#space-pixels").uncheck()
    assert shown.text("#space-readout") == "nothing is shown"


def test_colours_follow_the_system_and_the_button(browser: Any, space: Path) -> None:
    """The page is dark where the system is, the button overrules it, and the matrix is painted anew."""
    luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    cell = ["confusion-matrix", 130, 174]
    found = {}
    for scheme in ("light", "dark"):
        shown = opened(browser, space / "report.html", color_scheme=scheme)
        found[scheme] = shown.page.evaluate(luminance), shown.page.evaluate(PIXEL, cell)
        if scheme == "dark":
            button = shown.page.locator("#theme")
            assert "as the system has them" in button.get_attribute("aria-label")
            button.click()
            assert (shown.page.evaluate(luminance), shown.page.evaluate(PIXEL, cell)) == found["light"]
            button.click()
            assert shown.page.evaluate(luminance) == found["dark"][0]
        assert shown.complaints == []
        shown.page.context.close()
    assert found["light"][0] > 600 > 200 > found["dark"][0]


def test_everything_can_be_reached_and_has_a_name(shown: Shown) -> None:
    """Tab goes to every control, each shows that it has the focus and has a name for a screen reader."""
    controls = "a[href], button, select, input, summary, [tabindex='0']"
    nameless = shown.page.locator(controls).evaluate_all(
        "all => all.filter((n) => !(n.getAttribute('aria-label') || n.innerText || n.textContent.trim() ||"
        " (n.labels && n.labels.length && n.labels[0].innerText.trim()))).map((n) => n.outerHTML.slice(0, 90))"
    )
    assert nameless == []
    reached, outlines = set(), []
    for _ in range(shown.page.locator(controls).count() + 5):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        outlines.append(shown.page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    wanted = {"theme", "curve-chart-slider", "confusion-matrix", "space-plane", "filter", "order", "opacity", "viewer"}
    assert wanted <= reached
    assert "none" not in outlines[:-8]


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    """Names and ids that look like markup or code are shown as they are and run nothing."""
    rng = np.random.default_rng(0)
    data = write_data(tmp_path / "plain.h5", ["a", "b", "c"])
    with open_artifact(data, "data") as source:
        images = [source.bytes_at("images", i) for i in range(3)]
        maps = [source.bytes_at("label_maps", i) for i in range(3)]
        sizes = source.array("sizes")
    ids = ["<b>id</b>", HOSTILE[1], "\"]');--"]
    hostile = write(tmp_path / "data.h5", "data", names=HOSTILE, ids=ids, images=images, label_maps=maps, sizes=sizes,
                    train=[0], val=[1, 2])  # fmt: skip
    given = [
        hostile,
        write_scores(tmp_path / "scores.h5", rng.integers(1, 99, (5, 5)), HOSTILE),
        write_labels(tmp_path / "labels.h5", HOSTILE, rng.normal(size=(5, 6))),
    ]
    write_report(tmp_path / "r.html", given)
    shown = opened(browser, tmp_path / "r.html")
    shown.page.wait_for_selector("#viewer[data-ready]")
    assert shown.page.evaluate("window.hacked") is None
    assert shown.page.locator("main img[src='x'], main b b").count() == 0
    cells = shown.page.locator("#classes tbody td:first-child").evaluate_all("all => all.map((n) => n.textContent)")
    assert [cell.removesuffix(" (unseen)") for cell in cells] == list(HOSTILE)
    assert shown.page.locator("#caption b").text_content() == ids[1]
    assert shown.complaints == []
    shown.page.context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_any_artifact_alone_makes_a_page(browser: Any, kind: str, tmp_path: Path) -> None:
    """A report of a single artifact shows its part and no error."""
    rng = np.random.default_rng(0)
    path = {
        "data": lambda: write_data(tmp_path / "x.h5", ["a", "b"], lacking=[0]),
        "labels": lambda: write_labels(tmp_path / "x.h5", VOC_NAMES, rng.normal(size=(21, 6))),
        "split": lambda: write_split(tmp_path / "x.h5"),
        "model": lambda: write_model(tmp_path / "x.h5", np.array([1.0, np.nan, 0.01]), []),
        "scores": lambda: write_scores(tmp_path / "x.h5", np.zeros((5, 5), np.int64)),
        "predictions": lambda: write_predictions(tmp_path / "x.h5", ["a", "b"]),
    }[kind]()
    write_report(tmp_path / "r.html", [path])
    shown = opened(browser, tmp_path / "r.html")
    expected = {"data": "Gallery", "labels": "Joint space", "model": "Training", "predictions": "Gallery",
                "scores": "Classes", "split": "Run"}[kind]  # fmt: skip
    assert expected in shown.texts("main h2")
    assert shown.complaints == []
    shown.page.context.close()
