"""docs/extending.md: what it adds to a copy of the package works as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import COLOURS, label_map, photo

import zsseg as package

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'```(python|diff) title="([^"]+)"\n(.*?)```', PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package to which every block of the page was applied."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(Path(package.__file__).parent, root / "zsseg", ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, code in BLOCKS:
        file = root / name
        if kind == "python":
            file.write_text(code)
            continue
        lines = code.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        before, after = before.removesuffix("\n"), after.removesuffix("\n")  # a line may go on
        assert file.read_text().count(before) == 1, f"{name} holds not just one\n{before}"
        file.write_text(file.read_text().replace(before, after))
    return root


def run(*words: object, root: Path) -> str:
    """Run Python where the copy goes before the installed package."""
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_page_works(extended: Path) -> None:
    """Coloured label maps become a data set, on which the page's network learns by the page's loss."""
    coloured, images = extended / "coloured", extended / "folder" / "images"
    coloured.mkdir()
    images.mkdir(parents=True)
    palette = np.array([(0, 0, 0), *COLOURS[1:3]], np.uint8)
    for seed, ids in enumerate([(0, 1, 2, 0), (1, 0, 0, 2), (2, 2, 1, 0)]):
        labels = label_map(ids)
        photo(labels, seed=seed).save(images / f"{seed}.png")
        colours = np.where((labels == 255)[..., None], np.uint8(9), palette[np.minimum(labels, 2)])
        Image.fromarray(colours).save(coloured / f"{seed}.png")
    run("colours_to_folder.py", "coloured", "folder", root=extended)
    written = np.asarray(Image.open(extended / "folder" / "masks" / "0.png"))
    np.testing.assert_array_equal(written, label_map((0, 1, 2, 0)))

    (extended / "learn.py").write_text(
        "from pathlib import Path\nfrom typer.testing import CliRunner\nfrom zsseg.cli import app\n"
        "from zsseg.artifacts import open_artifact\n"
        "for line in ('fetch-data folder --root folder',\n"
        "             'train --model plain --fine-tune --loss absolute --dim 10 --epochs 2 --precision float32'):\n"
        "    assert CliRunner().invoke(app, line.split(), catch_exceptions=False).exit_code == 0\n"
        "with open_artifact(Path('model.h5'), 'model') as model:\n"
        "    print(model.params['model'], model.params['loss'])\n"
    )
    assert run("learn.py", root=extended).split() == ["plain", "absolute"]
