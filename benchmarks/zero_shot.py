"""Zero-shot quality on real photos: the tables of the README and of docs/results.md.

    python benchmarks/zero_shot.py --data ../shared/data [--table main] [--seeds 3] [--rows 'a;b'] [--json FILE]

Tables:
    main           inductive and self-trained recipes: cow and sheep unseen on voc-animals, scored on its val photos
    choices        what changes if one thing of the embedding, the loss or the network changes: the same photos, no
                   gate, no calibration; look at the area under the seen–unseen curve and at the oracle
    calibrations   every calibration on the same trained network
    splits         zs3-4 and five random classes on voc-animals and coco-voc20 joined, each against SPNet's recipe
    clean          the same for two more draws of five classes, on which no default was chosen
    aside          cow and sheep, scored on training photos of voc-animals that are kept aside, see `partition`
    cross          trained on one data set, scored on the other

Scored at native resolution; means over classes that occur in at least 5 photos. Class vectors, unless a row says
otherwise: word2vec and fastText concatenated, 50 dims. Every parameter is chosen without a label of an unseen class.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zsseg.artifacts import open_artifact
from zsseg.config import EmbedConfig, EvalConfig, FetchConfig, SplitConfig, TrainConfig
from zsseg.embed import embed_labels
from zsseg.evaluate import EvalSummary, evaluate
from zsseg.fetch import fetch_data
from zsseg.split import make_split
from zsseg.train import Features, train

COW_SHEEP = SplitConfig(unseen=("cow", "sheep"))
DEFAULT = TrainConfig()
SPNET = TrainConfig(loss="softmax-embed", calibration="stacking", gate=False, anchors="none")
BARE = TrainConfig(calibration="none", gate=False, anchors="none")
BOTH = ("word2vec", "fasttext")
LISTS = "ImageSets/Segmentation"
ASIDE = 300  # photos
SCORES = ("seen_miou", "unseen_miou", "harmonic_miou")


@dataclass(frozen=True)
class Row:
    """One recipe: what is trained on what, and what it is scored on."""

    config: TrainConfig = BARE
    words: dict[str, Any] = field(default_factory=dict)  # settings of `embed-labels`
    vectors: tuple[str, ...] = BOTH  # "word2vec", "fasttext", or what --vectors takes
    split: SplitConfig = COW_SHEEP
    data: str = "voc-animals"
    tests: tuple[str, ...] = ()  # data sets to score on; empty: the val photos of `data`
    uncalibrated: bool = False  # also score without the calibration


def bare(**changes: Any) -> Row:
    """Return a row of plain NNE with other settings of `train`."""
    return Row(replace(BARE, **changes))


TABLES: dict[str, dict[str, Row]] = {
    "main": {
        "default": Row(DEFAULT, uncalibrated=True),
        "SPNet": Row(SPNET, uncalibrated=True),
        "mse": Row(replace(BARE, calibration="stacking"), uncalibrated=True),
        "gate": Row(replace(DEFAULT, anchors="none"), uncalibrated=True),
        "no presence": Row(replace(DEFAULT, presence=False), uncalibrated=True),
        "SPNet, presence": Row(replace(SPNET, presence=True)),
        "mse, presence": Row(replace(BARE, calibration="stacking", presence=True)),
        "default, infonce": Row(replace(DEFAULT, loss="infonce")),
        "default, joem": Row(replace(DEFAULT, loss="joem")),
        "self-train void": Row(replace(DEFAULT, calibration="none", self_train="void")),
        "self-train anywhere": Row(replace(DEFAULT, self_train="anywhere")),
    },
    "choices": {
        "mse": Row(),
        "dim 20": Row(words={"dim": 20}),
        "dim 100": Row(words={"dim": 100}),
        "dim 300, word2vec, no PCA": Row(words={"reduce": "none"}, vectors=("word2vec",)),
        "word2vec": Row(vectors=("word2vec",)),
        "fastText": Row(vectors=("fasttext",)),
        "GloVe 50-d": Row(vectors=("glove-6b-50d",)),
        "MiniLM": Row(vectors=("all-minilm-l6-v2",)),
        "not of unit length": Row(words={"normalize": "none"}),
        "not centred": Row(words={"center": False}),
        "all-but-the-top 3": Row(words={"remove_top": 3}),
        "WordNet retrofit": Row(words={"retrofit": True}),
        "cosine": bare(loss="cosine"),
        "hinge": bare(loss="hinge"),
        "softmax-embed": bare(loss="softmax-embed"),
        "infonce": bare(loss="infonce"),
        "joem": bare(loss="joem"),
        "frequency": bare(weighting="frequency"),
        "effective-number": bare(weighting="effective-number"),
        "image": bare(weighting="image"),
        "a third of the rate": bare(lr=1e-3),
        "three times the rate": bare(lr=1e-2),
        "aspp": bare(model="aspp"),
        "hourglass": bare(model="hourglass"),
    },
    "calibrations": {
        name: bare(calibration=name)
        for name in ("stacking", "csls", "inverted-softmax", "logit-adjustment", "apollonius")
    },
    "splits": {
        f"{split}, {name}": Row(config, split=chosen, data="joined")
        for split, chosen in (("zs3-4", SplitConfig(preset="zs3-4")), ("random 5", SplitConfig(random=5)))
        for name, config in (("default", DEFAULT), ("SPNet", SPNET))
    },
    "clean": {
        f"random 5, seed {draw}, {name}": Row(config, split=SplitConfig(random=5, seed=draw), data="joined")
        for draw in (1, 2)
        for name, config in (("default", DEFAULT), ("SPNet", SPNET))
    },
    "aside": {
        name: Row(config, data="aside", uncalibrated=True) for name, config in (("default", DEFAULT), ("SPNet", SPNET))
    },
    "cross": {
        f"{name}, trained on {data}": Row(config, data=data, tests=("voc-animals", "coco-voc20"))
        for data in ("voc-animals", "coco-voc20")
        for name, config in (("default", DEFAULT), ("SPNet", SPNET))
    },
}


def main() -> None:
    """Run the rows of a table and print a line for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--table", choices=list(TABLES), default="main")
    parser.add_argument("--rows", help="some of the table's rows, joined by ;")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=DEFAULT.epochs)
    parser.add_argument("--json", type=Path, help="write the runs here, after each of them")
    options = parser.parse_args()
    rows = TABLES[options.table]
    chosen = options.rows.split(";") if options.rows else list(rows)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data.resolve(), Path(folder))
        for seed in range(options.seeds):
            for name in chosen:
                row = replace(rows[name], config=replace(rows[name].config, seed=seed, epochs=options.epochs))
                for run in bench.run(row):
                    runs.append({"row": name, "seed": seed, **run})
                    print(_line(runs[-1]), flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(runs, indent=2) + "\n")
    _print_table(runs)


