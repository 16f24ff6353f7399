"""Shared fixtures: where the real photos and word vectors lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import write_folder, zsseg


@pytest.fixture(autouse=True, scope="session")
def features_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests compute away from the user's cache."""
    os.environ["ZSSEG_FEATURES"] = str(tmp_path_factory.mktemp("features"))
    os.environ["ZSSEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real photos, label maps and word vectors, or skip where there is none."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    root = Path(os.environ.get("ZSSEG_TEST_DATA", default)).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set ZSSEG_TEST_DATA")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a tiny model, gate, anchors and calibration included; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    write_folder(root / "set")
    at = ("--workspace", root)
    zsseg("fetch-data", "folder", "--root", root / "set", *at)
    words = ("--dim", "10", "--unseen", "cow,sheep", "--calibration", "stacking")
    zsseg("train", *words, "--epochs", "2", "--precision", "float32", *at)
    (root / "images").symlink_to(root / "set" / "images")
    return root
