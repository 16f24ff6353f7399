"""Mutations of files for `fuzz`: of bytes, whatever they mean, and of the structure of HDF5 files.

Bits are flipped, blocks cut, zeroed, copied and swapped, integers set to extremes. Artifacts also get changes of their
dtypes, shapes, values, links, storage, attributes and settings, most of them with a digest and a seal that fit again,
so that what lies behind these is reached.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from zsseg import artifacts
from zsseg.schema import SCHEMA

Mutation = Callable[[bytes, random.Random], bytes]


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
                file.attrs["digest"] = artifacts._digest(file.attrs, file, kind)  # type: ignore[arg-type]
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
