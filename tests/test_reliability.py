"""What docs/reliability.md promises of whole commands: kills, full disks, read-only folders, two at once.

`tests/kill.py` holds the campaigns; a slice of each runs here.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill
import pytest
from tiny import zsseg

from zsseg.artifacts import claim

SCRIPT = Path(kill.__file__)
FROZEN = ("--frozen", "--calibration", "none", "--no-gate", "--epochs", 2, *kill.QUICK, 1)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make every artifact of the tiny data set, to be read only."""
    folder = tmp_path_factory.mktemp("space")
    kill.write_folder(folder / "set")
    zsseg("fetch-data", "folder", "--root", folder / "set", "--workspace", folder)
    zsseg("embed-labels", "--dim", 6, "--workspace", folder)
    zsseg("make-split", "--unseen", "cow,sheep", "--workspace", folder)
    zsseg("train", *FROZEN, "--workspace", folder)
    return folder


def campaign(*words: str) -> dict[str, Any]:
    """Run a campaign in a process without threads, for it forks."""
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_killed_training_goes_on_exactly() -> None:
    """Runs that SIGKILL ends at 20 random moments, and --resume takes up, end in the bytes of an unkilled one."""
    figures = campaign("resume", "--kills", "20", "--each", "8", "--only", "frozen, gate")
    assert figures["kills"] == 20
    assert sum(figures["bit-identical runs"].values()) >= 1


def test_stopped_commands_leave_whole_files() -> None:
    """Each command, stopped by a signal at a random moment, leaves the old output or the new one."""
    assert campaign("commands", "--kills", "6")["stopped"] == 6


def writers(space: Path, folder: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield each command that writes an artifact into a folder, and its output's name."""
    common = ("--workspace", space, "-q")
    yield "data.h5", ("fetch-data", "folder", "--root", space / "set", *common, "--out", folder / "data.h5")
    yield "labels.h5", ("embed-labels", "--dim", 6, *common, "--out", folder / "labels.h5")
    yield "split.h5", ("make-split", "--unseen", "cow", *common, "--out", folder / "split.h5")
    yield "model.h5", ("train", *FROZEN, *common, "--out", folder / "model.h5")
    yield "scores.h5", ("eval", *common, "--out", folder / "scores.h5")
    photos = (space / "set" / "images", "--pictures", folder)
    yield "predictions.h5", ("predict", *photos, *common, "--out", folder / "predictions.h5")


def refuse(words: tuple[object, ...], *says: str) -> None:
    """Check that a command ends with one line that says all that."""
    result = zsseg(*words, "--force", expect=1)
    assert result.stderr.count("\n") == 1, result.stderr
    for word in says:
        assert word in result.stderr


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size: the write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(space: Path, tmp_path: Path) -> None:
    """Every command that cannot write says so in a line, keeps the old file, and leaves nothing else."""
    for name, words in writers(space, tmp_path):
        (tmp_path / name).write_text("mine")
        with full_disk(1000):
            refuse(words, name, "could not be written", "free some space")
        assert (tmp_path / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {name for name, _ in writers(space, tmp_path)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )  # fmt: skip
    if done.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_small_disk(space: Path, small_disk: Path) -> None:
    """A disk that is really full is told in a line; what was on it stays, and nothing is added."""
    (small_disk / "model.h5").write_text("mine")
    (small_disk / "fill").write_bytes(bytes(50_000))
    for name, words in writers(space, small_disk):
        if name in ("data.h5", "model.h5"):
            refuse(words, name, "could not be written", "No space left")
    assert (small_disk / "model.h5").read_text() == "mine"
    assert {path.name for path in small_disk.iterdir()} == {"model.h5", "fill"}


def test_a_read_only_folder(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command refuses a folder where it cannot write before it works, and makes nothing."""
    access = os.access  # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode, **rest: not mode & os.W_OK and access(path, mode, **rest))
    for name, words in writers(space, tmp_path / "new"):
        refuse(words, "cannot write in this folder")
        assert not (tmp_path / "new").exists(), name


def test_two_commands_with_one_output(space: Path, tmp_path: Path) -> None:
    """While one process writes an output, any command with that output is refused in a line."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom contextlib import ExitStack\nfrom zsseg.artifacts import claim\n"
        "with ExitStack() as stack:\n    for path in sys.argv[1:]:\n"
        "        stack.enter_context(claim(Path(path), force=True))\n    print('claimed', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    outputs = [tmp_path / name for name, _ in writers(space, tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *outputs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        for name, words in writers(space, tmp_path):
            refuse(words, f"{name}: another zsseg command is writing it; wait")
        other.communicate("\n")
    assert list(tmp_path.iterdir()) == []
    with claim(outputs[0], force=False):
        pass


@pytest.mark.parametrize("gone", ["data.h5", "split.h5", "labels.h5"])
def test_a_vanished_input(space: Path, tmp_path: Path, gone: str) -> None:
    """A missing input is named before anything is written."""
    for name in {"data.h5", "split.h5", "labels.h5"} - {gone}:
        (tmp_path / name).symlink_to(space / name)
    words = ("train", *FROZEN, "--workspace", tmp_path, f"--{gone[:-3]}", tmp_path / gone)
    if gone == "data.h5":
        refuse((*words, "-q"), "data.h5: no such file")
        assert not [path for path in tmp_path.iterdir() if not path.is_symlink()]
    else:
        zsseg(*words, "-q")  # made from train's own options
        assert {path.name for path in tmp_path.iterdir()} == {"data.h5", "split.h5", "labels.h5", "model.h5"}
