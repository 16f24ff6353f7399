"""The fields of every artifact: names, dtypes and symbolic shapes. `docs/artifacts.md` says the same in prose.

Shape symbols: N images, C classes, D embedding dims, S training steps, E epochs; other letters are
explained by the field. One symbol has one length throughout an artifact. The order of the fields is the
order of the digest. Dtypes: NumPy names; "str" is a UTF-8 string; "bytes" is a variable-length row of
uint8 (an encoded image); "arrays" is a group of named arrays of any dtype and shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1

Kind = Literal["data", "labels", "split", "model", "scores", "predictions", "features"]


@dataclass(frozen=True)
class Field:
    """One field of an artifact.

    Attributes:
        dtype: NumPy dtype name, "str", "bytes" or "arrays".
        shape: Symbols or literal lengths, one an axis.
        meaning: What it holds, in a line.
        optional: Whether an artifact may lack it.
    """

    dtype: str
    shape: tuple[str | int, ...]
    meaning: str
    optional: bool = False


SCHEMA: dict[Kind, dict[str, Field]] = {
    "data": {
        "names": Field("str", ("C",), "class names in index order"),
        "ids": Field("str", ("N",), "image ids, unique"),
        "images": Field("bytes", ("N",), "the image files' bytes, unchanged if JPEG or PNG, else as PNG"),
        "label_maps": Field("bytes", ("N",), "PNG of class ids, 255 = void; empty where there is none"),
        "sizes": Field("int32", ("N", 2), "height and width in pixels, upright"),
        "train": Field("int64", ("T",), "indices of the training images, ascending"),
        "val": Field("int64", ("V",), "indices of the validation images, ascending"),
    },
    "labels": {
        "names": Field("str", ("C",), "class names in index order"),
        "words": Field("str", ("C",), "the vocabulary tokens behind each name, joined by +, sources by a bar"),
        "vectors": Field("float32", ("C", "D"), "class vectors in the joint space"),
        "raw": Field("float32", ("C", "R"), "word vectors before centring and PCA"),
        "mean": Field("float32", ("R",), "what was subtracted; zeros when not centred"),
        "components": Field("float32", ("D", "R"), "PCA axes, rows of unit length; without PCA a projection"),
        "explained_variance": Field("float32", ("D",), "share of the population's variance on each axis"),
    },
    "split": {
        "names": Field("str", ("C",), "class names in index order"),
        "seen": Field("int64", ("P",), "ids of the seen classes, ascending"),
        "unseen": Field("int64", ("Q",), "ids of the unseen classes, ascending"),
        "train": Field("int64", ("T",), "indices of the training images in data, after the policy"),
        "val": Field("int64", ("V",), "indices of the validation images in data"),
    },
    "model": {
        "names": Field("str", ("C",), "class names in index order"),
        "seen": Field("int64", ("P",), "ids of the seen classes, ascending"),
        "unseen": Field("int64", ("Q",), "ids of the unseen classes, ascending"),
        "vectors": Field("float32", ("C", "D"), "class vectors; absent from a softmax model", optional=True),
        "recipe_mean": Field("float32", ("R",), "mean of labels.h5, for words; absent likewise", optional=True),
        "recipe_components": Field("float32", ("D", "R"), "components of labels.h5; absent likewise", optional=True),
        "loss": Field("float32", ("S",), "training loss of each step"),
        "lr": Field("float32", ("S",), "learning rate of the head at each step"),
        "val_seen_miou": Field("float32", ("E",), "mIoU over seen classes, unseen pixels void, after each epoch"),
        "calibration_scale": Field("float32", ("C",), "what each class's score is multiplied by", optional=True),
        "calibration_bias": Field("float32", ("C",), "what is added to it", optional=True),
        "weights": Field("arrays", (), "parameters and buffers of the network, by name"),
        "optimizer": Field("arrays", (), "optimizer state; only while training is unfinished", optional=True),
        "pseudo_images": Field("int64", ("Z",), "indices of the images with pseudo-labels, likewise", optional=True),
        "pseudo_labels": Field("bytes", ("Z",), "PNG of their pseudo-labels, 255 where there is none", optional=True),
    },
    "scores": {
        "names": Field("str", ("C",), "class names in index order"),
        "seen": Field("int64", ("P",), "ids of the seen classes, ascending"),
        "unseen": Field("int64", ("Q",), "ids of the unseen classes, ascending"),
        "confusion": Field("int64", ("C", "C"), "pixels by true class (rows) and predicted class, all competing"),
        "confusion_vanilla": Field(
            "int64",
            ("C", "C"),
            "the same where only seen classes compete on seen pixels, only unseen on unseen",
        ),
        "images_per_class": Field("int64", ("C",), "photos whose label map holds the class"),
        "gap_edges": Field("float64", ("G",), "edges between the bins of the gap, ascending", optional=True),
        "gap_counts": Field(
            "int64", (4, "C", "B"), "hits, pixels by best seen class and bin; the same by best unseen", optional=True
        ),
    },
    "predictions": {
        "names": Field("str", ("C",), "class names in index order"),
        "ids": Field("str", ("N",), "image ids"),
        "sources": Field("str", ("N",), "file name of each image, without its folder"),
        "label_maps": Field("bytes", ("N",), "palette PNG of class ids at the image's own size"),
        "areas": Field("int64", ("N", "C"), "pixels given to each class"),
        "mean_scores": Field("float32", ("N", "C"), "mean score of those pixels; NaN where there are none"),
        "readings": Field("str", ("N",), "JSON of regions and their nearest words, with --vocabulary", optional=True),
    },
    "features": {
        "names": Field("str", ("C",), "class names of the data, in index order"),
        "images": Field("int64", ("N",), "indices of the images in data, ascending"),
        "shapes": Field("int32", ("N", "M", 3), "height, width and channels of each image's maps, finest first"),
        "maps": Field("float16", ("L",), "the numbers of all maps one after the other, channels last"),
    },
}
