"""Create, open, check and digest the HDF5 artifacts. The only importer of h5py.

An artifact is written under a temporary sibling name, its root attributes last, and then renamed, so that a
killed command leaves the old file whole and no half file under the final name. Every artifact carries
`kind`, `schema`, `zsseg`, `params` (JSON), `inputs` (JSON, kind -> digest) and `digest`: SHA-256 over all the
others and over every field in schema order. Nothing in a file is ever executed or unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from zsseg import __version__
from zsseg.errors import ArtifactError
from zsseg.schema import SCHEMA, SCHEMA_VERSION, Field, Kind

ATTRIBUTES = ("kind", "schema", "zsseg", "params", "inputs", "digest")
MADE_BY: dict[str, str] = {
    "data": "fetch-data", "labels": "embed-labels", "split": "make-split",
    "model": "train", "scores": "eval", "predictions": "predict",
}  # fmt: skip


class Writer:
    """Collects the fields of one artifact; made by `create`."""

    def __init__(self, file: h5py.File, kind: Kind) -> None:
        self._file = file
        self._kind = kind

    def put(self, name: str, values: Any) -> None:
        """Write a whole field: an array, a sequence of str or bytes, or a mapping of arrays."""
        field = SCHEMA[self._kind][name]
        if field.dtype == "arrays":
            group = self._file.create_group(name)
            for key, array in values.items():
                group.create_dataset(key.replace("/", "."), data=array)
        elif field.dtype in ("str", "bytes"):
            self._rows(name, field).resize((len(values),))
            for index, value in enumerate(values):
                self._file[name][index] = _row(value, field)
        else:
            self._file.create_dataset(name, data=np.asarray(values, dtype=field.dtype))

    def append(self, name: str, value: str | bytes | NDArray[Any]) -> None:
        """Add one row to a field, so that a long artifact need not fit in memory."""
        field = SCHEMA[self._kind][name]
        if name not in self._file:
            self._rows(name, field, () if isinstance(value, str | bytes) else np.shape(value))
        rows = self._file[name]
        rows.resize(rows.shape[0] + 1, axis=0)
        rows[-1] = _row(value, field)

    def _rows(self, name: str, field: Field, tail: tuple[int, ...] = ()) -> Any:
        return self._file.create_dataset(
            name, shape=(0, *tail), maxshape=(None, *tail), chunks=(256, *tail), dtype=_h5_dtype(field)
        )


class Artifact:
    """An opened artifact: fields by name, settings and inputs as dictionaries. Made by `open_artifact`."""

    def __init__(self, file: h5py.File, path: Path, kind: Kind) -> None:
        self._file = file
        self.path = path
        self.kind = kind
        self.digest: str = file.attrs["digest"]
        self.params: dict[str, Any] = json.loads(file.attrs["params"])
        self.inputs: dict[str, str] = json.loads(file.attrs["inputs"])

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def array(self, name: str) -> NDArray[Any]:
        """Return a whole numeric field."""
        return np.asarray(self._file[name][()])

    def strings(self, name: str) -> list[str]:
        """Return a whole "str" field."""
        return [str(value) for value in self._file[name].asstr()[()]]

    def bytes_at(self, name: str, index: int) -> bytes:
        """Return one row of a "bytes" field."""
        return bytes(self._file[name][index].tobytes())

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return an "arrays" field as a dictionary."""
        return {key: np.asarray(value[()]) for key, value in self._file[name].items()}


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises:
        ArtifactError: The file exists and `force` is false, it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, expected a file name; choose another with --out")
    if path.exists() and not force:
        raise ArtifactError(f"{path}: exists already; add --force to replace it, or choose another with --out")
    folder = path.parent
    if not folder.is_dir():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot make this folder ({error.strerror or error})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"{folder}: cannot write in this folder; choose another with --workspace or --out")


@contextlib.contextmanager
def create(
    path: Path, kind: Kind, *, params: Mapping[str, Any], inputs: Mapping[str, str], force: bool = False
) -> Iterator[Writer]:
    """Write an artifact: yield a `Writer`, then check, digest and rename. On any exception nothing changes.

    Args:
        path: The final name.
        kind: Which artifact.
        params: Settings to record; must survive JSON and hold no path, time or host name.
        inputs: Digest of each artifact that this one was made from.
        force: Whether an existing file may be replaced.

    Raises:
        ArtifactError: The output is refused (see `check_output`) or cannot be written.
    """
    check_output(path, force=force)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            yield Writer(file, kind)
            _check_fields(file, kind, path)
            file.attrs["kind"] = kind
            file.attrs["schema"] = SCHEMA_VERSION
            file.attrs["zsseg"] = __version__
            file.attrs["params"] = json.dumps(params, sort_keys=True)
            file.attrs["inputs"] = json.dumps(inputs, sort_keys=True)
            file.attrs["digest"] = _digest(file, kind)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: could not be written ({error}); free some space or choose another place with --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def open_artifact(path: Path, kind: Kind, *, verify: bool = True) -> Artifact:
    """Open an artifact and check that it is what it should be.

    Args:
        path: The file.
        kind: The kind that is needed here.
        verify: Whether to recompute the digest; reads the whole file.

    Raises:
        ArtifactError: The file is missing, truncated, damaged, or of another kind or schema.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; make it with `zsseg {MADE_BY[kind]}`, or name one with --{kind}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(
            f"{path}: not a readable HDF5 file (truncated, or no artifact at all); "
            f"make it again with `zsseg {MADE_BY[kind]} --force`"
        ) from error
    try:
        _check_file(file, kind, path, verify=verify)
        return Artifact(file, path, kind)
    except BaseException:
        file.close()
        raise


def kind_of(path: Path) -> Kind:
    """Return which artifact a file says it is.

    Raises:
        ArtifactError: The file is missing or is no zsseg artifact.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            kind = file.attrs.get("kind")
    except OSError as error:
        raise ArtifactError(f"{path}: not a readable HDF5 file (truncated, or no artifact at all)") from error
    for known in SCHEMA:
        if kind == known:
            return known
    raise ArtifactError(
        f"{path}: an HDF5 file, but no zsseg artifact (kind {kind!r}); expected one of {', '.join(SCHEMA)}"
    )