class Bench:
    """Makes the artifacts that rows need, each once, and runs rows.

    Args:
        source: The folder of the data sets and word vectors.
        work: Where the artifacts go.
    """

    def __init__(self, source: Path, work: Path) -> None:
        self._source = source
        self._work = work
        self._features: dict[Path, Features] = {}

    def run(self, row: Row) -> list[dict[str, Any]]:
        """Train one model and score it."""
        data = self._data(row.data)
        split = self._made(f"{row.data} {row.split}", lambda out: make_split(data, out, row.split))
        words = self._made(f"{row.vectors} {row.words}", lambda out: self.embed(data, row, out))
        model = self._work / "model.h5"
        features = self._features.setdefault(split, Features())
        wall, cpu = time.perf_counter(), _cpu()
        train(data, split, words, model, row.config, force=True, features=features)
        spent = {"wall_s": time.perf_counter() - wall, "cpu_min": (_cpu() - cpu) / 60}
        found = []
        for test in row.tests or (row.data,):
            for calibration in ("model", "none") if row.uncalibrated else ("model",):
                config = EvalConfig(min_images=5, calibration=calibration)
                summary = evaluate(model, self._data(test), self._work / "scores.h5", config, force=True)
                found.append({"scored on": test, "calibration": calibration, **spent, **_scores(summary)})
        return found

    def _made(self, key: str, make: Any) -> Path:
        out = self._work / ("".join(each if each.isalnum() else "-" for each in key)[:200] + ".h5")
        if not out.exists():
            make(out)
        return out

    def _data(self, name: str) -> Path:
        return self._made(name, lambda out: fetch_data(out, FetchConfig("folder"), root=self._root(name)))

    def _root(self, name: str) -> Path:
        """Return a data set's folder: "joined" has the photos of both, "aside" those of voc-animals' training part."""
        sets = [self._source / each / "VOC2012" for each in ("voc-animals", "coco-voc20")]
        root = self._work / name
        if name == "joined":
            parts = [[name for each in sets for name in listed(each, part)] for part in ("train", "val")]
            link(sets, root, *parts)
        elif name == "aside":
            train_on, choose_by, aside = partition(sets[0])
            link(sets[:1], root, train_on + choose_by, aside)
        else:
            root = self._source / name / "VOC2012"
        return root

    def embed(self, data: Path, row: Row, out: Path) -> None:
        """Make a row's class vectors for the classes of a data artifact."""
        with open_artifact(data, "data") as images:
            names = images.strings("names")
        local = all(kind in BOTH for kind in row.vectors)
        files = [str(self._source / f"vectors/voc21-{kind}-300d.txt") if local else kind for kind in row.vectors]
        more = [str(self._source / f"vectors/cocostuff182-{kind}-300d.txt") for kind in row.vectors] if local else []
        settings = {"vectors": tuple(files), "vocabulary": tuple(more), **row.words}
        embed_labels(names, out, EmbedConfig(**settings))


