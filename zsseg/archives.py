"""Read archives and gzip files that came from elsewhere, without ever unpacking by member names.

Tar archives, plain or gzipped: only regular files are read, into memory and up to `MAX_MEMBER` bytes. An archive that
holds an absolute name, one with "..", a file twice, or more than `MAX_MEMBERS` names is refused as a whole. What
unpacks to more than `MAX_GROWTH` times its size is taken for a bomb, whatever it holds.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

from zsseg.errors import DataError

MAX_MEMBER = 64 << 20  # bytes; the largest photo or label map of VOC and SBD has below one mebibyte
MAX_MEMBERS = 200_000  # VOC 2012 has 52,000, SBD 23,000
MAX_NAME = 1000  # characters
MAX_GROWTH = 20  # photos and word vectors unpack to once to five times their size
ALLOWANCE = 16 << 20  # bytes that a packed file may always unpack to
MAX_PART = 1 << 16  # bytes read at a time, hence also of a tar header

_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error,
    EOFError, OSError, ValueError, LookupError, OverflowError, MemoryError, RuntimeError, AttributeError, TypeError,
)  # fmt: skip
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # where something is written, too


class Bounded(io.BufferedReader):
    """A file, unpacked where it is gzipped, of which no more than expected can be read; a bomb raises OSError."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        size = path.stat().st_size
        raw = gzip.open(path, "rb") if zipped else path.open("rb", buffering=0)  # noqa: SIM115 -- closed with this one
        super().__init__(cast(Any, raw), MAX_PART)
        self._limit = MAX_GROWTH * size + ALLOWANCE if zipped else size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, `MAX_PART` at most."""
        if size is None or not 0 <= size <= MAX_PART:
            raise OSError("a header is damaged or absurdly long")
        return self._counted(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line, or so much of it."""
        return self._counted(super().readline(size))

    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place from the start, not beyond the end."""
        if whence != io.SEEK_SET or not 0 <= target <= self._limit:
            raise OSError("a header points outside of the file")
        return super().seek(target)

    def _counted(self, content: bytes) -> bytes:
        if self.tell() > self._limit:
            raise OSError(f"unpacks to more than {MAX_GROWTH} times its size")
        return content


def walk(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Go once through a tar archive, plain or gzipped.

    Args:
        path: The archive.

    Yields:
        The open archive, the member, and its name without a leading "./". The member is to be read (see
        `read_member`) before the next one is asked for.

    Raises:
        DataError: It is no such archive, is damaged, or holds what no published one holds.
    """
    with contextlib.ExitStack() as stack:
        with _translated(path):
            tar = tarfile.open(fileobj=stack.enter_context(Bounded(path)), mode="r:")  # noqa: SIM115
        stack.callback(tar.close)
        names: set[str] = set()
        reached = -1
        while True:
            with _translated(path):
                member = tar.next()
            if member is None:
                return
            name = safe_name(member, path)
            if member.isfile() and name in names:
                raise DataError(f"{path.name}: holds {name!r} twice; use the published archive")
            if len(names) == MAX_MEMBERS or member.offset <= reached:
                raise DataError(f"{path.name}: holds more than {MAX_MEMBERS:,} members; use the published archive")
            names.add(name)
            reached = member.offset
            yield tar, member, name
            tar.members = []  # type: ignore[attr-defined]  # never goes back: keep memory constant


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]]:
    """Open a tar archive for reading in any order: quick where it is not compressed.

    Yields:
        The archive, and its members by name without a leading "./".

    Raises:
        DataError: As in `walk`.
    """
    members = {name: member for _, member, name in walk(path)}
    with contextlib.ExitStack() as stack:
        with _translated(path):
            tar = tarfile.open(fileobj=stack.enter_context(Bounded(path)), mode="r:")  # noqa: SIM115
        stack.callback(tar.close)
        yield tar, members


def safe_name(member: tarfile.TarInfo, path: Path) -> str:
    """Return a member's name without a leading "./".

    Raises:
        DataError: The name is absolute, holds "..", or is absurdly long.
    """
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or len(member.name) > MAX_NAME:
        raise DataError(f"{path.name}: holds the unsafe member name {member.name[:100]!r}; use the published archive")
    return str(name)


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    """Return a member's contents.

    Raises:
        DataError: It is no regular file (a link, say), is larger than `MAX_MEMBER`, or is damaged.
    """
    if not member.isreg() or member.issparse():
        raise DataError(f"{path.name}: {member.name} is a link or special file, expected a regular one")
    if not 0 <= member.size <= MAX_MEMBER:
        raise DataError(f"{path.name}: {member.name} has {member.size:,} bytes, more than the {MAX_MEMBER:,} accepted")
    content = io.BytesIO()
    with _translated(path):
        file = tar.extractfile(member)
        while file and (part := file.read(MAX_PART // 2)):
            content.write(part)
    if content.tell() != member.size:
        raise DataError(f"{path.name}: {member.name} is cut short; download the archive again")
    return content.getvalue()


def unpack(archive: Path, name: str, target: Path) -> None:
    """Copy one member of a zip archive to a file, which gets its name when the member's checksum is right.

    Raises:
        DataError: It is no zip archive, is damaged, lacks the member, or the member is a bomb.
        OSError: The target cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as unpacked, _translated(archive, "zip"), zipfile.ZipFile(archive) as members:
            member = members.getinfo(name)
            if member.file_size > MAX_GROWTH * member.compress_size + ALLOWANCE:
                raise OSError(f"{name} unpacks to more than {MAX_GROWTH} times its size")
            with members.open(member) as packed:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def inflated(packed: bytes, limit: int) -> bytes:
    """Unpack zlib data, or the whole part of it.

    Raises:
        ValueError: It unpacks to more than `limit` bytes.
        zlib.error: It is no zlib data.
    """
    content = zlib.decompressobj().decompress(packed, limit + 1)
    if len(content) > limit:
        raise ValueError(f"unpacks to more than {limit:,} bytes")
    return content


@contextlib.contextmanager
def _translated(path: Path, form: str = "tar") -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:  # the readers raise many kinds on damaged files; each means the same to the user
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not a readable {form} archive ({reason}); download it again") from error
