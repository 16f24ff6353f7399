"""Every default has its home here: frozen settings of the commands, readable without torch.

`cli.py` shows these values in `--help`, the artifacts record them in their `params` attribute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Normalize = Literal["unit", "none"]
Reduce = Literal["pca", "none"]
Policy = Literal["ignore", "drop"]
ModelName = Literal["lite0", "fcn32s", "fcn16s", "fcn8s", "aspp", "hourglass", "vit"]
DenseFeatures = Literal["tokens", "value"]
LossName = Literal["mse", "cosine", "hinge", "softmax-embed", "infonce", "joem", "softmax"]
Negatives = Literal["all", "hardest", "semi-hard"]
Weighting = Literal["none", "frequency", "effective-number", "image"]
Anchors = Literal["auto", "imagenet", "none"]
CalibrationName = Literal["none", "stacking", "csls", "inverted-softmax", "logit-adjustment", "apollonius"]
CalibrationChoice = Literal["auto", "none", "stacking", "csls", "inverted-softmax", "logit-adjustment", "apollonius"]
CalibrateOn = Literal["auto", "seen", "val-classes"]
Calibrated = Literal["model", "none"]
SelfTrain = Literal["none", "void", "anywhere"]
Protocol = Literal["native", "zs3", "spnet"]
Precision = Literal["auto", "float32", "bfloat16"]
Partition = Literal["train", "val", "all"]
Device = Literal["auto", "cpu", "cuda"]
PictureFormat = Literal["png", "svg"]
Palette = Literal["voc", "safe"]
Plane = Literal["pca", "tsne", "umap"]
Objective = Literal["auto", "hidden", "seen"]  # what a sweep makes large


# Vector sets that `fetch-data` downloads: the name that `--vectors` takes -> the file in cache_folder()/"vectors".
VECTOR_FILES: dict[str, str] = {
    "word2vec-google-news-300": "GoogleNews-vectors-negative300.bin.gz",
    "glove-6b-100d": "glove.6B.100d.txt",
    "glove-6b-200d": "glove.6B.200d.txt",
    "glove-6b-300d": "glove.6B.300d.txt",
}


def cache_folder() -> Path:
    """Return where downloads are kept: $ZSSEG_CACHE, else the platform's cache folder."""
    import platformdirs  # here, so that the settings cost nothing to read

    given = os.environ.get("ZSSEG_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("zsseg")


def feature_folder() -> Path | None:
    """Return where backbone features are kept: $ZSSEG_FEATURES, else in the cache folder; None for "none"."""
    given = os.environ.get("ZSSEG_FEATURES")
    if given == "none":
        return None
    return Path(given) if given else cache_folder() / "features"


@dataclass(frozen=True)
class FetchConfig:
    """Settings of `fetch-data`."""

    source: str = "sample"
    limit: int | None = None  # keep this many images, evenly spread; None keeps all
    seed: int = 0  # of the sample's scenes, and of the split of a folder that has no lists
    val_fraction: float = 0.2  # of a folder that has neither train nor val list
    skip_bad: bool = False  # leave broken images out and count them, instead of stopping


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of `embed-labels`."""

    vectors: tuple[str, ...] = ("glove-6b-50d",)  # of several sources a class's vectors are concatenated
    dim: int = 50  # PCA axes; without meaning where nothing is reduced
    center: bool = True  # subtract the mean of the vocabulary: word vectors share a large common part
    normalize: Normalize = "unit"  # unit: NNE then ranks classes by cosine; none keeps the PCA's lengths
    fit_words: int | None = None  # fit the PCA on so many of the most frequent words; None: see below
    vocabulary: tuple[str, ...] = ()  # one for each word-vector source: its words join the PCA's population
    remove_top: int = 0  # leave out the population's first principal directions: all-but-the-top
    reduce: Reduce = "pca"
    retrofit: bool = False  # draw class vectors towards the words that WordNet puts near them
    wordnet: str | None = None  # folder of the database; None: the one at hand
    prompts: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "{}")  # of sentence encoders: their mean
    text_weights: str | None = None  # weight file of a CLIP text tower


FIT_WORDS = 20_000  # of word vectors
FIT_WORDS_ENCODED = 2_000  # of sentence encoders, which take some 15 ms a word on one core


@dataclass(frozen=True)
class SplitConfig:
    """Settings of `make-split`."""

    unseen: tuple[str, ...] = ()
    preset: str | None = None
    random: int | None = None  # draw this many unseen classes
    seed: int = 0
    policy: Policy = "ignore"
    stratified: int | None = None  # draw this many unseen classes, evenly over WordNet's supercategories
    wordnet: str | None = None  # folder of the database; None: the one at hand


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`."""

    model: ModelName = "lite0"
    loss: LossName = "mse"
    negatives: Negatives = "all"  # of the hinge loss
    frozen: bool | None = None  # train the head only, on backbone features computed once; None: where they are learned
    epochs: int = 5
    batch: int = 8
    lr: float | None = None  # of the head; None takes the model's own, see models.default_lr
    backbone_lr: float = 0.05  # the backbone's rate as a multiple of the head's
    crop: int | None = None  # pixels; None: 320, or less where all images are smaller
    weighting: Weighting = "none"
    weights: str | None = None  # backbone weight file, or "none" for a random start
    precision: Precision = "auto"
    device: Device = "auto"
    workers: int = 1
    seed: int = 0
    checkpoint_every: float = 10.0  # minutes
    backbone: str | None = None  # timm's name; None: the model's own, see ARCHITECTURES
    stacks: int | None = None  # hourglasses
    dense_features: DenseFeatures | None = None  # what a cell of a vision transformer holds
    calibration: CalibrationChoice = "auto"  # auto: stacking, where unseen classes can be predicted
    calibrate_on: CalibrateOn = "auto"  # what its parameter is chosen on; auto: val-classes if any is named, else seen
    val_classes: tuple[str, ...] = ()  # seen classes hidden for that; empty: chosen automatically
    max_seen_loss: float = 0.03  # seen mIoU that the calibration may cost
    max_false_share: float | None = None  # seen pixels that it may give to an unseen class, of those of a mean seen
    # class; None: 0.5 with anchors, else any number
    self_train: SelfTrain = "none"  # where pseudo-labels of unseen classes may be put; transductive
    rounds: int = 1  # of self-training
    gate: bool | None = None  # a plainer embedding that decides between seen and unseen; None: where the model has one
    anchors: Anchors = "auto"  # auto: imagenet for a frozen lite0 with a gate, where WordNet is at hand
    presence: bool | None = None  # a photo's best places speak for all of it; None: with anchors, unless blind
    checkpoint_steps: int | None = None  # steps between checkpoints, besides the minutes


# Options that belong to some models only, with their defaults there.
ARCHITECTURES: dict[ModelName, dict[str, str | int]] = {
    "lite0": {},
    "fcn32s": {},
    "fcn16s": {},
    "fcn8s": {},
    "aspp": {"backbone": "tf_efficientnet_lite0"},
    "hourglass": {"backbone": "tf_efficientnet_lite0", "stacks": 2},
    "vit": {"backbone": "vit_small_patch14_dinov2", "dense_features": "tokens"},
}


@dataclass(frozen=True)
class SweepConfig:
    """Settings of `sweep`, besides the file's."""

    trials: int = 20  # finished ones, of all processes together
    seed: int = 0  # of what is tried, and of every training
    storage: str | None = None  # a database; None: an SQLite file beside the output


@dataclass(frozen=True)
class EvalConfig:
    """Settings of `eval`."""

    partition: Partition = "val"
    seen_bias: float | None = None  # subtracted from the score of every seen class, instead of the model's calibration
    min_images: int = 0  # classes in fewer truth photos are left out of the means
    max_side: int = 1024  # pixels; larger photos are scored at this size, then brought to their own
    precision: Precision = "auto"
    device: Device = "auto"
    calibration: Calibrated = "model"  # none: leave out the calibration that the model carries
    protocol: Protocol = "native"  # which grid, classes and means the scores are of


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict`."""

    seen_bias: float | None = None
    max_side: int = 1024
    precision: Precision = "auto"
    device: Device = "auto"
    skip_bad: bool = False  # leave unreadable files out and name them, instead of stopping
    calibration: Calibrated = "model"
    classes: tuple[str, ...] = ()  # words to predict; empty: the model's own classes
    add: bool = False  # predict them beside the model's own classes instead of alone
    vocabulary: int | Literal["all"] | None = None  # read regions out as the nearest of so many words
    regions: int = 8  # of a photo that is read out, at most
    nearest: int = 5  # words of each


@dataclass(frozen=True)
class PictureConfig:
    """Settings of `visualize`."""

    limit: int = 12  # photos to show at most
    format: PictureFormat = "png"
    palette: Palette = "voc"  # of the classes; safe: told apart by colour-blind readers, as far as so many can be


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `visualize --report`."""

    limit: int = 50
    palette: Palette = "voc"
    space: Plane = "pca"  # how the joint space is brought to the plane
    words: int = 5000  # the most frequent ones, to tell those nearest to a place; 0: class names alone
    device: Device = "auto"
