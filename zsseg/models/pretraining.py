"""What pre-trained weights have seen, in a sentence for the record.

Zero-shot results are only as clean as the backbone: one that learned from labels of "unseen" classes, or from captions
that name them, has seen them. timm's tags say which data the weights come from.
"""

from __future__ import annotations

NOTHING = "nothing: starts from random"
IMAGENET_1K = "ImageNet-1k labels: 1.28 million photos of 1,000 classes"

# Part of a tag -> what the weights behind it learned from; the first that fits counts, so special ones stand first.
SEEN: tuple[tuple[str, str], ...] = (
    ("openai", "400 million image-text pairs of OpenAI"),
    ("tinyclip_yfcc15m", "15 million image-text pairs (YFCC-15M), distilled from CLIP"),
    ("tinyclip_laion400m", "400 million image-text pairs (LAION-400M), distilled from CLIP"),
    ("laion400m", "400 million image-text pairs (LAION-400M)"),
    ("laion2b", "2 billion image-text pairs (LAION-2B)"),
    ("laiona", "900 million image-text pairs (LAION-Aesthetics)"),
    ("datacompxl", "1.4 billion image-text pairs (DataComp-1B)"),
    ("dfn2b", "2 billion image-text pairs (DFN-2B)"),
    ("dfn5b", "5 billion image-text pairs (DFN-5B)"),
    ("metaclip_400m", "400 million image-text pairs (MetaCLIP)"),
    ("metaclip_2pt5b", "2.5 billion image-text pairs (MetaCLIP)"),
    ("metaclip", "image-text pairs (MetaCLIP)"),
    ("merged2b", "2 billion image-text pairs (LAION-2B and COYO)"),
    ("webli", "billions of image-text pairs (WebLI)"),
    ("lvd142m", "142 million photos without labels, chosen for likeness to ImageNet and other curated sets (LVD-142M)"),
    ("lvd1689m", "1.7 billion web photos without labels (LVD-1689M)"),
    ("sat493m", "493 million satellite photos without labels (SAT-493M)"),
    ("dino", "ImageNet-1k photos without labels"),
    ("mae", "ImageNet-1k photos without labels"),
    ("mim_in22k", "ImageNet-22k photos without labels, towards CLIP's features"),
    ("in22k", "ImageNet-22k labels: 14 million photos of 21,841 classes"),
    ("in21k", "ImageNet-21k labels: 13 million photos of 21,000 classes"),
    ("in12k", "ImageNet-12k labels: 12 million photos of 11,821 classes"),
    ("in1k", IMAGENET_1K),
)  # fmt: skip


def seen_by(tag: str) -> str:
    """Return what the weights of a timm tag have seen: laion2b_ft_in1k -> image-text pairs, then ImageNet-1k labels."""
    if not tag:
        return "data that timm does not tell"
    return ", then ".join(_stage(stage, tag) for stage in tag.split("_ft_"))


def _stage(stage: str, tag: str) -> str:
    return next((text for part, text in SEEN if part in stage), f"data that zsseg does not know (tag {tag})")


def seen_by_file(tag: str) -> str:
    """Return what can be said of a local file that fills a model of a tag."""
    return f"what a local file was trained on, which it does not tell; timm's own weights of this name: {seen_by(tag)}"
