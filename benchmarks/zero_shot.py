"""Zero-shot quality on real photos: the tables of the README and of docs/results.md.

    python benchmarks/zero_shot.py --data ../shared/data [--seeds 3] [--recipes a,b] [--epochs 3] [--json FILE]

cow and sheep unseen on voc-animals, scored on its val photos at native resolution; means over classes that occur in at
least 5 of them. Class vectors: word2vec and fastText concatenated, 50 dims. Every parameter is chosen without a label
of an unseen class. Each recipe is trained once a seed, and scored as its model is and without its calibration.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from zsseg.artifacts import open_artifact
from zsseg.config import EmbedConfig, EvalConfig, FetchConfig, SplitConfig, TrainConfig
from zsseg.embed import embed_labels
from zsseg.evaluate import EvalSummary, evaluate
from zsseg.fetch import fetch_data
from zsseg.split import make_split
from zsseg.train import Features, train

PLAIN = TrainConfig(calibration="stacking", gate=False, anchors="none")
RECIPES: dict[str, TrainConfig] = {
    "mse": PLAIN,
    "softmax-embed": replace(PLAIN, loss="softmax-embed"),  # SPNet's recipe
    "gate": replace(PLAIN, gate=True),
    "gate+anchors": replace(PLAIN, gate=True, anchors="imagenet"),  # the default of `zsseg train`
    "void": replace(PLAIN, gate=True, anchors="imagenet", calibration="none", self_train="void"),
    "anywhere": replace(PLAIN, gate=True, anchors="imagenet", self_train="anywhere"),
    "cosine": replace(PLAIN, loss="cosine"),
    "hinge": replace(PLAIN, loss="hinge"),
    "infonce": replace(PLAIN, loss="infonce"),
    "joem": replace(PLAIN, loss="joem"),
    "mse+csls": replace(PLAIN, calibration="csls"),
    "mse+inverted-softmax": replace(PLAIN, calibration="inverted-softmax"),
    "mse+logit-adjustment": replace(PLAIN, calibration="logit-adjustment"),
    "mse+apollonius": replace(PLAIN, calibration="apollonius"),
    "mse, frequency": replace(PLAIN, weighting="frequency"),
    "mse, image": replace(PLAIN, weighting="image"),
    "aspp": replace(PLAIN, model="aspp"),
    "hourglass": replace(PLAIN, model="hourglass"),
}
MAIN = ("gate+anchors", "softmax-embed", "void")
SCORES = ("seen_miou", "unseen_miou", "harmonic_miou")


def main() -> None:
    """Run the recipes and print a line for each run, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", default=",".join(MAIN), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(options.data.resolve(), work)
        features = Features()
        for seed in range(options.seeds):
            for name in options.recipes.split(","):
                config = replace(RECIPES[name], seed=seed, epochs=options.epochs)
                rows += _run(work, name, config, features)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    _print_table(rows)


def _prepare(data: Path, work: Path) -> None:
    """Write data.h5, labels.h5 and split.h5."""
    fetch_data(work / "data.h5", FetchConfig("folder"), root=data / "voc-animals" / "VOC2012")
    with open_artifact(work / "data.h5", "data") as images:
        names = images.strings("names")
    kinds = ("word2vec", "fasttext")
    words = EmbedConfig(
        vectors=tuple(str(data / f"vectors/voc21-{kind}-300d.txt") for kind in kinds),
        vocabulary=tuple(str(data / f"vectors/cocostuff182-{kind}-300d.txt") for kind in kinds),
    )
    embed_labels(names, work / "labels.h5", words)
    make_split(work / "data.h5", work / "split.h5", SplitConfig(unseen=("cow", "sheep")))


def _run(work: Path, name: str, config: TrainConfig, features: Features) -> list[dict[str, object]]:
    """Train one model and score it, calibrated and not."""
    wall, cpu = time.perf_counter(), _cpu()
    train(
        work / "data.h5",
        work / "split.h5",
        work / "labels.h5",
        work / "model.h5",
        config,
        force=True,
        features=features,
    )
    spent = {"wall_s": time.perf_counter() - wall, "cpu_min": (_cpu() - cpu) / 60}
    rows: list[dict[str, object]] = []
    for calibration in ("model", "none"):
        summary = evaluate(
            work / "model.h5",
            work / "data.h5",
            work / "scores.h5",
            EvalConfig(min_images=5, calibration=calibration),
            force=True,
        )
        rows.append({"recipe": name, "seed": config.seed, "calibration": calibration, **spent, **_scores(summary)})
        print(
            " | ".join(f"{each:.3f}" if isinstance(each, float) else str(each) for each in rows[-1].values()),
            flush=True,
        )
    return rows


def _cpu() -> float:
    """Return CPU seconds of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _scores(summary: EvalSummary) -> dict[str, object]:
    scores = {key: getattr(summary.generalized, key) for key in SCORES}
    scores |= {"vanilla_unseen_miou": summary.vanilla.unseen_miou}
    if summary.curve is not None:
        scores |= {"area": summary.curve.area, "oracle_harmonic": float(summary.curve.harmonic[summary.curve.oracle])}
    chosen = summary.model.get("calibration_choice") or {}
    iou = dict(zip(summary.names, summary.generalized.iou.tolist(), strict=True))
    return {**scores, "parameter": chosen.get("parameter"), **{f"iou {name}": iou[name] for name in ("cow", "sheep")}}


def _print_table(rows: list[dict[str, object]]) -> None:
    groups: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((str(row["recipe"]), str(row["calibration"])), []).append(row)
    print("\n| recipe | calibration | seen | unseen | harmonic | CPU min | seeds |\n|---|---|---|---|---|---|---|")
    for (recipe, calibration), runs in groups.items():
        cells = [_spread([float(str(run[key])) for run in runs]) for key in (*SCORES, "cpu_min")]
        print(f"| {recipe} | {calibration} | {' | '.join(cells)} | {len(runs)} |")


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