def listed(source: Path, part: str) -> list[str]:
    """Return the names of the photos of one part, "train" or "val", of a data set."""
    return (source / LISTS / f"{part}.txt").read_text().split()


def partition(source: Path) -> tuple[list[str], list[str], list[str]]:
    """Part a data set's training photos: to train on, to choose constants by (`constants.py`), and to keep aside."""
    names = listed(source, "train")
    order = np.random.default_rng(0).permutation(len(names))
    first, second, rest = (sorted(names[i] for i in part) for part in np.split(order, [ASIDE, 2 * ASIDE]))
    return rest, first, second


def link(sets: list[Path], root: Path, train_on: list[str], score_on: list[str]) -> None:
    """Make a data set of the photos of others, its lists as given, its classes those of the first."""
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (root / folder).mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        for each in sets:
            for file in (each / folder).iterdir():
                (root / folder / file.name).symlink_to(file)
    for part, ids in (("train", train_on), ("val", score_on)):
        (root / LISTS / f"{part}.txt").write_text("".join(f"{each}\n" for each in ids))
    (root / "classes.txt").write_text((sets[0] / "classes.txt").read_text())


def _cpu() -> float:
    """Return CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _scores(summary: EvalSummary) -> dict[str, Any]:
    scores = {key: getattr(summary.generalized, key) for key in SCORES}
    scores |= {"vanilla_unseen_miou": summary.vanilla.unseen_miou}
    if summary.curve is not None:
        scores |= {"area": summary.curve.area, "oracle": float(summary.curve.harmonic[summary.curve.oracle])}
    chosen = summary.model.get("calibration_choice") or {}
    iou = dict(zip(summary.names, summary.generalized.iou.tolist(), strict=True))
    return {**scores, "parameter": chosen.get("parameter"), "iou": iou}


def _line(run: dict[str, Any]) -> str:
    return " | ".join(f"{each:.3f}" if isinstance(each, float) else str(each) for each in list(run.values())[:-1])


def _print_table(runs: list[dict[str, Any]]) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["row"], run["scored on"], run["calibration"]), []).append(run)
    keys = (*SCORES, "area", "oracle", "cpu_min")
    print("\n| row | scored on | calibration | seen | unseen | harmonic | area | oracle | CPU min | seeds |")
    print("|---" * 10 + "|")
    for name, same in groups.items():
        cells = [_spread([float(run[key]) for run in same if key in run]) for key in keys]
        print(f"| {' | '.join((*name, *cells))} | {len(same)} |")


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
