"""`predict` over several photos: labelled side by side, they come out as they do one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import FROZEN, run, workspace

from zsseg.artifacts import open_artifact
from zsseg.config import PredictConfig
from zsseg.errors import DataError
from zsseg.predict import predict


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a trained model and a folder of photos of several sizes, to be read only."""
    folder = workspace(tmp_path_factory.mktemp("predict"))
    run(folder, folder / "model.h5", FROZEN)
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(40, 60), (64, 64), (33, 90), (64, 64), (120, 30), (50, 50), (8, 8)]):
        few = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        few.resize((width, height)).save(folder / "photos" / f"{index}.png")
    return folder


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of PyTorch's threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def predicted(space: Path, photos: Path, folder: Path, *, threads: int) -> dict[str, bytes]:
    """Predict with so many threads; return every picture, and the artifact's digest."""
    torch.set_num_threads(threads)
    out = folder / "predictions.h5"
    predict([photos], space / "model.h5", out, folder / "pictures", PredictConfig(device="cpu"))
    files = {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}
    with open_artifact(out, "predictions") as artifact:
        return {**files, "digest": artifact.digest.encode(), "ids": " ".join(artifact.strings("ids")).encode()}


@pytest.mark.usefixtures("threads")
def test_photos_side_by_side_give_what_they_give_one_by_one(space: Path, tmp_path: Path) -> None:
    """Threads change neither a picture nor the order nor a score."""
    one = predicted(space, space / "photos", tmp_path / "one", threads=1)
    assert one["ids"] == b"0 1 2 3 4 5 6"
    assert len(one) == 2 * 7 + 2
    assert predicted(space, space / "photos", tmp_path / "three", threads=3) == one


@pytest.mark.usefixtures("threads")
def test_a_bad_photo_among_others_leaves_nothing(space: Path, tmp_path: Path) -> None:
    """The error is that photo's, and no picture of the others is left behind, nor an artifact."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (space / "photos").iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png.*--skip-bad"):
        predicted(space, photos, tmp_path / "out", threads=3)
    assert list((tmp_path / "out" / "pictures").iterdir()) == []
    assert not (tmp_path / "out" / "predictions.h5").exists()
