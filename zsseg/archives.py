"""Read single members of tar archives that came from elsewhere, without ever unpacking by member names.

Only regular files are read, into memory and up to `MAX_MEMBER` bytes; an archive that holds an absolute
name or one with ".." is refused as a whole.
"""

from __future__ import annotations

import contextlib
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from zsseg.errors import DataError

MAX_MEMBER = 64 << 20  # bytes; the largest photo or label map of VOC and SBD has below one mebibyte


def walk(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Go once through an archive of any compression.

    Args:
        path: The archive.

    Yields:
        The open archive, the member, and its name without a leading "./". The member is to be read (see
        `read_member`) before the next one is asked for.

    Raises:
        DataError: It is no tar archive, is damaged, or holds an unsafe name.
    """
    with _translated(path):
        tar = tarfile.open(path, "r|*")  # noqa: SIM115 -- closed below; the translation must not span the yield
    try:
        while True:
            with _translated(path):
                member = tar.next()
            if member is None:
                return
            yield tar, member, safe_name(member, path)
            tar.members = []  # type: ignore[attr-defined]  # a stream never goes back: keep memory constant
    finally:
        tar.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]]:
    """Open an archive for reading in any order: quick where it is not compressed.

    Yields:
        The archive, and its members by name without a leading "./".

    Raises:
        DataError: It is no tar archive, is damaged, or holds an unsafe name.
    """
    with _translated(path):
        tar = tarfile.open(path, "r:*")  # noqa: SIM115 -- closed below; the translation must not span the yield
    with tar:
        with _translated(path):
            members = tar.getmembers()
        yield tar, {safe_name(member, path): member for member in members}


def safe_name(member: tarfile.TarInfo, path: Path) -> str:
    """Return a member's name without a leading "./".

    Raises:
        DataError: The name is absolute or holds "..".
    """
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise DataError(f"{path.name}: holds the unsafe member name {member.name!r}; use the published archive")
    return str(name)


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    """Return a member's contents.

    Raises:
        DataError: It is no regular file (a link, say), is larger than `MAX_MEMBER`, or is damaged.
    """
    if not member.isreg():
        raise DataError(f"{path.name}: {member.name} is a link or special file, expected a regular one")
    if member.size > MAX_MEMBER:
        raise DataError(f"{path.name}: {member.name} has {member.size:,} bytes, more than the {MAX_MEMBER:,} accepted")
    with _translated(path):
        file = tar.extractfile(member)
        content = file.read() if file else b""
    if len(content) != member.size:
        raise DataError(f"{path.name}: {member.name} is cut short; download the archive again")
    return content


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: not a readable tar archive ({reason}); download it again") from error
