"""The good files that `fuzz` mutates: artifacts, images, archives, vectors and weights, made of `tiny`'s photos.

Some are not good: pickles that make a canary file when they are executed.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from scipy.io import savemat
from tiny import SIDE, label_map, write_folder, zsseg

from zsseg import artifacts, checkpoint
from zsseg.config import TrainConfig
from zsseg.models import build
from zsseg.schema import SCHEMA
from zsseg.task import Task, read_task

CANARY = "canary"


@dataclass
class Space:
    """Good files, and what readers need besides the file that they read."""

    folder: Path
    task: Task
    seeds: dict[str, list[tuple[str, bytes]]]  # reader -> file name and content of each good file

    def file(self, name: str) -> Path:
        """Return a file of the workspace."""
        return self.folder / name


def make_space(folder: Path) -> Space:
    """Make the artifacts of the tiny data set, and a good file or several for every reader."""
    write_folder(folder / "set")
    at = ("--workspace", folder, "-q")
    zsseg("fetch-data", "folder", "--root", folder / "set", *at)
    zsseg("embed-labels", "--dim", 6, *at)
    zsseg("make-split", "--unseen", "cow,sheep", *at)
    config = TrainConfig(
        model="hourglass", backbone="none", stacks=1, epochs=1, batch=2, crop=64, workers=0, device="cpu",
        weights="none", calibration="none", precision="float32",
    )  # fmt: skip
    task = read_task(folder / "data.h5", folder / "split.h5", folder / "labels.h5", config)
    _write_models(task, folder)
    words = ("--model", folder / "model.h5", "--device", "cpu", *at)
    zsseg("eval", *words)
    zsseg("predict", folder / "set" / "images", "--pictures", folder / "pictures", *words)
    with artifacts.create(folder / "features.h5", "features", params={}, inputs={}) as writer:
        writer.put("names", ["a", "b"])
        writer.put("images", [0, 2])
        writer.put("shapes", np.array([[[2, 3, 4]], [[1, 3, 4]]]))
        writer.extend("maps", np.zeros(24, np.float16))
        writer.extend("maps", np.ones(12, np.float16))
    seeds: dict[str, list[tuple[str, bytes]]] = {
        kind: [(f"{kind}.h5", (folder / f"{kind}.h5").read_bytes())] for kind in SCHEMA
    }
    seeds["journal"] = [(".out.h5.unfinished", (folder / ".out.h5.unfinished").read_bytes())]
    return Space(folder, task, seeds | _images() | _archives() | _numbers(folder))


def _write_models(task: Task, folder: Path) -> None:
    """Write a finished model and an unfinished one, of a network so small that thousands can be read."""
    state = checkpoint.initial_state(task)
    for parameter in state.net.parameters():
        state.optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(parameter)}
    checkpoint.save(task, state, folder / ".out.h5.unfinished")
    state = replace(state, losses=[1.0] * task.total_steps, rates=[0.1] * task.total_steps, val_seen_miou=[0.5])
    checkpoint.save(task, state, folder / "model.h5")


def _images() -> dict[str, list[tuple[str, bytes]]]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 60_000, (24, 40)).astype(np.uint16))
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (photo, "JPEG", {}), (photo, "JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
        (photo, "PNG", {}), (deep, "PNG", {}), (photo.convert("RGBA"), "PNG", {}), (photo, "BMP", {}),
        (photo, "TIFF", {}), (photo, "TIFF", {"compression": "tiff_lzw"}), (photo, "TIFF", {"compression": "jpeg"}),
        (photo.convert("F"), "TIFF", {}), (photo.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        (photo, "WEBP", {}), (photo, "GIF", {"save_all": True, "append_images": [photo.rotate(90)]}),
    ]  # fmt: skip
    maps: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (Image.fromarray(label_map((0, 1, 2, 3))).convert("P"), "PNG", {}),
        (Image.fromarray(label_map((0, 1, 2, 3))), "PNG", {"optimize": True}),
        (Image.fromarray(label_map((0, 1, 2, 3))).convert("1"), "TIFF", {"compression": "group4"}),
    ]
    return {
        "image": [(f"a.{form.lower()}", _encoded(image, form, options)) for image, form, options in forms],
        "label map": [(f"a.{form.lower()}", _encoded(image, form, options)) for image, form, options in maps],
    }


def _encoded(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _archives() -> dict[str, list[tuple[str, bytes]]]:
    photo = _encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", {})
    truth = _encoded(Image.fromarray(label_map((0, 1, 2, 3))).convert("P"), "PNG", {})
    names = {"train": "a\nb\n", "val": "c\n"}
    members = {f"VOCdevkit/VOC2012/ImageSets/Segmentation/{name}.txt": text.encode() for name, text in names.items()}
    members |= {f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg": photo for name in "abc"}
    members |= {f"VOCdevkit/VOC2012/SegmentationClass/{name}.png": truth for name in "abc"}
    matlab = io.BytesIO()
    savemat(matlab, {"GTcls": {"Segmentation": label_map((0, 1, 2, 3)) % 21}}, do_compression=True)
    plain = io.BytesIO()
    savemat(plain, {"GTcls": {"Segmentation": label_map((0, 1, 2, 3)) % 21}})
    sbd = {"benchmark/dataset/train.txt": b"a\n", "benchmark/dataset/val.txt": b"b\n"}
    sbd |= {f"benchmark/dataset/img/{name}.jpg": photo for name in "ab"}
    sbd |= {f"benchmark/dataset/cls/{name}.mat": matlab.getvalue() for name in "ab"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", "cow 1.0 2.0\n" * 50)
    tar = _tar(members, tarfile.GNU_FORMAT)
    return {
        "tar": [
            ("voc.tar", tar), ("voc.tar", _tar(members, tarfile.PAX_FORMAT)), ("voc.tar.gz", gzip.compress(tar)),
            ("sbd.tgz", gzip.compress(_tar(sbd, tarfile.GNU_FORMAT))), ("sbd.tar", _tar(sbd, tarfile.PAX_FORMAT)),
        ],
        "zip": [("a.zip", zipped.getvalue())],
        "mat": [("a.mat", matlab.getvalue()), ("a.mat", plain.getvalue())],
        "lists": [("train.txt", b"one\ntwo.png\n"), ("val.txt", b"five\n"), ("classes.txt", b"a\nb\nc\nd\ne\n")],
    }  # fmt: skip


def _tar(members: dict[str, bytes], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "x" * 40, "path": name}
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Evil:
    """Makes the canary file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


