"""Feed mutated files to every reader; `make fuzz` runs the whole campaign.

    python tests/fuzz.py --inputs 50000                 spread over all readers, see `SHARES`
    python tests/fuzz.py --only tar --number 17         one input again, with its traceback

Good files are made of `tiny`'s six generated photos. An input is one of them with up to three mutations, drawn by
(seed, reader, number): bits flipped, blocks cut, zeroed, copied and swapped, integers set to extremes. Artifacts also
get changes of their HDF5 structure (dtypes, shapes, values, links, storage, attributes, settings), most of them with a
digest and a seal that fit again, so that what lies behind these is reached. Some of the good files are not good:
pickles that make a canary file when they are executed.

A reader must come to its end or raise a ZssegError, within 5 seconds of CPU time, with less than 1 GiB in memory all
told, and without a canary. Workers are forked, so that a crash of a library is seen, too. What fails is kept with its
traceback in --keep.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import hashlib
import io
import json
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from scipy.io import savemat
from tiny import SIDE, label_map, write_folder, zsseg

from zsseg import archives, artifacts, checkpoint, evaluate, voc
from zsseg.artifacts import open_artifact
from zsseg.config import EvalConfig, TrainConfig
from zsseg.dataset import Position, TrainingSet
from zsseg.errors import ZssegError
from zsseg.features import StoredFeatures
from zsseg.folders import folder_source
from zsseg.images import decode_image, decode_label_map
from zsseg.inference import load_model
from zsseg.info import info
from zsseg.models import build
from zsseg.recipe import of_labels, read_recipe
from zsseg.schema import SCHEMA, Kind
from zsseg.sources import lines
from zsseg.task import Task, read_task
from zsseg.vectors import read_file

SECONDS, MEMORY = 5.0, 1 << 30
CANARY = "canary"
# How many of a hundred inputs each reader gets: the slow ones fewer.
SHARES = {
    "data": 12, "labels": 8, "split": 11, "scores": 9, "predictions": 8, "features": 4, "model": 2, "journal": 1,
    "image": 13, "label map": 6, "tar": 8, "zip": 2, "mat": 3, "vectors": 8, "weights": 4, "lists": 1,
}  # fmt: skip

Ended = tuple[str, int, str, str, float]  # reader, number, how it ended, traceback, CPU seconds
Mutation = Callable[[bytes, random.Random], bytes]


@dataclass
class Space:
    """Good files, and what readers need besides the file that they read."""

    folder: Path
    task: Task
    seeds: dict[str, list[tuple[str, bytes]]]  # reader -> file name and content of each good file

    def file(self, name: str) -> Path:
        """Return a file of the workspace."""
        return self.folder / name


# --- good files -------------------------------------------------------------------------------------------------------


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
        writer.put("maps", [np.zeros(24, np.float16).tobytes(), np.ones(12, np.float16).tobytes()])
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


# --- readers ----------------------------------------------------------------------------------------------------------


def read(reader: str, path: Path, space: Space) -> None:
    """Read a file as the commands do that take such a file."""
    if reader in SCHEMA:
        _read_artifact(path, reader)  # type: ignore[arg-type]
    match reader:
        case "data":
            with open_artifact(path, "data") as data:
                photos = len(data.strings("ids"))
            photo_set = TrainingSet(path, unseen=(3, 4), crop=32, seed=0)
            for index in range(photos):
                photo_set[Position(0, index)]
        case "labels":
            read_task(space.file("data.h5"), space.file("split.h5"), path, space.task.config)
            with open_artifact(path, "labels") as labels:
                of_labels(labels).project(labels.array("raw"))
        case "split":
            read_task(space.file("data.h5"), path, space.file("labels.h5"), space.task.config)
        case "model":
            load_model(path, device="cpu", precision="float32").predict(np.zeros((32, 32, 3), np.uint8))
            read_recipe(path)
        case "journal":
            out = path.with_name("out.h5")
            checkpoint.recorded_config(out)
            checkpoint.open_journal(space.task, out, resume=True)
        case "scores":
            evaluate.as_json(evaluate.summarise(path, min_images=0, config=EvalConfig(), images=1))
        case "features":
            stored = StoredFeatures(open_artifact(path, "features"))
            for index in stored.images:
                stored.maps(index)
        case "image":
            decode_image(path.read_bytes(), path.name)
            decode_image(path, path.name)
        case "label map":
            decode_label_map(path.read_bytes(), path.name)
        case "tar":
            _read_tar(path)
        case "zip":
            archives.unpack(path, "a.txt", path.with_name("unpacked"))
        case "mat":
            voc._mat_label_map(path.read_bytes(), path.name)
        case "vectors":
            found = read_file(path, wanted=("word30",), frequent=10)
            found.frequent(10)
        case "weights":
            _read_weights(path)
        case "lists":
            _read_lists(path, space)


def _read_artifact(path: Path, kind: Kind) -> None:
    if kind != "features":
        info(path)
    with open_artifact(path, kind) as artifact:
        for name, field in SCHEMA[kind].items():
            if name not in artifact:
                continue
            if field.dtype == "arrays":
                artifact.arrays(name)
            elif field.dtype == "str":
                artifact.strings(name)
            elif field.dtype == "bytes":
                for row in range(artifact.shape(name)[1][0]):
                    artifact.bytes_at(name, row)
            else:
                artifact.array(name)


def _read_tar(path: Path) -> None:
    if voc.identify(path) is None:
        return
    with contextlib.ExitStack() as stack:
        if path.name.startswith("voc"):
            source = stack.enter_context(voc.voc_source(path))
        else:
            source = stack.enter_context(voc.sbd_source(path, path.parent / "scratch", evaluate.SILENT))
        source.prepare([*source.train, *source.val])
        for photo_id in (*source.train, *source.val):
            with contextlib.suppress(ZssegError):  # counted as a bad file, and the next one is read
                source.read(photo_id)


def _read_weights(path: Path) -> None:
    from zsseg.models.weights import _fill_fcn, _from_file

    tensors, source = _from_file(path)
    with torch.device("meta"):
        net = build("fcn32s", 2)
    _fill_fcn(net, tensors, source)  # type: ignore[arg-type]


def _read_lists(path: Path, space: Space) -> None:
    root = path.parent / "set"
    if not root.exists():
        shutil.copytree(space.file("set"), root)
    for name in ("train.txt", "val.txt", "classes.txt"):
        shutil.copyfile(space.file("set") / name, root / name)
    shutil.copyfile(path, root / path.name)
    source = folder_source(root, val_fraction=0.3, seed=0)
    for photo_id in (*source.train[:9], *source.val[:9]):
        with contextlib.suppress(ZssegError):
            source.read(photo_id)
    lines(path.read_bytes().decode("utf-8", "replace"))


# --- mutations --------------------------------------------------------------------------------------------------------


def mutated(reader: str, name: str, content: bytes, rng: random.Random, scratch: Path) -> bytes:
    """Return a file with one to three mutations."""
    is_artifact = name.endswith((".h5", ".unfinished"))
    for _ in range(rng.choice((0, 1, 1, 1, 2)) if is_artifact else 0):
        content = _restructured(content, rng, scratch, "model" if reader == "journal" else reader)
    for _ in range(rng.choice((0, 0, 0, 1, 2)) if is_artifact else rng.choice((1, 1, 1, 2, 3))):
        if name.endswith("gz") and rng.random() < 0.6 and (unpacked := _unpacked(content)):
            content = gzip.compress(rng.choice(MUTATIONS)(unpacked, rng), 1)
        else:
            content = rng.choice(MUTATIONS)(content, rng)
    return content


def _unpacked(content: bytes) -> bytes:
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):
        return gzip.decompress(content)
    return b""


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _block(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 4, 16, 100, 512, 4096)))


def _zero(content: bytes, rng: random.Random) -> bytes:
    start, end = _block(content, rng)
    return content[:start] + bytes((rng.choice((0, 0, 255, 32)),)) * (end - start) + content[end:]


def _drop(content: bytes, rng: random.Random) -> bytes:
    start, end = _block(content, rng)
    return content[:start] + content[end:]


def _splice(content: bytes, rng: random.Random) -> bytes:
    (start, end), (into, _) = _block(content, rng), _block(content, rng)
    over = rng.choice((0, end - start))
    return content[:into] + content[start:end] * rng.choice((1, 1, 2, 20)) + content[into + over :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start, end = _block(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[end:]


EXTREMES = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _integer(content: bytes, rng: random.Random) -> bytes:
    """Set an integer, most often one near the start, where headers are."""
    near = rng.random() < 0.5
    place = rng.randrange(max(1, min(len(content), 600 if near else len(content))))
    form = rng.choice(("<B", "<H", "<I", "<Q", ">H", ">I", ">Q"))
    value = rng.choice(EXTREMES) % (1 << 8 * struct.calcsize(form))
    return content[:place] + struct.pack(form, value) + content[place + struct.calcsize(form) :]


def _digits(content: bytes, rng: random.Random) -> bytes:
    """Replace a number written in text."""
    places = [index for index, byte in enumerate(content[:4000]) if 48 <= byte <= 57]
    if not places:
        return _flip(content, rng)
    place = rng.choice(places)
    value = rng.choice((b"0", b"-1", b"99999999999", b"9" * 5000, b"nan", b"1e999", b"inf", b"77777777777\0", b" "))
    return content[:place] + value + content[place + rng.choice((1, len(value))) :]


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _cut, _zero, _drop, _splice, _noise, _integer, _integer, _digits)


def _restructured(content: bytes, rng: random.Random, scratch: Path, kind: str) -> bytes:
    """Change the structure of an HDF5 file; most often its digest is made to fit."""
    path = scratch / "restructured.h5"
    path.write_bytes(content)
    try:
        with h5py.File(path, "r+", libver="latest" if rng.random() < 0.1 else None) as file:
            rng.choice((_field, _field, _field, _values, _values, _settings, _settings, _attribute))(file, rng)
            if rng.random() < 0.9 and _held(file) < len(content):
                file.attrs["digest"] = artifacts._digest(file, kind)  # type: ignore[arg-type]
    except Exception:
        if rng.random() < 0.5:  # a digest of what cannot be read is not to be had; read it without one
            return content
    content = path.read_bytes()
    return content + artifacts.SEAL + hashlib.sha256(content).digest()


def _held(file: h5py.File) -> int:
    """Return how many bytes its fields claim."""
    claims: list[int] = []
    file.visititems(lambda _, item: claims.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    return sum(claims)


def _dataset(file: h5py.File, rng: random.Random) -> str:
    name = rng.choice(sorted(file))
    if isinstance(file[name], h5py.Group) and len(file[name]):
        return f"{name}/{rng.choice(sorted(file[name]))}"
    return name


DTYPES = (
    "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i8", "S5", "c8", "?", h5py.string_dtype(),
    h5py.string_dtype(length=7), h5py.vlen_dtype(np.uint8), h5py.vlen_dtype(np.float64), h5py.vlen_dtype(np.int16),
    h5py.ref_dtype, np.dtype([("a", "i4"), ("b", "f8")]), np.dtype(("i4", (3,))), np.longdouble,
    h5py.enum_dtype({"A": 1}, basetype="i1"),
)  # fmt: skip


def _field(file: h5py.File, rng: random.Random) -> None:
    """Replace a field by one of another dtype, shape or storage, by a link, or by nothing."""
    name = _dataset(file, rng)
    old = file[name]
    if _held(file) > 1 << 26:  # a mutation before this one made it absurd
        return
    shape, dtype = getattr(old, "shape", None) or (), getattr(old, "dtype", np.dtype("f4"))
    what = rng.randrange(14)
    if what == 0:
        del file[name]
    elif what in (1, 2, 3):
        values = np.zeros(shape, "i4")
        del file[name]
        chosen = rng.choice(DTYPES)
        file.create_dataset(name, shape, chosen, data=values if np.dtype(chosen).kind in "iufb" else None)
    elif what in (4, 5, 6):
        lengths = [rng.choice((0, 1, length, length + 1, 2 * length, 1000)) for length in shape]
        lengths = rng.choice((lengths, lengths[::-1], [*lengths, 1], lengths[:-1]))
        del file[name]
        file.create_dataset(name, tuple(lengths), dtype, fillvalue=None if dtype.kind == "O" else rng.choice((0, 1, 7)))
    elif what == 7:
        del file[name]
        huge = tuple(rng.choice((2**20, 2**31, 2**45, 2**62)) for _ in shape) or (2**50,)
        file.create_dataset(name, huge, dtype, chunks=tuple(rng.choice((1, 8, 2**16)) for _ in huge), fillvalue=None)
    elif what == 8:
        del file[name]
        targets = (h5py.SoftLink("/names"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("data.h5", "/names"))
        file[name] = rng.choice((*targets, h5py.SoftLink(f"/{name}")))
    elif what == 9:
        del file[name]
        layout = h5py.VirtualLayout(shape or (4,), "i8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape or (4,))
        file.create_virtual_dataset(name, layout)
    elif what == 10:
        values = old[()]
        del file[name]
        file.create_dataset(
            name, data=values, chunks=True, **rng.choice(({"compression": "gzip"}, {"fletcher32": True}))
        )
    elif what == 11:
        del file[name]
        file.create_dataset(name, shape or (4,), "i8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    elif what == 12:
        del file[name]
        file.create_group(name)
    else:
        other = _dataset(file, rng)
        del file[name]
        file[name] = file[other]


def _values(file: h5py.File, rng: random.Random) -> None:
    """Change values: extremes into numbers, mutated bytes and strange text into rows."""
    name = _dataset(file, rng)
    field = file[name]
    if _held(file) > 1 << 26:
        return
    if field.dtype.kind == "O":
        row = rng.randrange(len(field))
        if h5py.check_vlen_dtype(field.dtype) is not None:
            changed = rng.choice((*MUTATIONS, lambda *_: b""))(field[row].tobytes(), rng)
            other = field[rng.randrange(len(field))]
            field[row] = rng.choice((np.frombuffer(changed, np.uint8), other))
        else:
            strange = ("", "../../evil", "a\nb\x1b[31m", "x" * 70_000, b"\xff\xfe", "ü" * 300, field[0], "{", "[1]")
            field[row] = rng.choice(strange)
    else:
        values = field[()]
        with np.errstate(all="ignore"):
            for _ in range(rng.choice((1, 1, 3))):
                extreme = rng.choice((-1, 0, 1, 4, 5, 254, 255, 256, 2**31, 2**63 - 1, -(2**63), np.nan, np.inf, 1e30))
                if values.ndim and values.size and rng.random() < 0.8:
                    values.flat[rng.randrange(values.size)] = np.array(extreme).astype(values.dtype)
                else:
                    values = np.full_like(values, np.array(extreme).astype(values.dtype))
        field[()] = values


def _settings(file: h5py.File, rng: random.Random) -> None:
    """Change the recorded settings or inputs: a key less, or a value of another type or size."""
    which = rng.choice(("params", "params", "params", "inputs"))
    settings = json.loads(file.attrs[which])
    place = settings
    while place and rng.random() < 0.3:
        inner = [value for value in place.values() if isinstance(value, dict) and value]
        if not inner:
            break
        place = rng.choice(inner)
    if not place:
        return
    key = rng.choice(sorted(place))
    if rng.random() < 0.3:
        del place[key]
    else:
        values = (
            None,
            True,
            0,
            -1,
            7,
            10**6,
            10**12,
            10**30,
            1.5,
            float("nan"),
            "",
            "x",
            "none",
            [],
            [1],
            {},
            {"a": 1},
        )
        place[key] = rng.choice(values)
    file.attrs[which] = json.dumps(settings)


def _attribute(file: h5py.File, rng: random.Random) -> None:
    name = rng.choice(artifacts.ATTRIBUTES)
    values = (
        7, 1.5, "", "x", "{}", "[]", "null", '{"a": ' * 5000, b"\xff", np.arange(3), h5py.Empty("f4"), "x" * 60_000,
        "9" * 5000, np.array(["a", "b"], dtype=h5py.string_dtype()), *SCHEMA,
    )  # fmt: skip
    if rng.random() < 0.2:
        del file.attrs[name]
    else:
        file.attrs.create(name, rng.choice(values))


# --- the campaign -----------------------------------------------------------------------------------------------------


def make_input(space: Space, reader: str, number: int, seed: int, scratch: Path) -> Path:
    """Write an input, and return its path; the same arguments give the same bytes."""
    rng = random.Random(f"{seed}:{reader}:{number}")
    name, content = rng.choice(space.seeds[reader])
    content = content if number < 3 else mutated(reader, name, content, rng, scratch)
    path = scratch / name
    path.write_bytes(content)
    return path


def check(space: Space, reader: str, number: int, seed: int, scratch: Path) -> tuple[str, str]:
    """Read an input; return how it ended, and the traceback of a failure."""
    path = make_input(space, reader, number, seed, scratch)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process, also in the midst of a library
    ended, trace = "read", ""
    try:
        read(reader, path, space)
    except ZssegError as error:
        ended = f"refused: {type(error).__name__}"
    except Exception as error:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "/zsseg/" in each.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        ended, trace = f"FAILED: {type(error).__name__} at {where}", traceback.format_exc()
    signal.setitimer(signal.ITIMER_PROF, 0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY:
        ended = "FAILED: more than 1 GiB"
    if (space.folder / CANARY).exists():
        ended = "FAILED: executed"
    path.unlink(missing_ok=True)
    return ended, trace


def plan(inputs: int, only: str | None) -> list[tuple[str, int]]:
    """Return which inputs are made: of all readers by their share, or of one."""
    if only:
        return [(only, number) for number in range(inputs)]
    counts = {reader: max(1, inputs * share // sum(SHARES.values())) for reader, share in SHARES.items()}
    counts["data"] += inputs - sum(counts.values())
    return [(reader, number) for reader, count in counts.items() for number in range(count)]


def work(space: Space, items: list[tuple[str, int]], seed: int, place: mmap.mmap, out: Path) -> None:
    """Check inputs one after the other, telling in `place` which one it is at, and write down how each ended."""
    limit = 5 * MEMORY + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # or a bomb would take the machine with it
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with tempfile.TemporaryDirectory() as folder, out.open("a") as log:
        while (at := struct.unpack("q", place[:8])[0]) < len(items):
            before = time.process_time()
            ended, trace = check(space, *items[at], seed, Path(folder))
            log.write(json.dumps([*items[at], ended, trace, time.process_time() - before]) + "\n")
            log.flush()
            place[:8] = struct.pack("q", at + 1)
            if ended.startswith("FAILED: more than 1 GiB") or ended.endswith("executed"):
                (space.folder / CANARY).unlink(missing_ok=True)
                return  # the next worker starts with a clean memory


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def run(space: Space, items: list[tuple[str, int]], seed: int, workers: int) -> list[Ended]:
    """Spread inputs over forked workers; one that dies is noted with the input that it died of, and replaced."""
    outs = [space.folder / f"log-{number}.jsonl" for number in range(workers)]
    parts = [items[number::workers] for number in range(workers)]
    places = [mmap.mmap(-1, 8) for _ in range(workers)]
    alive: dict[int, int] = {}

    def start(number: int) -> None:
        process = os.fork()
        if not process:
            code = 1
            try:
                work(space, parts[number], seed, places[number], outs[number])
                code = 0
            finally:
                os._exit(code)
        alive[process] = number

    for number in range(workers):
        start(number)
    while alive:
        process, status = os.wait()
        number = alive.pop(process)
        at = struct.unpack("q", places[number][:8])[0]
        if status and at < len(parts[number]):
            code = os.waitstatus_to_exitcode(status)
            hung = code == -signal.SIGPROF
            ended = f"FAILED: more than {SECONDS:.0f} s" if hung else f"FAILED: ended by {code}"
            with outs[number].open("a") as log:
                log.write(json.dumps([*parts[number][at], ended, "", SECONDS * hung]) + "\n")
            places[number][:8] = struct.pack("q", at + 1)
        if struct.unpack("q", places[number][:8])[0] < len(parts[number]):
            start(number)
    return [tuple(json.loads(line)) for out in outs if out.exists() for line in out.read_text().splitlines()]


def main() -> None:
    """Run the campaign, or one input again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=SHARES, help="one reader")
    parser.add_argument("--number", type=int, help="one input of --only, with its traceback")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failures are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZSSEG_FEATURES"] = str(Path(folder, "features"))
        space = make_space(Path(folder))
        if options.number is not None:
            path = make_input(space, options.only, options.number, options.seed, Path(folder, "set"))
            read(options.only, path, space)
            return
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        found = run(space, plan(options.inputs, options.only), options.seed, options.workers)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        failures = [each for each in found if each[2].startswith("FAILED")]
        for reader, number, ended, trace, _ in failures[:200]:
            options.keep.mkdir(exist_ok=True)
            path = make_input(space, reader, number, options.seed, Path(folder, "set"))
            shutil.move(path, options.keep / f"{reader}-{number}-{path.name.strip('.')}")
            (options.keep / f"{reader}-{number}.txt").write_text(f"{ended}\n{trace}")
        figures = {
            "inputs": len(found),
            "by reader": collections.Counter(each[0] for each in found),
            "ended": collections.Counter(each[2].partition(" at ")[0] for each in found),
            "failures": {f"{key[0]}: {key[1]}": sorted(value)[:5] for key, value in _grouped(failures).items()},
            "CPU seconds by reader": {
                reader: round(sum(each[4] for each in found if each[0] == reader), 1) for reader in SHARES
            },
            "longest (CPU seconds)": round(max(each[4] for each in found), 2),
            "largest worker (MiB)": used.ru_maxrss // 1024,
            "CPU seconds": round(used.ru_utime + used.ru_stime),
            "seconds": round(time.monotonic() - started),
        }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if failures:
        sys.exit(f"{len(failures)} failures, kept in {options.keep}")


def _grouped(failures: list[Ended]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for reader, number, ended, *_ in failures:
        groups.setdefault((reader, ended), []).append(number)
    return groups


if __name__ == "__main__":
    main()
