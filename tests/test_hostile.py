"""Files made to harm: nothing is executed, nothing runs for ever or fills the memory, and the answer is one line.

`tests/fuzz.py` holds the campaign; a slice of it runs here. Damaged artifacts are in test_artifacts.py, damaged images
in test_images.py, unsafe names in archives in test_fetch.py.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from zsseg import archives, artifacts, voc
from zsseg.artifacts import create, open_artifact
from zsseg.errors import ArtifactError, DataError
from zsseg.images import decode_image
from zsseg.tensors import read_tensors
from zsseg.vectors import read_file


def test_a_slice_of_the_campaign(tmp_path: Path) -> None:
    """A few hundred mutated files, of all readers: each is read or refused in a line."""
    script, keep = str(Path(fuzz.__file__)), str(tmp_path / "failures")
    done = subprocess.run(
        [sys.executable, script, "--inputs", "300", "--workers", "1", "--seed", "7", "--keep", keep],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["inputs"] == 300
    assert figures["ended"]["read"] > 20
    assert sum(count for ended, count in figures["ended"].items() if ended.startswith("refused")) > 100


def test_the_campaign_finds_failures(tmp_path: Path) -> None:
    """A reader that raises something else, hangs, fills the memory or executes a pickle is found."""
    code = (
        "import fuzz, pathlib, sys, time\nfrom zsseg.errors import DataError\n"
        "def read(reader, path, space):\n"
        "    number = read.number = getattr(read, 'number', -1) + 1\n"
        "    if number == 1: raise KeyError('x')\n"
        "    if number == 2: (space.folder / fuzz.CANARY).write_text('')\n"
        "    if number == 3: raise DataError('fine')\n"
        "fuzz.read = read\n"
        "space = fuzz.Space(pathlib.Path(sys.argv[1]), None, {'lists': [('a', b'x' * 50)]})\n"
        "print([each[2] for each in fuzz.run(space, [('lists', n) for n in range(4)], 0, 1)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True,
        cwd=Path(fuzz.__file__).parent,
    )  # fmt: skip
    found = done.stdout
    assert "FAILED: KeyError" in found
    assert "FAILED: executed" in found
    assert "'read'" in found


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar header that claims a size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def twice() -> bytes:
    """Return a tar archive that holds a file twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/a.jpg"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (gzip.compress(header("x", 1 << 30) + bytes(1 << 26)), "unpacks to more than|points outside"),
        (header("x", 1 << 40), "not a readable tar archive|points outside"),
        (header("x", 1 << 40, tarfile.XHDTYPE), "damaged or absurdly long"),
        (header("x", 1 << 33, tarfile.GNUTYPE_LONGNAME), "damaged or absurdly long"),
        (twice(), "holds 'VOCdevkit/VOC2012/JPEGImages/a.jpg' twice"),
    ],
)
def test_archives(content: bytes, match: str, tmp_path: Path) -> None:
    """Bombs, headers that lie about sizes, and names that come twice are refused."""
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=match), archives.opened(path):
        pass
    if content != twice():
        with pytest.raises(DataError, match=match):
            voc.identify(path)


