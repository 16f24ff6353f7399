"""Import, train on and predict very many photos, and watch the memory; `make long` runs it with 10,000.

    python tests/long.py --photos 10000 --steps 2000

The photos are `tiny`'s, drawn anew, every five hundredth damaged. Each command is a process of its own, whose resident
memory is read from /proc while its progress (`--progress json`) tells where it stands. Memory is constant where what is
held at a tenth of the way, after which caches are warm, grows little until the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import NAMES, label_map, photo

BAD_EVERY = 500


def write_photos(root: Path, count: int) -> list[str]:
    """Write a data set of that many photos; return the names of the damaged ones."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng, bad = np.random.default_rng(0), []
    pool = [(labels, photo(labels, seed=seed)) for seed, labels in enumerate(_maps(rng, 20))]
    for number in range(count):
        labels, image = pool[number % len(pool)]
        name = f"{number:06}.png"
        image.save(root / "images" / name, compress_level=1)
        Image.fromarray(labels).save(root / "masks" / name, compress_level=1)
        if number % BAD_EVERY == BAD_EVERY // 2:
            content = (root / "images" / name).read_bytes()
            (root / "images" / name).write_bytes(content[: len(content) // 2])
            bad.append(name)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return bad


def _maps(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    return [label_map(rng.integers(0, len(NAMES), 4).tolist()) for _ in range(count)]


def watched(*words: object) -> dict[str, Any]:
    """Run a command; return its exit code, time, stdout, and its memory by how far it was."""
    command = [sys.executable, "-m", "zsseg", "--progress", "json", *map(str, words)]
    started, memory, seen = time.monotonic(), {}, 0
    errors: list[str] = []
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {"event": "other", "text": line}
            if event["event"] == "progress" and event["total"] > 100:
                seen += 1
                memory[event["task"], event["done"], event["total"]] = _resident(process.pid)
            elif event["event"] != "progress":
                errors.append(str(event.get("text", line)).strip())
        code = process.wait()
        out.seek(0)
        text = out.read()
    return {
        "code": code, "seconds": round(time.monotonic() - started), "stdout": text, "stderr": errors,
        "progress lines": seen, "memory": _summed_up(memory),
    }  # fmt: skip


def _resident(process: int) -> int:
    """Return a process's resident memory and its children's in MiB."""
    total = 0
    for each in (process, *_children(process)):
        try:
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total >> 20


def _children(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _summed_up(memory: dict[tuple[str, int, int], int]) -> dict[str, str]:
    found = {}
    for task in dict.fromkeys(key[0] for key in memory):
        steps = sorted((done, total, size) for (each, done, total), size in memory.items() if each == task)
        early = next((each for each in steps if each[0] >= each[1] / 10), steps[-1])
        found[task] = f"{early[2]} MiB at {early[0]}, {steps[-1][2]} MiB at {steps[-1][0]} of {steps[-1][1]}"
    return found


def main() -> None:
    """Run fetch-data, train and predict, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder)
        os.environ["ZSSEG_FEATURES"] = str(space / "features")
        bad = write_photos(space / "set", options.photos)
        at = ("--workspace", space)
        refused = watched("fetch-data", "folder", "--root", space / "set", *at)
        imported = watched("fetch-data", "folder", "--root", space / "set", "--skip-bad", "--json", "-", *at)
        batch, train = 4, round(0.8 * options.photos)
        network = ("--calibration", "none", "--no-gate", "--anchors", "none")
        epochs = max(1, round(options.steps * batch / train))
        words = ("--unseen", "cow", "--dim", "6", "--batch", batch, "--crop", "64", "--workers", "0", "--device", "cpu")
        trained = watched("train", *network, *words, "--epochs", epochs, *at)
        predicted = watched(
            "predict", space / "set" / "images", "--skip-bad", "--device", "cpu", "--json", space / "p.json", *at,
            "--pictures", space / "pictures",
        )  # fmt: skip
        skipped = len(json.loads((space / "p.json").read_text())["skipped"]) if (space / "p.json").exists() else None
        shutil.rmtree(space / "set")
    runs = {"fetch-data": refused, "fetch-data --skip-bad": imported, "train": trained, "predict": predicted}
    figures: dict[str, Any] = {
        name: {
            "exit code": run["code"], "seconds": run["seconds"], "memory": run["memory"],
            "progress lines": run["progress lines"], "last on stderr": run["stderr"][-1:],
        }
        for name, run in runs.items()
    }  # fmt: skip
    figures["bad photos"] = {"made": len(bad), "left out of predictions": skipped}
    figures["bad photos"]["named by fetch-data"] = sum(f"images/{name}" in imported["stdout"] for name in bad)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