def _check_file(file: h5py.File, kind: Kind, path: Path, *, verify: bool) -> None:
    missing = [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise ArtifactError(
            f"{path}: an HDF5 file, but no finished zsseg artifact (lacks {', '.join(missing)}); "
            f"make it with `zsseg {MADE_BY[kind]}`"
        )
    found = file.attrs["kind"]
    if found != kind:
        raise ArtifactError(f"{path}: holds {found!r}, expected {kind!r}; name the right file with --{kind}")
    if file.attrs["schema"] != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: written with schema {file.attrs['schema']}, this zsseg {__version__} reads {SCHEMA_VERSION}; "
            f"make it again with `zsseg {MADE_BY[kind]} --force`, or use zsseg {file.attrs['zsseg']}"
        )
    try:
        _check_fields(file, kind, path)
        broken = verify and _digest(file, kind) != file.attrs["digest"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); make it again with `zsseg {MADE_BY[kind]} --force`") from error
    if broken:
        raise ArtifactError(
            f"{path}: damaged, its contents do not match its digest; make it again with `zsseg {MADE_BY[kind]} --force`"
        )


def _check_fields(file: h5py.File, kind: Kind, path: Path) -> None:
    lengths: dict[str, int] = {}
    for name, field in SCHEMA[kind].items():
        if name not in file:
            if field.optional:
                continue
            raise ArtifactError(f"{path}: {kind} lacks the field {name!r}; make it again with `zsseg {MADE_BY[kind]}`")
        item = file.get(name, getlink=True)
        if not isinstance(item, h5py.HardLink):
            raise ArtifactError(f"{path}: field {name!r} is a link to somewhere else, which zsseg does not follow")
        if field.dtype == "arrays":
            continue
        data = file[name]
        if not isinstance(data, h5py.Dataset) or data.dtype != _h5_dtype(field):
            raise ArtifactError(
                f"{path}: field {name!r} is {getattr(data, 'dtype', 'a group')}, expected {field.dtype}"
            )
        if len(data.shape) != len(field.shape):
            raise ArtifactError(f"{path}: field {name!r} has {len(data.shape)} axes, expected {field.shape}")
        for length, symbol in zip(data.shape, field.shape, strict=True):
            expected = symbol if isinstance(symbol, int) else lengths.setdefault(symbol, length)
            if length != expected:
                raise ArtifactError(f"{path}: field {name!r} has shape {data.shape}, expected {symbol} = {expected}")


def _digest(file: h5py.File, kind: Kind) -> str:
    sha = hashlib.sha256()
    for name in ATTRIBUTES[:-1]:
        sha.update(f"{name}={file.attrs[name]}\n".encode())
    for name, field in SCHEMA[kind].items():
        if name not in file:
            continue
        if field.dtype == "arrays":
            for key in sorted(file[name]):
                _digest_array(sha, f"{name}/{key}", file[name][key][()])
        elif field.dtype in ("str", "bytes"):
            sha.update(f"{name} {field.dtype} {file[name].shape[0]}\n".encode())
            for row in file[name]:
                raw = bytes(row) if field.dtype == "str" else row.tobytes()
                sha.update(len(raw).to_bytes(8, "little") + raw)
        else:
            _digest_array(sha, name, file[name][()])
    return sha.hexdigest()


def _digest_array(sha: Any, name: str, array: NDArray[Any]) -> None:
    array = np.asarray(array)
    sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    sha.update(np.ascontiguousarray(array).tobytes())


def _h5_dtype(field: Field) -> Any:
    if field.dtype == "str":
        return h5py.string_dtype()
    if field.dtype == "bytes":
        return h5py.vlen_dtype(np.uint8)
    return np.dtype(field.dtype)


def _row(value: Any, field: Field) -> Any:
    return np.frombuffer(value, dtype=np.uint8) if field.dtype == "bytes" else value


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this output whose process is gone (killed, or a machine that went down)."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        process = leftover.suffixes[-2][1:]
        if process.isdigit() and not _is_alive(int(process)):
            with contextlib.suppress(OSError):
                leftover.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def same_names(left: Sequence[str], right: Sequence[str], what: str) -> None:
    """Check that two artifacts speak of the same classes in the same order.

    Args:
        left: Names of the first.
        right: Names of the second.
        what: How to call the two in the message, e.g. "labels.h5 and data.h5".

    Raises:
        ArtifactError: They differ; the message names the first difference.
    """
    if list(left) == list(right):
        return
    if len(left) != len(right):
        raise ArtifactError(f"{what} have {len(left)} and {len(right)} classes; make them from the same data")
    first = next(i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    raise ArtifactError(
        f"{what} disagree: class {first} is {left[first]!r} and {right[first]!r}; make them from the same data"
    )