def _numbers(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Return word vectors and weights, pickles among them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5)).astype(np.float32)
    words = [f"word{number}" for number in range(40)]
    glove = "".join(f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in zip(words, rows, strict=True))
    binary = b"40 5\n" + b"".join(
        word.encode() + b" " + row.tobytes() + b"\n" for word, row in zip(words, rows, strict=True)
    )
    text = glove.encode()
    arrays, evil_array = io.BytesIO(), io.BytesIO()
    np.savez(arrays, words=np.array(words), vectors=rows)
    evil = Evil(folder / CANARY)
    np.save(evil_array, np.array([evil], dtype=object), allow_pickle=True)
    vectors = [
        ("a.txt", text), ("a.vec", b"40 5\n" + text), ("a.txt.gz", gzip.compress(text)), ("a.bin", binary),
        ("a.bin.gz", gzip.compress(binary)), ("a.npz", arrays.getvalue()), ("a.txt", evil_array.getvalue()),
        ("a.bin", pickle.dumps({"cow": evil})), ("a.model", pickle.dumps(evil, protocol=0)),
        ("a.txt", pickle.dumps(evil, protocol=0)), ("a.bin", b"\xba\x16\x4f\x2f" + binary),
    ]  # fmt: skip
    tensors = {
        name: value.detach() for name, value in build("hourglass", 6, backbone="none", stacks=1).state_dict().items()
    }
    tensors = dict(list(tensors.items())[:6]) | {"features.0.weight": torch.zeros(64, 3, 3, 3)}
    weights = [
        ("a.pth", _saved(tensors)), ("a.pt", _saved(tensors, _use_new_zipfile_serialization=False)),
        ("a.safetensors", safetensors.torch.save(tensors)), ("a.pth", _saved({"state_dict": tensors, "epoch": 3})),
        ("a.pth", _saved({"features.0.weight": evil})), ("a.pth", pickle.dumps({"features.0.weight": evil})),
        ("a.pt", _saved({"features.0.weight": evil}, _use_new_zipfile_serialization=False)),
    ]  # fmt: skip
    return {"vectors": vectors, "weights": weights}


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
