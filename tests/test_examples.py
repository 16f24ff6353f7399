"""The scripts of examples/ run as they are written, on tiny data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import write_folder, zsseg

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *words: object, folder: Path, **variables: str) -> str:
    """Run a script in a folder and return its stdout."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", str(EXAMPLES / script), *map(str, words)],
        cwd=folder, env={**os.environ, "PATH": path, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module", autouse=True)
def _command() -> None:
    if shutil.which("bash") is None or not (Path(sys.executable).parent / "zsseg").exists():
        pytest.skip("needs bash and the installed command")


def test_every_script_is_tested() -> None:
    """A new example gets a test; the quickstart is the demo, which test_docs looks at."""
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.sh") if path.name not in tested and path.stem != "quickstart"] == []


def test_reproduce_split(tmp_path: Path) -> None:
    """reproduce_split.sh ends in scores over seeds."""
    write_folder(tmp_path / "set")
    variables = {
        "FETCH": f"folder --root {tmp_path / 'set'}", "VECTORS": "glove-6b-50d", "SEEDS": "1", "DIM": "10",
        "SPLIT": "--unseen cow,sheep", "TRAIN": "--epochs 1 --no-gate --calibration none",
    }  # fmt: skip
    stdout = run("reproduce_split.sh", tmp_path / "out", folder=tmp_path, **variables)
    assert "zs3" in stdout
    assert "generalized" in json.loads((tmp_path / "out" / "scores.json").read_text())


def test_compare_losses(tmp_path: Path) -> None:
    """compare_losses.sh ends in a line for each loss."""
    write_folder(tmp_path / "set")
    zsseg("fetch-data", "folder", "--root", tmp_path / "set", "--workspace", tmp_path)
    variables = {"LOSSES": "mse hinge", "TRAIN": "--dim 10 --epochs 1 --no-gate --calibration none"}
    stdout = run("compare_losses.sh", tmp_path, folder=tmp_path, **variables)
    assert [line.split()[0] for line in stdout.splitlines()[-2:]] == ["mse", "hinge"]


def test_label_my_folder(trained: Path, tmp_path: Path) -> None:
    """label_my_folder.sh labels photos in subfolders, and names the file that is none."""
    (tmp_path / "photos" / "a b").mkdir(parents=True)
    shutil.copy(trained / "images" / "five.png", tmp_path / "photos" / "a b" / "five.png")
    (tmp_path / "photos" / "broken.jpg").write_text("no photo")
    run("label_my_folder.sh", tmp_path / "photos", trained / "model.h5", folder=tmp_path)
    found = json.loads((tmp_path / "labelled" / "found.json").read_text())
    assert [photo["id"] for photo in found["photos"]] == ["five"]
    assert [each["source"] for each in found["skipped"]] == ["broken.jpg"]
    with Image.open(tmp_path / "labelled" / "pictures" / "five.png") as picture:
        assert picture.mode == "P"


def test_add_a_class(trained: Path, tmp_path: Path) -> None:
    """add_a_class.sh predicts words in three ways."""
    photo = trained / "images" / "five.png"
    run("add_a_class.sh", trained / "model.h5", photo, "zebra, grass", folder=tmp_path, VOCABULARY="500")
    assert {path.name for path in (tmp_path / "any-words").glob("*.h5")} == {"added.h5", "alone.h5", "read.h5"}
