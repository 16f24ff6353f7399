"""The benchmark of peers runs a row to its end and keeps what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed.py"


def test_a_row_measures_both_sides_and_compares_their_results(tmp_path: Path) -> None:
    """Label maps from the grid are those of upsampling first, and the row is in the table and in the JSON file."""
    out = tmp_path / "speed.json"
    words = [sys.executable, str(SPEED), "--only", "nne", "--repeats", "1", "--json", str(out)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert "| nne |" in shown
    assert row["same"]
    assert row["ratio"] == row["peer"] / row["ours"]
    assert row["ours_mb"] > 0


def test_a_row_that_there_is_not_is_refused() -> None:
    """It names those that there are, instead of measuring nothing."""
    done = subprocess.run([sys.executable, str(SPEED), "--only", "nnex"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nnex: no such row; there are fcn32s-step-20" in done.stderr
