"""The main job on real photos, as whole processes: where the README's figures come from.

    python benchmarks/main_job.py --data ../shared/data [--json FILE]

Runs the seven commands on all photos of voc-animals, as a user would type them, and prints wall and CPU seconds and
scores: mIoU of the classes that voc-animals is about (background, cat, cow, dog, horse, person, sheep), then over all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
ZSSEG = (sys.executable, "-m", "zsseg")


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ZSSEG_TEST_DATA", "../shared/data")))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workspace", type=Path, help="kept; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = _run_all(options.data.resolve(), options.workspace or Path(folder))
    if options.json:
        options.json.write_text(json.dumps({"machine": _machine(), "rows": rows}, indent=2) + "\n")


def _run_all(data: Path, work: Path) -> list[dict[str, object]]:
    voc = data / "voc-animals" / "VOC2012"
    photo = sorted((voc / "JPEGImages").iterdir())[0]
    words = ["--vectors", str(data / "vectors/voc21-word2vec-300d.txt")]
    words += ["--vocabulary", str(data / "vectors/cocostuff182-word2vec-300d.txt")]
    seen, zero = ["--split", "seen.h5"], ["--split", "zero.h5"]
    steps: list[tuple[str, list[str]]] = [
        ("help", ["--help"]),
        ("fetch-data folder, 3,353 photos", ["fetch-data", "folder", "--root", str(voc)]),
        ("embed-labels, word2vec to 50 dims", ["embed-labels", *words]),
        ("make-split, all seen", ["make-split", "--out", "seen.h5"]),
        ("make-split, cow and sheep unseen", ["make-split", "--unseen", "cow,sheep", "--out", "zero.h5"]),
    ]
    runs = [
        ("mse 50, frozen, cow and sheep unseen", ["--no-gate", "--calibration", "none", *zero]),
        ("mse 50, frozen", [*seen]),
        ("softmax, frozen", ["--loss", "softmax", *seen]),
        ("mse 50, fine-tuned, 1 epoch", ["--fine-tune", "--epochs", "1", *seen]),
        ("softmax, fine-tuned, 1 epoch", ["--loss", "softmax", "--fine-tune", "--epochs", "1", *seen]),
    ]
    for index, (name, arguments) in enumerate(runs):
        model, scores = f"model{index}.h5", f"scores{index}.h5"
        steps.append((f"train: {name}", ["train", *arguments, "--out", model]))
        steps.append((f"eval: {name}", ["eval", "--model", model, "--out", scores, "--min-images", "5", "--json", "-"]))
    biased = ["eval", "--model", "model0.h5", "--out", "biased.h5", "--min-images", "5", "--json", "-"]
    steps.append(("eval: cow and sheep unseen, seen bias 0.2", [*biased, "--seen-bias", "0.2"]))
    steps.append(("predict, one photo", ["predict", str(photo), "--model", "model1.h5"]))
    return [_timed(name, arguments, work) for name, arguments in steps]


def _timed(name: str, arguments: list[str], work: Path) -> dict[str, object]:
    """Run one command as a process of its own; quick ones five times, for the median."""
    walls = []
    for _ in range(5 if name in ("help", "predict, one photo") else 1):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        force = [] if name == "help" else ["--force"]
        command = [*ZSSEG, *arguments, *force]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
        walls.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row: dict[str, object] = {"name": name, "wall_s": statistics.median(walls), "cpu_s": cpu}
    if arguments[0] == "eval":
        row |= _scores(json.loads(done.stdout)["generalized"])
    cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
    print(" | ".join(cells), flush=True)
    return row


def _scores(scores: dict[str, object]) -> dict[str, object]:
    iou = scores["iou"]
    assert isinstance(iou, dict)
    kept = {key: scores[key] for key in ("miou", "seen_miou", "unseen_miou", "harmonic_miou")}
    return {"miou_of_7": statistics.mean(iou[name] for name in CLASSES), **kept}


def _machine() -> dict[str, object]:
    import torch

    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}


if __name__ == "__main__":
    main()
