"""Words that a model was never trained on: the table of docs/open-vocabulary.md.

    python benchmarks/open_vocabulary.py --data ../shared/data [--vectors glove] [--model model.h5] [--json FILE]

A model is trained on voc-animals, whose labels of all classes but background and six animals stay hidden, and asked for
the other fourteen words on every photo of coco-voc20, none of which it was trained on, as words that it has never heard
of: `predict --classes "aeroplane, ..."`. Of the pixels of each of these classes, where the fourteen words compete:

    named        the share that gets the class's word; chance is 1 in 14
    guessed      the share of all these pixels that gets the word: what a blind guesser with this habit would get right
    no anchors   the same where the anchors know nothing of the words: by gate and word vectors alone
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from zsseg.artifacts import open_artifact
from zsseg.classes import VOID
from zsseg.config import EmbedConfig, FetchConfig, PredictConfig, SplitConfig, TrainConfig
from zsseg.embed import embed_labels
from zsseg.errors import SettingError
from zsseg.fetch import fetch_data
from zsseg.images import decode_image, decode_label_map
from zsseg.inference import Model, label_map, load_model
from zsseg.metrics import confusion
from zsseg.open_vocabulary import OpenModel, _kinship, with_words
from zsseg.recipe import Places, embed_words, read_recipe
from zsseg.split import make_split
from zsseg.train import train

ANIMALS = ("bird", "cat", "cow", "dog", "horse", "sheep")
VECTORS = {"both": ("word2vec", "fasttext"), "word2vec": ("word2vec",), "glove": ()}


def main() -> None:
    """Train where no model is given, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--vectors", choices=list(VECTORS), default="both")
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--model", type=Path, help="one that was trained before")
    parser.add_argument("--limit", type=int, help="so many photos, evenly spread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, source = Path(folder), options.data.resolve()
        path = options.model or trained(source, work, VECTORS[options.vectors], options.epochs)
        photos = work / "coco.h5"
        fetch_data(photos, FetchConfig("folder", limit=options.limit), root=source / "coco-voc20" / "VOC2012")
        model = load_model(path)
        names = tuple(model.names[index] for index in model.unseen)
        asked = {"": typed(model, path, names, source)}
        with patch("zsseg.open_vocabulary.kinship.imagenet_kinship", side_effect=SettingError("left out")):
            asked[", no anchors"] = typed(model, path, names, source)
        rows = table(names, {way: counts(each, names, photos) for way, each in asked.items()}, photos)
    for row in rows:
        print(
            "| " + " | ".join(f"{each:.3f}" if isinstance(each, float) else str(each) for each in row.values()) + " |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def trained(source: Path, work: Path, vectors: Sequence[str], epochs: int) -> Path:
    """Train a model to which every class but background and animals is unseen."""
    data, split, labels, out = (work / f"{name}.h5" for name in ("data", "split", "labels", "model"))
    fetch_data(data, FetchConfig("folder"), root=source / "voc-animals" / "VOC2012")
    with open_artifact(data, "data") as images:
        names = images.strings("names")
    make_split(data, split, SplitConfig(unseen=tuple(name for name in names[1:] if name not in ANIMALS)))
    own, more = (
        [str(source / f"vectors/{kind}-{each}-300d.txt") for each in vectors] for kind in ("voc21", "cocostuff182")
    )
    embed_labels(names, labels, EmbedConfig(tuple(own), vocabulary=tuple(more)) if own else EmbedConfig())
    train(data, split, labels, out, TrainConfig(epochs=epochs))
    return out


def typed(model: Model, path: Path, names: Sequence[str], source: Path) -> OpenModel:
    """Return the model asked for the words as if it had never heard of them."""
    files = tuple((source / "vectors").glob("*.txt"))
    forgetful = replace(model, names=tuple(f"? {name}" if name in names else name for name in model.names))
    _kinship.cache_clear()
    return with_words(forgetful, names, embed_words(names, read_recipe(path), Places(files)), add=False)


def counts(asked: OpenModel, names: Sequence[str], photos: Path) -> NDArray[np.int64]:
    """Return the confusion among the words, rows = truth, int64 (W, W), over the pixels of their classes."""
    total = np.zeros((len(names), len(names)), np.int64)
    with open_artifact(photos, "data") as images:
        known = images.strings("names")
        place = np.full(256, VOID, np.uint8)
        place[[known.index(name) for name in names]] = np.arange(len(names))
        for index in range(len(images.strings("ids"))):
            photo = decode_image(images.bytes_at("images", index), str(index))
            truth = place[decode_label_map(images.bytes_at("label_maps", index), str(index))]
            if (truth != VOID).any():
                found = label_map(asked.score(photo, max_side=PredictConfig.max_side))
                total += confusion(truth, found - np.uint8(1), len(names))  # 0 is background, which was not asked for
    return total


def table(names: Sequence[str], found: dict[str, NDArray[np.int64]], photos: Path) -> list[dict[str, Any]]:
    """Return a row for each word, and their mean."""
    with open_artifact(photos, "data") as images:
        maps = [
            decode_label_map(images.bytes_at("label_maps", index), "") for index in range(len(images.strings("ids")))
        ]
        shown = [sum(images.strings("names").index(name) in each for each in maps) for name in names]
    columns: dict[str, Sequence[Any]] = {"word": names, "photos": shown}
    for way, matrix in found.items():
        columns[f"named{way}"] = (np.diag(matrix) / matrix.sum(axis=1).clip(1)).tolist()
        columns[f"guessed{way}"] = (matrix.sum(axis=0) / matrix.sum().clip(1)).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in list(columns)[2:]}
    return [*rows, {"word": "mean", "photos": "", **mean}]


if __name__ == "__main__":
    main()
