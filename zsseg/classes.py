"""Class names, their aliases in word-vector vocabularies, and presets of unseen classes: literal data.

VOC's 21 names in index order are those of the PASCAL VOC 2012 development kit; `tests/test_classes.py` pins them.
The presets are those of Bucher et al., "Zero-Shot Semantic Segmentation", NeurIPS 2019 (zs3-K, nested), and of
Xian et al., "Semantic Projection Network for Zero- and Few-Label Semantic Segmentation", CVPR 2019 (spnet).
"""

from __future__ import annotations

VOID = 255  # the label of pixels that are neither trained on nor scored
BACKGROUND = "background"  # a class of this name is no object

VOC_NAMES: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_ZS3_ORDER = (
    "cow", "motorbike", "aeroplane", "sofa", "cat", "tvmonitor", "train", "bottle", "chair", "pottedplant",
)  # fmt: skip

UNSEEN_PRESETS: dict[str, tuple[str, ...]] = {
    **{f"zs3-{count}": _ZS3_ORDER[:count] for count in (2, 4, 6, 8, 10)},
    "spnet": ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
}

# Spellings to try, in this order, when a name itself is not in a vocabulary. A space stands for any of
# space, "_" and "-" in the vocabulary's tokens, and otherwise for a mean of the single words.
ALIASES: dict[str, tuple[str, ...]] = {
    "aeroplane": ("airplane", "plane"),
    "airplane": ("aeroplane", "plane"),
    "couch": ("sofa",),
    "cup": ("mug",),
    "diningtable": ("dining table", "table"),
    "dining table": ("diningtable", "table"),
    "motorbike": ("motorcycle",),
    "motorcycle": ("motorbike",),
    "person": ("people", "human"),
    "playingfield": ("playing field",),
    "potted plant": ("pottedplant", "houseplant", "plant"),
    "pottedplant": ("potted plant", "houseplant", "plant"),
    "sofa": ("couch",),
    "television": ("tv",),
    "tv": ("television",),
    "tv monitor": ("tvmonitor", "tv", "television"),
    "tvmonitor": ("tv monitor", "tv", "television"),
    "waterdrops": ("water drops", "water"),
}
