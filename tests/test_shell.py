"""The commands as citizens of the shell: JSON, progress that machines read, examples, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from test_docs import problem
from tiny import write_folder, zsseg

from zsseg.cli import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_that_parse(command: str) -> None:
    """The help of each command ends in examples of it, whose options exist."""
    title, *lines = COMMANDS[command].epilog.split("\n\n")
    assert title == "Examples:"
    shown = [re.search(r"zsseg (.*?)(?: \||$)", line) for line in lines]
    words = [shlex.split(match[1]) for match in shown if match]
    assert len(words) == len(lines)
    assert all(each[0] == command for each in words)
    assert [problem(each) for each in words] == [None] * len(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str) -> None:
    """`--json` is an option everywhere."""
    assert "--json" in [name for each in COMMANDS[command].params for name in each.opts]


def test_json_of_the_first_commands(tmp_path: Path) -> None:
    """With `--json -` stdout is JSON and nothing else, from one command to the next."""
    write_folder(tmp_path / "set")
    at = ("--workspace", tmp_path, "--json", "-")
    fetched = json.loads(zsseg("fetch-data", "folder", "--root", tmp_path / "set", *at).stdout)
    assert (fetched["train"], fetched["val"]) == (4, 2)
    assert json.loads(zsseg("embed-labels", "--dim", "10", *at).stdout)["dim"] == 10
    assert "cow" in zsseg("make-split", "--unseen", "cow,sheep", *at).stdout
    quick = ("--epochs", "1", "--no-gate", "--calibration", "none")
    [trained] = json.loads(zsseg("train", *quick, *at).stdout)
    assert trained["finished"] is True
    assert trained["path"] == str(tmp_path / "model.h5")
    pictures = json.loads(zsseg("visualize", tmp_path / "labels.h5", *at).stdout)
    assert pictures
    assert all(Path(path).is_file() for path in pictures)


def test_an_existing_json_file_is_kept(trained: Path, tmp_path: Path) -> None:
    """A file of --json is refused before any work, as other outputs are."""
    (tmp_path / "found.json").write_text("mine")
    to = ("--workspace", trained, "--out", tmp_path / "p.h5", "--pictures", tmp_path / "pictures")
    result = zsseg("predict", trained / "images" / "five.png", *to, "--json", tmp_path / "found.json", expect=1)
    assert "choose another with --json" in " ".join(result.stderr.split())
    assert not (tmp_path / "p.h5").exists()
    assert (tmp_path / "found.json").read_text() == "mine"


def test_progress_in_json(trained: Path, tmp_path: Path) -> None:
    """Each line on stderr is a JSON object; the last one of a task says that all is done."""
    to = ("--workspace", trained, "--out", tmp_path / "p.h5", "--pictures", tmp_path / "pictures")
    result = zsseg("--progress", "json", "predict", trained / "images", "--vocabulary", "200", *to)
    events = [json.loads(line) for line in result.stderr.splitlines()]
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[0] == {"event": "progress", "task": "predicting", "done": 0, "total": 6}
    assert progress[-1]["done"] == progress[-1]["total"] == 6
    assert next(event["text"] for event in events if event["event"] == "note").startswith("reading out")
    assert "{" not in result.stdout
    quiet = zsseg("--progress", "json", "predict", trained / "images", "--force", "--quiet", *to)
    assert quiet.stderr == ""


def test_a_form_of_progress_lasts_for_one_command(trained: Path, tmp_path: Path) -> None:
    """What one command was told is no setting of the next one in the same process."""
    to = ("--workspace", trained, "--out", tmp_path / "p.h5", "--pictures", tmp_path / "pictures", "--force")
    zsseg("--progress", "json", "predict", trained / "images", *to)
    assert zsseg("predict", trained / "images", *to).stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """The script for the shell is printed, and completes the name of a command."""
    run = [sys.executable, "-m", "zsseg", "--show-completion", shell]
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else typer asks which shell runs it
    script = subprocess.run(run, capture_output=True, text=True, check=True, env=named)
    assert "zsseg" in script.stdout


def test_completion_of_a_command() -> None:
    """What the bash script runs on every tab finds commands, and loads no heavy package on the way."""
    code = (
        "import sys\nfrom zsseg.cli import main\nsys.argv = ['zsseg']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    wanted = {"_ZSSEG_COMPLETE": "complete_bash", "COMP_WORDS": "zsseg pred", "COMP_CWORD": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **wanted}
    )
    assert result.stdout.split() == ["predict"]
