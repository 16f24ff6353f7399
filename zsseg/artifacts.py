"""Create, open, check and digest the HDF5 artifacts. The only importer of h5py.

An artifact is written under a hidden sibling name, its root attributes last, forced to the disk, and then renamed, so
that a killed command leaves the old file whole and no half file under the final name. A hidden lock file beside it
keeps a second command from writing the same output; the system frees the lock of a dead process, so whatever hidden
file lies beside a free lock was left behind, and the next command that writes the output removes it. Every artifact
carries
`kind`, `schema`, `zsseg`, `params` (JSON), `inputs` (JSON, kind -> digest) and `digest`: SHA-256 over all the
others and over every field in schema order. It ends in its seal, a SHA-256 of all bytes before, which is looked at
before HDF5 is. Nothing in a file is ever executed or unpickled, and a file that was crafted to confuse is refused like
a damaged one: no link, filter, virtual or undeclared size is followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from zsseg import __version__
from zsseg.contents import fault
from zsseg.errors import ArtifactError
from zsseg.schema import SCHEMA, SCHEMA_VERSION, Field, Kind

ATTRIBUTES = ("kind", "schema", "zsseg", "params", "inputs", "digest")
MADE_BY: dict[str, str] = {
    "data": "fetch-data", "labels": "embed-labels", "split": "make-split",
    "model": "train", "scores": "eval", "predictions": "predict", "features": "train",
}  # fmt: skip
SEAL = b"zsseg\0\0\1"  # then the SHA-256 of all before: the end of an artifact, which HDF5 does not look at
MAX_CHUNK = 1 << 20  # bytes that HDF5 may set aside for a part of a field that is not in the file
MAX_SETTINGS = 1 << 22  # characters; they have some thousands
Fields = dict[str, Any]  # a dataset by name; for an "arrays" field a dictionary of them
_H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, MemoryError)


class _Disk(io.FileIO):
    """A file that keeps what a write raises for `check`, and from then on takes and drops all that comes.

    HDF5 cannot close a file that it cannot write to: after an error of its own driver (a full disk) it prints
    tracebacks, keeps the file open and crashes the process at its exit.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write all of the data, or note why not."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:  # an interrupt, too, would leave HDF5 in the middle of a write
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file, or note why not."""
        try:
            return super().truncate(size)
        except BaseException as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise what was noted."""
        if self.error is not None:
            raise self.error


class Writer:
    """Collects the fields of one artifact; made by `create`."""

    def __init__(self, file: h5py.File, kind: Kind, disk: _Disk) -> None:
        self._file = file
        self._kind = kind
        self._disk = disk

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
        self._disk.check()

    def append(self, name: str, value: str | bytes | NDArray[Any]) -> None:
        """Add one row to a field, so that a long artifact need not fit in memory."""
        field = SCHEMA[self._kind][name]
        if name not in self._file:
            self._rows(name, field, () if isinstance(value, str | bytes) else np.shape(value))
        rows = self._file[name]
        rows.resize(rows.shape[0] + 1, axis=0)
        rows[-1] = _row(value, field)
        self._disk.check()

    def extend(self, name: str, values: NDArray[Any]) -> None:
        """Add numbers to a field of one axis, likewise; `Artifact.runs` reads them as fast as the disk does."""
        dtype = np.dtype(SCHEMA[self._kind][name].dtype)
        if name not in self._file:
            together = MAX_CHUNK // dtype.itemsize
            self._file.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(together,), dtype=dtype)
        numbers = self._file[name]
        start = len(numbers)
        numbers.resize(start + len(values), axis=0)
        numbers[start:] = values
        self._disk.check()

    def _rows(self, name: str, field: Field, tail: tuple[int, ...] = ()) -> Any:
        return self._file.create_dataset(
            name, shape=(0, *tail), maxshape=(None, *tail), chunks=(256, *tail), dtype=_h5_dtype(field)
        )


