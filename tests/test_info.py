"""`zsseg info` says what a file is and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from tiny import zsseg

from zsseg.artifacts import open_artifact
from zsseg.schema import SCHEMA, Kind


@pytest.mark.parametrize("kind", ["data", "labels", "split", "model"])
def test_info(kind: Kind, trained: Path) -> None:
    """Kind, digest, settings, fields and the files that it was made from are those of the artifact."""
    path = trained / f"{kind}.h5"
    [report] = json.loads(zsseg("info", path, "--json", "-").stdout)
    with open_artifact(path, kind) as artifact:
        assert report["kind"] == kind
        assert report["digest"] == artifact.digest
        assert report["digest_holds"] is True
        assert report["params"] == artifact.params
        assert {each["file"] for each in report["inputs"].values()} == {f"{name}.h5" for name in artifact.inputs}
        assert list(report["fields"]) == [name for name in SCHEMA[kind] if name in artifact]
        assert report["fields"]["names"]["shape"] == [len(artifact.strings("names"))]
    table = zsseg("info", path).stdout
    assert report["digest"] in table
    assert "names" in table


def test_other_kinds(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, predictions and kept features say what they are, too."""
    at = ("--workspace", trained)
    monkeypatch.setenv("ZSSEG_FEATURES", str(tmp_path / "kept"))
    zsseg("train", *at, "--out", tmp_path / "model.h5", "--epochs", "1", "--calibration", "none")
    zsseg("eval", *at, "--out", tmp_path / "scores.h5")
    zsseg("predict", trained / "images" / "five.png", *at, "--out", tmp_path / "p.h5", "--pictures", tmp_path)
    (kept,) = (tmp_path / "kept").glob("*.h5")
    reports = json.loads(zsseg("info", tmp_path / "scores.h5", tmp_path / "p.h5", kept, "--json", "-").stdout)
    assert [each["kind"] for each in reports] == ["scores", "predictions", "features"]
    assert "4 photos" in reports[2]["about"]
    assert "kept between runs" in zsseg("info", kept).stdout


def test_where_it_came_from_is_not_here(trained: Path, tmp_path: Path) -> None:
    """An input that does not lie beside the file is said to be elsewhere."""
    (tmp_path / "split.h5").write_bytes((trained / "split.h5").read_bytes())
    assert "not in this folder" in zsseg("info", tmp_path / "split.h5").stdout


def test_a_changed_file(trained: Path, tmp_path: Path) -> None:
    """A digest that does not hold is an error, and so is what is no artifact."""
    path = tmp_path / "split.h5"
    path.write_bytes((trained / "split.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["seen"][0] = 1
    assert "do not match its digest" in " ".join(zsseg("info", path, expect=1).stderr.split())
    assert "not a readable HDF5 file" in zsseg("info", __file__, expect=1).stderr
    assert "is a folder" in zsseg("info", tmp_path, expect=1).stderr
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["weights"] = [1.0]
    assert "no zsseg artifact" in " ".join(zsseg("info", tmp_path / "foreign.h5", expect=1).stderr.split())
