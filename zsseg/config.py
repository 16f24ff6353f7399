"""Every default has its home here: frozen settings of the commands, readable without torch.

`cli.py` shows these values in `--help`, the artifacts record them in their `params` attribute.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Normalize = Literal["unit", "none"]
Policy = Literal["ignore", "drop"]
ModelName = Literal["lite0", "fcn32s", "fcn16s", "fcn8s"]
LossName = Literal["mse", "softmax"]
Weighting = Literal["none", "frequency"]
Precision = Literal["auto", "float32", "bfloat16"]
Partition = Literal["train", "val", "all"]
Device = Literal["auto", "cpu", "cuda"]


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

    vectors: str = "glove-6b-50d"
    dim: int = 50
    center: bool = True  # subtract the mean of the vocabulary: word vectors share a large common part
    normalize: Normalize = "unit"  # unit: NNE then ranks classes by cosine; none keeps the PCA's lengths
    fit_words: int = 20_000  # PCA is fitted on this many of the vocabulary's most frequent words
    vocabulary: str | None = None  # a second vector file whose words join the population the PCA is fitted on


@dataclass(frozen=True)
class SplitConfig:
    """Settings of `make-split`."""

    unseen: tuple[str, ...] = ()
    preset: str | None = None
    random: int | None = None  # draw this many unseen classes
    seed: int = 0
    policy: Policy = "ignore"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`."""

    model: ModelName = "lite0"
    loss: LossName = "mse"
    frozen: bool = False  # train the head only, on backbone features computed once
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


@dataclass(frozen=True)
class EvalConfig:
    """Settings of `eval`."""

    partition: Partition = "val"
    seen_bias: float = 0.0  # subtracted from the score of every seen class
    min_images: int = 0  # classes in fewer truth photos are left out of the means
    max_side: int = 1024  # pixels; larger photos are scored at this size, then brought to their own
    precision: Precision = "auto"
    device: Device = "auto"


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict`."""

    seen_bias: float = 0.0
    max_side: int = 1024
    precision: Precision = "auto"
    device: Device = "auto"
    skip_bad: bool = False  # leave unreadable files out and name them, instead of stopping
