"""`zsseg.load` and what it gives: a model for Python and notebooks.

    model = zsseg.load("model.h5")
    found = model.predict("photo.jpg")                          # over the model's own classes
    found = model.predict("photo.jpg", classes=["zebra", "grass"])  # over these words alone
    found.label_map, found.shares, found.overlay

It does what the commands do, through the same functions, and prints nothing. In a notebook a result shows its overlay
and a table of its classes.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsseg.calibration import Calibration
from zsseg.config import Calibrated, Device, Precision, PredictConfig
from zsseg.images import UInt8, encode_label_map, encode_png
from zsseg.inference import Model as Scorer
from zsseg.inference import as_rgb, calibrate, chosen_calibration, load_model, predict_grid, score_image
from zsseg.open_vocabulary import NEAREST, REGIONS, OpenModel, Reading, new_words, read_regions, with_words
from zsseg.pictures import legend_overlay
from zsseg.recipe import Places, Recipe, embed_words, frequent_words, read_recipe
from zsseg.winners import ScoreGrid, score_tiles


@dataclass(frozen=True, eq=False)
class Result:
    """What a model says of one image.

    Attributes:
        label_map: Class id of each pixel, uint8 (H, W).
        names: Class names in index order, C of them.
        unseen: Ids of the classes that no training pixel showed, added words among them.
        areas: Pixels given to each class, int64 (C,).
        mean_scores: Mean score of those pixels, float32 (C,); NaN where there are none.
        image: What was looked at, uint8 RGB (H, W, 3).
    """

    label_map: UInt8
    names: tuple[str, ...]
    unseen: tuple[int, ...]
    areas: NDArray[np.int64]
    mean_scores: NDArray[np.float32]
    image: UInt8 = field(repr=False)
    _grid: ScoreGrid = field(repr=False)
    _calibration: Calibration = field(repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the image's pixels of each class that was found, largest first."""
        order = np.argsort(-self.areas, kind="stable")
        return {self.names[index]: float(self.areas[index] / self.areas.sum()) for index in order if self.areas[index]}

    @property
    def scores(self) -> NDArray[np.float32]:
        """Calibrated scores on the model's coarse grid, float32 (C, h, w); larger is nearer."""
        return np.asarray(calibrate(self._grid, self._calibration).scores.cpu().numpy(), dtype=np.float32)

    def score_map(self, name: str) -> NDArray[np.float32]:
        """Return the calibrated score of one class at every pixel, float32 (H, W).

        Raises:
            ValueError: It is none of `names`.
        """
        row = self.names.index(name)
        grid = calibrate(self._grid, self._calibration)
        scores = np.empty(grid.size, dtype=np.float32)
        one = ScoreGrid(grid.scores[row : row + 1], grid.stride, grid.input_size, grid.size)
        for rows, of_rows in score_tiles(one):
            scores[rows] = of_rows[0].cpu().numpy()
        return scores

    @cached_property
    def overlay(self) -> Image.Image:
        """The classes' colours over the image, with a legend."""
        return Image.fromarray(legend_overlay(self.image, self.label_map, self.names, unseen=self.unseen))

    def save(self, label_map: str | Path) -> None:
        """Write the label map as a palette PNG of class ids, as `zsseg predict` does."""
        Path(label_map).write_bytes(encode_label_map(self.label_map))

    def _repr_png_(self) -> bytes:
        return encode_png(np.asarray(self.overlay))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}{'*' if self.names.index(name) in self.unseen else ''}</td>"
            f"<td style='text-align:right'>{share:.1%}</td></tr>"
            for name, share in self.shares.items()
        )
        buffer = io.BytesIO()
        self.overlay.save(buffer, format="PNG")
        picture = "data:image/png;base64," + _base64(buffer.getvalue())
        note = "<p>* unseen in training</p>" if any(self.areas[list(self.unseen)]) else ""
        return (
            f"<img alt='classes over the photo' src='{picture}'>"
            f"<table><tr><th>class</th><th>share</th></tr>{rows}</table>{note}"
        )


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model. Made by `zsseg.load`.

    Attributes:
        path: model.h5.
        scorer: The network with its class vectors and calibration, see `inference.Model`.
        places: Where word vectors are looked for.
        labels: The labels artifact of a model that does not carry its recipe.
    """

    path: Path
    scorer: Scorer
    places: Places
    labels: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.scorer.names

    @property
    def seen(self) -> tuple[int, ...]:
        """Ids of the classes that it was trained on."""
        return self.scorer.seen

    @property
    def unseen(self) -> tuple[int, ...]:
        """Ids of the classes that no training pixel showed."""
        return self.scorer.unseen

    @cached_property
    def recipe(self) -> Recipe:
        """How words come into its joint space.

        Raises:
            SettingError: A softmax model has none.
            ArtifactError: The model does not carry it.
        """
        return read_recipe(self.path, self.labels)

    def predict(
        self,
        image: UInt8 | Image.Image | str | Path,
        classes: Sequence[str] | None = None,
        *,
        add: bool = False,
        calibration: Calibrated = PredictConfig.calibration,
        seen_bias: float | None = PredictConfig.seen_bias,
        max_side: int = PredictConfig.max_side,
    ) -> Result:
        """Label every pixel of an image.

        Args:
            image: A path, a PIL image, or uint8 RGB (H, W, 3).
            classes: Words to predict; None: the model's own classes, seen and unseen.
            add: Predict them beside the model's own classes instead of alone.
            calibration: "none" leaves out the calibration that the model carries.
            seen_bias: Subtracted from the score of every seen class instead of the model's calibration.
            max_side: Larger images are scored at this long side, in pixels; the label map keeps the image's size.

        Raises:
            DataError: It is no image.
            SettingError: A word is unknown, or vectors that the recipe names are not there.
        """
        pixels = as_rgb(image)
        if classes is None:
            shown, grid = self.scorer, score_image(self.scorer, pixels, max_side=max_side)
        else:
            asked = self._asked(tuple(classes), add=add)
            shown, grid = asked.shown, asked.score(pixels, max_side=max_side)
        chosen = chosen_calibration(shown, calibration, seen_bias)
        found = predict_grid(shown, grid, chosen)
        return Result(found.label_map, found.names, shown.unseen, found.areas, found.mean_scores, pixels, grid, chosen)

    def read(
        self,
        image: UInt8 | Image.Image | str | Path,
        vocabulary: int | None = 5000,
        *,
        regions: int = REGIONS,
        nearest: int = NEAREST,
        max_side: int = PredictConfig.max_side,
    ) -> Reading:
        """Read an image out as words: its regions, each with the nearest words of a vocabulary.

        Args:
            image: A path, a PIL image, or uint8 RGB (H, W, 3).
            vocabulary: The most frequent words of the model's word vectors, so many; None: all.
            regions: How many at most.
            nearest: How many words of each.
            max_side: Larger images are embedded at this long side, in pixels.

        Raises:
            DataError: It is no image.
            SettingError: Vectors that the recipe names are not there.
        """
        pixels = as_rgb(image)
        if vocabulary not in self._vocabularies:
            self._vocabularies[vocabulary] = frequent_words(vocabulary, self.recipe, self.places)
        words, rows = self._vocabularies[vocabulary]
        return read_regions(self.scorer, pixels, words, rows, max_side=max_side, regions=regions, nearest=nearest)

    def export_onnx(self, path: str | Path, *, force: bool = False) -> None:
        """Write the network with its class vectors and calibration as ONNX; see `zsseg.export`.

        Raises:
            SettingError: The packages onnx and onnxscript are not installed.
            ArtifactError: The output is refused.
        """
        from zsseg.export import export_onnx

        export_onnx(self.scorer, Path(path), force=force)

    def _asked(self, classes: tuple[str, ...], *, add: bool) -> OpenModel:
        key: tuple[str | bool, ...] = (*classes, add)
        if key not in self._words:
            added = new_words(self.scorer, classes)
            vectors = embed_words(added, self.recipe, self.places) if added else None
            self._words.clear()  # the latest is the one that is asked for again
            self._words[key] = with_words(self.scorer, classes, vectors, add=add)
        return self._words[key]

    @cached_property
    def _words(self) -> dict[tuple[str | bool, ...], OpenModel]:
        return {}

    @cached_property
    def _vocabularies(self) -> dict[int | None, tuple[list[str], NDArray[np.float32]]]:
        return {}


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    vectors: Sequence[str | Path] = (),
    labels: str | Path | None = None,
) -> Model:
    """Load a trained model; see `zsseg.load`."""
    model = Path(path)
    places = Places(tuple(Path(file) for file in vectors), (model.parent, Path()))
    scorer = load_model(model, device=device, precision=precision)
    return Model(model, scorer, places, None if labels is None else Path(labels))


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()