def test_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive with too many members is refused before they fill the memory."""
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(12):
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
    with pytest.raises(DataError, match="holds more than 10 members"):
        voc.identify(path)


def test_a_zip_bomb(tmp_path: Path) -> None:
    """A member that unpacks to a thousand times its size is refused, and nothing is left."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(1 << 26))
    with pytest.raises(DataError, match=r"not a readable zip archive \(a.txt unpacks to more than 20 times"):
        archives.unpack(tmp_path / "a.zip", "a.txt", tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """PostScript, which Pillow hands to another program, is not opened, whatever it is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format="EPS")
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image \(of no known format\)"):
        decode_image(tmp_path / "a.jpg", "a.jpg")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"7" * 5000 + b" 5\n", "not a word-vector file"),
        (b"1 999999999999\ncow ", "claims 999,999,999,999 numbers a word"),
        (b"cow" + b" 1.0" * 20_000, "claims 20,000 numbers a word"),
        (gzip.compress(b"9 5\n" + bytes(1 << 26)), "unpacks to more than|not a word-vector file"),
        (gzip.compress(b"cow 1 2 3\n" + b"a" * (1 << 26)), "unpacks to more than|truncated or damaged"),
    ],
)
def test_vectors(content: bytes, match: str, tmp_path: Path) -> None:
    """Word vectors that claim or unpack to more than any set holds are refused."""
    (tmp_path / "a.vec").write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_file(tmp_path / "a.vec", wanted=(), frequent=100)


class Asks:
    """Asks for memory when it is unpickled, by a name that torch's restricted unpickler allows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (bytearray, (1 << 36,))


def test_weights_that_ask_for_memory(tmp_path: Path) -> None:
    """A hundred bytes that would fill the memory, packed parts, and tensors without numbers are refused."""
    path = tmp_path / "a.pth"
    for zipped in (True, False):
        torch.save({"a": Asks()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="bytearray, which no tensor needs"):
            read_tensors(path)
    path.write_bytes(pickle.dumps({"a": Asks()}, protocol=2))
    with pytest.raises(ValueError, match="bytearray, which no tensor needs"):
        read_tensors(path)
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(1 << 20))
    with pytest.raises(ValueError, match="packed"):
        read_tensors(tmp_path / "b.pth")
    for strange in (torch.zeros(1).expand(1 << 40), torch.zeros(3, dtype=torch.complex64)):
        torch.save({"a": strange}, path)
        with pytest.raises(TypeError, match="no plain state dict"):
            read_tensors(path)
    torch.save({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, path)
    assert read_tensors(path)["a"].tolist() == [1, 1, 1]


def write_data(path: Path) -> Path:
    """Write a data artifact."""
    with create(path, "data", params={"source": "folder"}, inputs={}, force=True) as writer:
        writer.put("names", ["cow", "cat"])
        writer.put("ids", ["one", "two"])
        writer.put("images", [b"x" * 1000, b"y"])
        writer.put("label_maps", [b"", b""])
        writer.put("sizes", np.ones((2, 2)))
        writer.put("train", [0])
        writer.put("val", [1])
    return path


CRAFTED: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "index beyond the end": (lambda file: file["val"].write_direct(np.array([2])), "'val' holds what is no index"),
    "negative index": (lambda file: file["val"].write_direct(np.array([-1])), "'val' holds what is no index"),
    "no size": (lambda file: file["sizes"].write_direct(np.zeros((2, 2), np.int32)), "'sizes' holds numbers below 1"),
    "a name twice": (lambda file: file["names"].__setitem__(1, "cow"), "class names, expected 1 to 255, each once"),
    "settings": (lambda file: file.attrs.modify("params", '{"source": 7}'), "'source' is of another type"),
    "many attributes in one": (lambda file: file.attrs.create("params", ["{}"] * 9), "'params' is no text"),
    "large settings": (
        lambda file: file.attrs.create("params", " " * (5 << 20)),
        "have more than 4,194,304 characters",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_values_behind_a_digest_that_fits(name: str, tmp_path: Path) -> None:
    """Values that only a crafted file holds are found, though digest and seal are right."""
    path = write_data(tmp_path / "data.h5")
    change, match = CRAFTED[name]
    with h5py.File(path, "r+", libver="latest") as file:
        change(file)
        file.attrs["digest"] = artifacts._digest(file.attrs, file, "data")
    with pytest.raises(ArtifactError, match=match):
        open_artifact(path, "data")


def test_rows_of_another_sort(tmp_path: Path) -> None:
    """Rows of text, of floats or of references in place of bytes are refused, though all are objects to NumPy."""
    for dtype in (h5py.string_dtype(), h5py.vlen_dtype(np.float64), h5py.ref_dtype):
        path = write_data(tmp_path / "data.h5")
        with h5py.File(path, "r+") as file:
            del file["label_maps"]
            file.create_dataset("label_maps", (2,), dtype)
        with pytest.raises(ArtifactError, match="'label_maps' is object, expected bytes"):
            open_artifact(path, "data")


def test_rows_that_share_what_they_hold(tmp_path: Path) -> None:
    """Many rows that point at one large string, in a small file, are refused before they are all read."""
    path = write_data(tmp_path / "data.h5")
    with h5py.File(path, "r+") as file:
        file["images"][0] = np.zeros(5000, np.uint8)
        del file["train"], file["val"], file["sizes"]
        place = file["images"].chunks, file["images"].id.get_chunk_info(0)
        file["sizes"], file["train"], file["val"] = np.ones((2, 2), np.int32), np.array([0]), np.array([1])
        start = place[1].byte_offset
    content = bytearray(path.read_bytes())
    content[start + 16 : start + 32] = content[start : start + 16]  # the second row is the first one again
    path.write_bytes(content)
    with (
        pytest.raises(ValueError, match="rows of field 'images' are larger than the file"),
        h5py.File(path) as file,
    ):
        artifacts._digest(file.attrs, file, "data", most=9000)


def test_a_cut_seal(tmp_path: Path) -> None:
    """Whatever is cut from an artifact's end, it is refused; without its seal it is HDF5 as any tool writes it."""
    path = write_data(tmp_path / "data.h5")
    content = path.read_bytes()
    whole = content.rindex(artifacts.SEAL)
    for end in (whole + 1, whole + 20, len(content) - 1, whole - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ArtifactError, match=r"damaged|not a readable HDF5 file"):
            open_artifact(path, "data")
    path.write_bytes(content[:whole])
    open_artifact(path, "data").close()


def test_memory_of_a_large_photo() -> None:
    """A photo of nearly the most pixels, in a tiny file, is decoded with little more than its own size."""
    buffer = io.BytesIO()
    Image.new("P", (7000, 7000)).save(buffer, format="PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(buffer.getvalue(), "a.png").shape == (7000, 7000, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10