class Artifact:
    """An opened artifact: fields by name, settings and inputs as dictionaries. Made by `open_artifact`.

    Every reader raises ArtifactError where the file turns out to be damaged.
    """

    def __init__(self, file: h5py.File, path: Path, kind: Kind, header: Mapping[str, Any], fields: Fields) -> None:
        self._file = file
        self._fields = fields
        self.path = path
        self.kind = kind
        self.digest: str = header["digest"]
        self.version: str = header["zsseg"]
        self.params: dict[str, Any] = header["params"]
        self.inputs: dict[str, str] = header["inputs"]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def shape(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return a field's dtype and shape; of an "arrays" field how many there are and their numbers in all."""
        with _reading(self.path, self.kind):
            dtype, field = SCHEMA[self.kind][name].dtype, self._fields[name]
            if isinstance(field, dict):
                return dtype, (len(field), sum(int(part.size) for part in field.values()))
            return dtype, tuple(field.shape)

    def array(self, name: str) -> NDArray[Any]:
        """Return a whole numeric field."""
        with _reading(self.path, self.kind):
            return np.asarray(self._fields[name][()])

    def strings(self, name: str) -> list[str]:
        """Return a whole "str" field."""
        with _reading(self.path, self.kind):
            return [str(value) for value in self._fields[name].asstr()[()]]

    def bytes_at(self, name: str, index: int) -> bytes:
        """Return one row of a "bytes" field."""
        with _reading(self.path, self.kind):
            return bytes(self._fields[name][index].tobytes())

    def runs(self, name: str) -> Callable[[int, int], NDArray[Any]]:
        """Return what reads the numbers from one place to another of a field of one axis, from any thread.

        It asks the system for them where HDF5 has put them: HDF5 reads for one thread at a time, and no other one of
        Python's goes on meanwhile. Nothing else is done to them, for zsseg writes plain numbers.
        """
        with _reading(self.path, self.kind):
            field = self._fields[name]
            together, starts = _places(field)
            length, dtype, descriptor = len(field), field.dtype, self._file.id.get_vfd_handle()

        def run(start: int, end: int) -> NDArray[Any]:
            with _reading(self.path, self.kind):
                if not self._file:
                    raise ValueError("it was closed")  # and its descriptor may be another file's by now
                if not 0 <= start <= end <= length:
                    raise ValueError(f"field {name!r} ends before its numbers {start} to {end}")
                numbers = np.empty(end - start, dtype)
                while start < end:
                    chunk, skipped = divmod(start, together)
                    part = numbers[len(numbers) - (end - start) :][: together - skipped]
                    place = starts[chunk] + skipped * dtype.itemsize
                    if starts[chunk] < 0 or os.preadv(descriptor, [part.view(np.uint8).data], place) != part.nbytes:
                        raise ValueError(f"field {name!r} is not whole")
                    start += len(part)
                return numbers

        return run

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return an "arrays" field as a dictionary."""
        with _reading(self.path, self.kind):
            return {key: np.asarray(value[()]) for key, value in self._fields[name].items()}


class _Settings(dict[str, Any]):
    """Recorded settings; a missing one is an ArtifactError, for only a crafted file can lack it."""

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(f"an artifact's settings lack {key!r}; make it again with this zsseg")


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output before any work is done for it. Makes nothing, not even its folder.

    Raises:
        ArtifactError: The file exists and `force` is false, it is a folder, or its folder cannot be written or made.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, expected a file name; choose another with --out")
    if path.exists() and not force:
        raise ArtifactError(f"{path}: exists already; add --force to replace it, or choose another with --out")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise ArtifactError(f"{path.parent}: cannot make this folder ({folder} is a file); choose another with --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"{folder}: cannot write in this folder; choose another with --workspace or --out")


def beside(path: Path, purpose: str) -> Path:
    """Return the hidden file of this purpose that belongs to an output: `.model.h5.lock` beside `model.h5`."""
    return path.with_name(f".{path.name}.{purpose}")


@contextlib.contextmanager
def claim(path: Path, *, force: bool) -> Iterator[None]:
    """Check an output, make its folder, and keep every other command from writing it while this one works on it.

    Args:
        path: The output.
        force: Whether an existing file may be replaced.

    Raises:
        ArtifactError: The output is refused (see `check_output`), or another command is writing it.
    """
    check_output(path, force=force)
    with locked(path):
        check_output(path, force=force)  # another command may have written it just now
        beside(path, "tmp").unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of an output, or of a folder of drafts; not to be nested for one path.

    Raises:
        ArtifactError: Another process holds it, or the folder cannot be made or written.
    """
    lock = beside(path, "lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock)
    except OSError as error:
        raise ArtifactError(
            f"{lock.parent}: cannot write in this folder ({error.strerror or error}); choose another place with --out"
        ) from error
    if descriptor is None:
        raise ArtifactError(
            f"{path}: another zsseg command is writing it; wait until that has ended, or choose another output"
        )
    try:
        yield
    finally:
        _release(lock, descriptor)


def _acquire(lock: Path) -> int | None:
    """Return a descriptor that holds the lock, or None where another process does.

    The lock belongs to the process: it ends with it, however it ends, and worker processes do not inherit it.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                return None
            return descriptor  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its former holder removed the file in between


def _release(lock: Path, descriptor: int) -> None:
    lock.unlink(missing_ok=True)  # while the lock is held, or it could be another's file
    os.close(descriptor)


@contextlib.contextmanager
def drafts(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder for files that are not finished yet; it goes at the end.

    Those that killed processes left in `folder` are removed first; one that another living process uses stays. A
    process has one at a time.

    Args:
        folder: Where it is made; must exist.
        name: Part of its name, the same for all of one purpose.

    Raises:
        OSError: It cannot be made.
    """
    own: tuple[Path, int] | None = None
    for number in itertools.count():
        path = folder / f".{name}.{number}.drafts"
        lock = beside(path, "lock")
        if own is not None and not (path.exists() or lock.exists()):
            break
        descriptor = _acquire(lock)
        if descriptor is None:  # alive
            continue
        shutil.rmtree(path, ignore_errors=True)
        if own is None:
            own = path, descriptor
        else:
            _release(lock, descriptor)
    assert own is not None
    path, descriptor = own
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _release(beside(path, "lock"), descriptor)


@contextlib.contextmanager
def create(
    path: Path,
    kind: Kind,
    *,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    force: bool = False,
    claimed: bool = False,
) -> Iterator[Writer]:
    """Write an artifact: yield a `Writer`, then check, digest and rename. On any exception nothing changes.

    Args:
        path: The final name.
        kind: Which artifact.
        params: Settings to record; must survive JSON and hold no path, time or host name.
        inputs: Digest of each artifact that this one was made from.
        force: Whether an existing file may be replaced.
        claimed: The caller holds the claim of the output already.

    Raises:
        ArtifactError: The output is refused (see `claim`) or cannot be written.
    """
    temporary = beside(path, "tmp")
    with contextlib.nullcontext() if claimed else claim(path, force=force):
        try:
            with _Disk(temporary, "w+") as disk:
                try:
                    with h5py.File(disk, "w") as file:
                        yield Writer(file, kind, disk)
                        _finish(file, kind, path, params=params, inputs=inputs)
                finally:
                    disk.check()  # whatever else went wrong after a failed write, that is the reason
                disk.seek(0)
                disk.write(SEAL + hashlib.file_digest(disk, "sha256").digest())
                disk.check()
                os.fsync(disk.fileno())
            _publish(temporary, path)
        except OSError as error:
            raise ArtifactError(
                f"{path}: could not be written ({_line(error)}); free some space or choose another place with --out"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> None:
    """Give a file that is on the disk its final name, and have that on the disk, too."""
    temporary.replace(path)
    with contextlib.suppress(OSError):  # some file systems cannot
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _finish(file: h5py.File, kind: Kind, path: Path, *, params: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Check the fields and write the attributes, the digest last."""
    fields = _checked_fields(file, kind, path)
    file.attrs["kind"] = kind
    file.attrs["schema"] = SCHEMA_VERSION
    file.attrs["zsseg"] = __version__
    file.attrs["params"] = json.dumps(params, sort_keys=True)
    file.attrs["inputs"] = json.dumps(inputs, sort_keys=True)
    file.attrs["digest"] = _digest(file.attrs, fields, kind)


def write_file(path: Path, content: bytes) -> None:
    """Write a plain file (a picture, a JSON) the way artifacts are written, and replace one that is there.

    Raises:
        ArtifactError: It cannot be written, or another command is writing it.
    """
    temporary = beside(path, "tmp")
    with locked(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _publish(temporary, path)
        except OSError as error:
            raise ArtifactError(
                f"{path}: could not be written ({error}); free some space or choose another place"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def open_artifact(
    path: Path, kind: Kind, *, verify: bool = True, digest: str | None = None, seal_suffices: bool = False
) -> Artifact:
    """Open an artifact and check that it is what it should be.

    Args:
        path: The file.
        kind: The kind that is needed here.
        verify: Whether to recompute the digest; reads the whole file.
        digest: The digest that it had when this command read it first; None: it is the first time.
        seal_suffices: Whether the digest is left alone where a seal holds: of files so large that reading them a second
            time takes a share of the command's own time.

    Raises:
        ArtifactError: The file is missing, truncated, damaged, of another kind or schema, or no longer the same.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; make it with `zsseg {MADE_BY[kind]}`, or name one with --{kind}")
    advice = f"; make it again with `zsseg {MADE_BY[kind]} --force`"
    sealed = verify and _check_seal(path, advice)
    file = _opened(path, advice)
    try:
        with _reading(path, kind):
            header = _header(file, kind, path)
            fields = _checked_fields(file, kind, path)
            _check_sizes(fields, kind, path)
            most = None if sealed and seal_suffices else path.stat().st_size
            reason = _mistake(file, fields, kind, header, most) if verify else None
        if reason:
            raise _damaged(path, kind, reason)
        if digest not in (None, header["digest"]):
            raise ArtifactError(f"{path}: was replaced while it was in use; run the command again")
        return Artifact(file, path, kind, header, fields)
    except BaseException:
        file.close()
        raise


def _mistake(file: h5py.File, fields: Fields, kind: Kind, header: Mapping[str, Any], most: int | None) -> str | None:
    """Return what is wrong with contents whose fields are as declared; the digest counts unless `most` is None."""
    if most is not None and _digest(file.attrs, fields, kind, most=most) != header["digest"]:
        return "its contents do not match its digest"
    rows = {name: len(field) for name, field in fields.items()}
    return fault(kind, list(fields["names"].asstr()[()]), rows, lambda name: fields[name][()], header["params"])


def kind_of(path: Path) -> Kind:
    """Return which artifact a file says it is.

    Raises:
        ArtifactError: The file is missing or is no zsseg artifact.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    _check_seal(path, "")
    with _opened(path) as file:
        try:
            kind = _attribute(file, "kind") if "kind" in file.attrs else None
        except _H5_ERRORS as error:
            raise ArtifactError(f"{path}: an HDF5 file, but no zsseg artifact ({_line(error)})") from error
    for known in SCHEMA:
        if isinstance(kind, str) and kind == known:
            return known
    raise ArtifactError(
        f"{path}: an HDF5 file, but no zsseg artifact (kind {_line(kind)!r}); expected one of {', '.join(SCHEMA)}"
    )


def _opened(path: Path, advice: str = "") -> h5py.File:
    with _opening(path, advice):
        return h5py.File(path, "r")


@contextlib.contextmanager
def _opening(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise ArtifactError(f"{path}: may not be read; change its permissions, or name another file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: not a readable HDF5 file (truncated, or no artifact at all){advice}") from error


def _check_seal(path: Path, advice: str) -> bool:
    """Compare the seal at the end of a file, before HDF5 sees any of it, and return whether there is one.

    Flipped bits can make HDF5's own code run for ever. A file that another tool wrote, or has changed, has no seal; one
    whose HDF5 part ends before the file does must have one.

    Raises:
        ArtifactError: The bytes are not those that were sealed, or the file cannot be read.
    """
    with _opening(path, advice), path.open("rb") as file:
        start = file.read(48)
        held = file.seek(0, os.SEEK_END) - len(SEAL) - hashlib.sha256().digest_size
        file.seek(max(held, 0))
        seal = file.read()
        sealed = seal.startswith(SEAL)
        if sealed:
            file.seek(0)
            sha = hashlib.sha256()
            while held and (part := file.read(min(held, 1 << 20))):
                sha.update(part)
                held -= len(part)
            whole = seal == SEAL + sha.digest()
        else:
            plain = start.startswith(b"\x89HDF\r\n\x1a\n\0")  # the form of HDF5 that zsseg writes
            whole = not plain or int.from_bytes(start[40:48], "little") >= path.stat().st_size
    if not whole:
        raise ArtifactError(f"{path}: damaged (its bytes do not match its seal){advice}")
    return sealed


@contextlib.contextmanager
def _reading(path: Path, kind: Kind) -> Iterator[None]:
    """Turn whatever h5py raises for a damaged or crafted file into an ArtifactError."""
    try:
        yield
    except _H5_ERRORS as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: Kind, reason: object) -> ArtifactError:
    return ArtifactError(f"{path}: damaged ({_line(reason)}); make it again with `zsseg {MADE_BY[kind]} --force`")


def _line(value: object) -> str:
    """Return foreign text fit for a message: one line, printable, not endless."""
    text = " ".join(str(value).split())
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def _header(file: h5py.File, kind: Kind, path: Path) -> dict[str, Any]:
    """Read and check the root attributes; `params` and `inputs` come decoded."""
    missing = [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise ArtifactError(
            f"{path}: an HDF5 file, but no finished zsseg artifact (lacks {', '.join(missing)}); "
            f"make it with `zsseg {MADE_BY[kind]}`"
        )
    header: dict[str, Any] = {name: _attribute(file, name) for name in ATTRIBUTES}
    if not isinstance(header["kind"], str) or header["kind"] != kind:
        found = _line(header["kind"])
        raise ArtifactError(f"{path}: holds {found!r}, expected {kind!r}; name the right file with --{kind}")
    if not isinstance(header["schema"], np.integer) or header["schema"] != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: written with schema {_line(header['schema'])}, this zsseg {__version__} reads {SCHEMA_VERSION}; "
            f"make it again with `zsseg {MADE_BY[kind]} --force`, or use zsseg {_line(header['zsseg'])}"
        )
    strange = [name for name in ATTRIBUTES if name != "schema" and not isinstance(header[name], str)]
    if strange:
        raise _damaged(path, kind, f"its attribute {strange[0]!r} is no text")
    return {**header, "params": _decoded(header["params"], object), "inputs": _decoded(header["inputs"], str)}


def _attribute(file: h5py.File, name: str) -> Any:
    """Return a root attribute; one with many values is not even read, for they could fill the memory."""
    return file.attrs[name] if file.attrs.get_id(name).shape == () else h5py.Empty("f4")


def _decoded(text: str, values: type) -> dict[str, Any]:
    if len(text) > MAX_SETTINGS:
        raise ValueError(f"its settings have more than {MAX_SETTINGS:,} characters")
    decoded = json.loads(text, object_hook=_Settings)
    if not isinstance(decoded, dict) or not all(isinstance(value, values) for value in decoded.values()):
        raise ValueError("its attribute params or inputs is no table of settings")
    return decoded


def _check_sizes(fields: Fields, kind: Kind, path: Path) -> None:
    """Refuse fields that claim more than the file holds, before anything of their size is allocated.

    zsseg writes plain uncompressed datasets, so that their bytes cannot exceed the file's.
    """
    size = held = path.stat().st_size
    for name, field in fields.items():
        for part in field.values() if isinstance(field, dict) else [field]:
            stored = part.id.get_create_plist()
            layout = stored.get_layout()
            if layout == h5py.h5d.VIRTUAL or stored.get_external_count() or stored.get_nfilters():
                raise _damaged(path, kind, f"field {name!r} is stored in a way that zsseg does not write")
            itemsize = part.dtype.itemsize
            held -= part.size * itemsize
            chunk = math.prod(stored.get_chunk() if layout == h5py.h5d.CHUNKED else ()) * itemsize
            if held < 0 or chunk > max(size, MAX_CHUNK):
                raise _damaged(path, kind, f"field {name!r} of shape {part.shape} is larger than the file")


def _checked_fields(file: h5py.File, kind: Kind, path: Path) -> Fields:
    """Look up what the schema declares, once, for that takes longer than reading what is small."""
    fields: Fields = {}
    lengths: dict[str, int] = {}
    for name, field in SCHEMA[kind].items():
        if name not in file:
            if field.optional:
                continue
            raise ArtifactError(f"{path}: {kind} lacks the field {name!r}; make it again with `zsseg {MADE_BY[kind]}`")
        if not _is_own(file, name):
            raise ArtifactError(f"{path}: field {name!r} is a link to somewhere else, which zsseg does not follow")
        data = file[name]
        if field.dtype == "arrays":
            fields[name] = _checked_arrays(data, name, path)
            continue
        if not isinstance(data, h5py.Dataset) or not _has_dtype(data, field):
            raise ArtifactError(
                f"{path}: field {name!r} is {getattr(data, 'dtype', 'a group')}, expected {field.dtype}"
            )
        if data.shape is None or len(data.shape) != len(field.shape):
            raise ArtifactError(f"{path}: field {name!r} has shape {data.shape}, expected {_axes(field)}")
        for length, symbol in zip(data.shape, field.shape, strict=True):
            expected = symbol if isinstance(symbol, int) else lengths.setdefault(symbol, length)
            if length != expected:
                raise ArtifactError(f"{path}: field {name!r} has shape {data.shape}, expected {symbol} = {expected}")
        fields[name] = data
    return fields


def _checked_arrays(group: Any, name: str, path: Path) -> dict[str, h5py.Dataset]:
    if not isinstance(group, h5py.Group):
        raise ArtifactError(f"{path}: field {name!r} is no group of arrays; make the file again")
    arrays: dict[str, h5py.Dataset] = {}
    for key in group:
        item = group[key] if _is_own(group, key) else None
        if not isinstance(item, h5py.Dataset) or not _is_number(item.dtype) or item.shape is None:
            raise ArtifactError(
                f"{path}: field {name!r} holds {_line(key)!r}, which is no array of numbers; make the file again"
            )
        arrays[key] = item
    return arrays


def _is_own(group: h5py.Group, name: str) -> bool:
    """Return whether what a group names lies in the same file, and is no link to elsewhere."""
    return isinstance(group.get(name, getlink=True), h5py.HardLink)


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Return whether torch has this dtype, too."""
    return dtype.kind in "biuf" and dtype.isnative and dtype.itemsize <= 8


def _digest(attributes: Mapping[str, Any], fields: Mapping[str, Any], kind: Kind, *, most: float = math.inf) -> str:
    """Return the digest of an artifact, at `most` so many bytes of whose rows of variable length are its own.

    Raises:
        ValueError: There are more, for rows share what they hold.
    """
    sha = hashlib.sha256()
    for name in ATTRIBUTES[:-1]:
        sha.update(f"{name}={attributes[name]}\n".encode())
    for name in SCHEMA[kind]:
        if name not in fields:
            continue
        dtype, field = SCHEMA[kind][name].dtype, fields[name]
        if dtype == "arrays":
            for key in sorted(field):
                _digest_array(sha, f"{name}/{key}", field[key][()])
        elif dtype in ("str", "bytes"):
            sha.update(f"{name} {dtype} {field.shape[0]}\n".encode())
            for row in field:
                raw = bytes(row) if dtype == "str" else row.tobytes()
                most -= len(raw)
                if most < 0:
                    raise ValueError(f"the rows of field {name!r} are larger than the file")
                sha.update(len(raw).to_bytes(8, "little") + raw)
        else:
            _digest_rows(sha, name, field)
    return sha.hexdigest()


def _digest_array(sha: Any, name: str, array: NDArray[Any]) -> None:
    array = np.asarray(array)
    sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    sha.update(np.ascontiguousarray(array).tobytes())


def _digest_rows(sha: Any, name: str, field: h5py.Dataset) -> None:
    """Digest a field like an array, a part at a time, for some fill gigabytes."""
    sha.update(f"{name} {field.dtype.str} {field.shape}\n".encode())
    rows = max(1, MAX_CHUNK * len(field) // max(1, field.nbytes))
    for start in range(0, len(field), rows):
        sha.update(np.asarray(field[start : start + rows]).tobytes())


def _places(field: h5py.Dataset) -> tuple[int, NDArray[np.int64]]:
    """Return how many numbers of a field of one axis lie together, and where in the file each lot does; -1: nowhere."""
    if field.chunks is None:
        place = field.id.get_offset()
        return max(len(field), 1), np.array([-1 if place is None else place])
    (together,) = field.chunks
    starts = np.full(-(-len(field) // together), -1, dtype=np.int64)

    def note(chunk: Any) -> None:
        starts[chunk.chunk_offset[0] // together] = chunk.byte_offset

    field.id.chunk_iter(note)
    return together, starts


def _h5_dtype(field: Field) -> Any:
    if field.dtype == "str":
        return h5py.string_dtype()
    if field.dtype == "bytes":
        return h5py.vlen_dtype(np.uint8)
    return np.dtype(field.dtype)


def _has_dtype(data: h5py.Dataset, field: Field) -> bool:
    """Compare dtypes, also what the strings and rows are of variable length, which NumPy's comparison leaves out."""
    if field.dtype == "str":
        text = h5py.check_string_dtype(data.dtype)
        return text is not None and text.length is None
    if field.dtype == "bytes":
        return bool(h5py.check_vlen_dtype(data.dtype) == np.uint8)
    return bool(data.dtype == np.dtype(field.dtype))


def _axes(field: Field) -> str:
    return f"({', '.join(map(str, field.shape))})"


def _row(value: Any, field: Field) -> Any:
    return np.frombuffer(value, dtype=np.uint8) if field.dtype == "bytes" else value


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
