"""VOC 2012, SBD and the two together as sources, read from the published archives.

References: M. Everingham et al., "The PASCAL Visual Object Classes Challenge 2012"; B. Hariharan et al.,
"Semantic Contours from Inverse Detectors", ICCV 2011 (SBD).
"""

from __future__ import annotations

import contextlib
import re
import threading
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from zsseg.archives import opened, read_member, walk
from zsseg.artifacts import drafts
from zsseg.classes import VOC_NAMES
from zsseg.errors import DataError
from zsseg.images import UInt8
from zsseg.matlab import read_field
from zsseg.progress import Progress
from zsseg.sources import Pair, Source, lines, listed

_VOC = re.compile(r"(?:VOCdevkit/)?VOC2012/(JPEGImages|SegmentationClass|ImageSets/Segmentation)/([\w-]+)\.(\w+)")
_SBD = re.compile(r"(?:[^/]+/)?dataset/(?:(cls|img)/)?([\w-]+)\.(mat|jpg|txt)")


def identify(path: Path) -> str | None:
    """Return "voc2012" or "sbd" from an archive's inner layout, None where it is neither.

    Raises:
        DataError: It is no tar archive, is damaged, or holds an unsafe name.
    """
    for _, _, name in walk(path):
        if _VOC.fullmatch(name):
            return "voc2012"
        if _SBD.fullmatch(name):
            return "sbd"
    return None


class _Voc:
    """The parts of VOC's archive that are needed, read in any order from any thread."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self._path = path
        self._tar, members = stack.enter_context(opened(path))
        self._members = {
            match.group(1, 2): member for name, member in members.items() if (match := _VOC.fullmatch(name))
        }
        self._lock = threading.Lock()  # the archive has one file position

    def ids(self, name: str) -> tuple[str, ...]:
        return lines(self._bytes("ImageSets/Segmentation", name).decode("utf-8", "replace"))

    def has_label_map(self, photo_id: str) -> bool:
        return ("SegmentationClass", photo_id) in self._members

    def image(self, photo_id: str) -> bytes:
        return self._bytes("JPEGImages", photo_id)

    def pair(self, photo_id: str) -> Pair:
        return Pair(
            f"JPEGImages/{photo_id}.jpg",
            self.image(photo_id),
            f"SegmentationClass/{photo_id}.png",
            self._bytes("SegmentationClass", photo_id),
        )

    def _bytes(self, folder: str, name: str) -> bytes:
        member = self._members.get((folder, name))
        if member is None:
            raise DataError(f"{folder}/{name}: not in {self._path.name}; download the archive again")
        with self._lock:
            return read_member(self._tar, member, self._path)


class _Sbd:
    """SBD's archive; what is needed is copied to a scratch folder in one pass, for it is one long gzip stream."""

    def __init__(self, path: Path, scratch: Path, progress: Progress) -> None:
        self._path = path
        self._scratch = scratch
        self._progress = progress

    def lists(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for tar, member, name in walk(self._path):
            match = _SBD.fullmatch(name)
            if match and match[1] is None and match[2] in ("train", "val") and match[3] == "txt":
                found[match[2]] = lines(read_member(tar, member, self._path).decode("utf-8", "replace"))
                if len(found) == 2:
                    return found
        raise DataError(f"{self._path}: lacks dataset/train.txt or dataset/val.txt; download the archive again")

    def extract(self, ids: Collection[str], kinds: Collection[str]) -> None:
        """Copy label maps ("cls") and images ("img") of these ids; file names are made here, not taken over."""
        wanted = {(kind, photo_id) for kind in kinds for photo_id in ids}
        found = self._found(wanted)
        for kind, photo_id, content in self._progress.track(found, f"{self._path.name} (files)", len(wanted)):
            (self._scratch / f"{kind}-{photo_id}").write_bytes(content)

    def _found(self, wanted: set[tuple[str, str]]) -> Iterator[tuple[str, str, bytes]]:
        for tar, member, name in walk(self._path) if wanted else ():
            match = _SBD.fullmatch(name)
            if match and match.group(1, 2) in wanted:
                wanted.remove((match[1], match[2]))
                yield match[1], match[2], read_member(tar, member, self._path)
            if not wanted:
                return

    def label_map(self, photo_id: str) -> tuple[str, UInt8]:
        """Return file name and class ids, uint8 (H, W); SBD has no void."""
        name = f"dataset/cls/{photo_id}.mat"
        return name, _mat_label_map(self._copy("cls", photo_id, name), name)

    def image(self, photo_id: str) -> tuple[str, bytes]:
        name = f"dataset/img/{photo_id}.jpg"
        return name, self._copy("img", photo_id, name)

    def _copy(self, kind: str, photo_id: str, name: str) -> bytes:
        path = self._scratch / f"{kind}-{photo_id}"
        if not path.is_file():
            raise DataError(f"{name}: not in {self._path.name}; download the archive again")
        return path.read_bytes()


def _mat_label_map(content: bytes, name: str) -> UInt8:
    """Read GTcls.Segmentation of a MATLAB file."""
    try:
        label_map = read_field(content, "GTcls", "Segmentation")
    except (ValueError, zlib.error) as error:
        raise DataError(f"{name}: no readable GTcls.Segmentation in this MATLAB file ({error})") from error
    if label_map.ndim != 2 or label_map.dtype.kind not in "uif" or not ((label_map >= 0) & (label_map <= 255)).all():
        raise DataError(
            f"{name}: GTcls.Segmentation is {label_map.dtype} {label_map.shape}, expected class ids (height, width)"
        )
    return label_map.astype(np.uint8)


@contextlib.contextmanager
def voc_source(path: Path) -> Iterator[Source]:
    """Open VOC 2012: its own train and val lists of segmentation, 1,464 and 1,449 images.

    Raises:
        DataError: The archive cannot be used.
    """
    with contextlib.ExitStack() as stack:
        voc = _Voc(path, stack)
        train, val, bad = listed(voc.ids("train"), "train.txt", voc.ids("val"), "val.txt")
        yield Source(VOC_NAMES, train, val, voc.pair, bad)


@contextlib.contextmanager
def sbd_source(path: Path, folder: Path, progress: Progress) -> Iterator[Source]:
    """Open SBD: its own train and val lists, 8,498 and 2,857 images, and its own images.

    Args:
        path: The archive.
        folder: Where a scratch folder is made; what will be read is copied there first.
        progress: Counts files copied.

    Raises:
        DataError: The archive cannot be used.
    """
    with _scratch(folder) as scratch:
        sbd = _Sbd(path, scratch, progress)
        lists = sbd.lists()
        train, val, bad = listed(lists["train"], "train.txt", lists["val"], "val.txt")

        def read(photo_id: str) -> Pair:
            return Pair(*sbd.image(photo_id), *sbd.label_map(photo_id))

        yield Source(VOC_NAMES, train, val, read, bad, lambda ids: sbd.extract(ids, ("cls", "img")))


@contextlib.contextmanager
def trainaug_source(voc_path: Path, sbd_path: Path, folder: Path, progress: Progress) -> Iterator[Source]:
    """Open VOC 2012 enlarged by SBD: 10,582 training images, and VOC's val of 1,449.

    Training images are VOC's train and SBD's train_noval, which is SBD's train and val less VOC's val: the list once
    published has vanished, but follows from these. Images are VOC's; a label map is VOC's own where there is one.

    Args:
        voc_path: VOC's archive.
        sbd_path: SBD's archive.
        folder: Where a scratch folder is made; SBD's label maps are copied there first.
        progress: Counts files copied.

    Raises:
        DataError: An archive cannot be used.
    """
    with contextlib.ExitStack() as stack:
        voc = _Voc(voc_path, stack)
        sbd = _Sbd(sbd_path, stack.enter_context(_scratch(folder)), progress)
        train, val, bad = listed(voc.ids("train"), "train.txt", voc.ids("val"), "val.txt")
        more = {photo_id for ids in sbd.lists().values() for photo_id in ids} - {*train, *val}

        def prepare(ids: Collection[str]) -> None:
            sbd.extract([photo_id for photo_id in ids if not voc.has_label_map(photo_id)], ("cls",))

        def read(photo_id: str) -> Pair:
            if voc.has_label_map(photo_id):
                return voc.pair(photo_id)
            return Pair(f"JPEGImages/{photo_id}.jpg", voc.image(photo_id), *sbd.label_map(photo_id))

        yield Source(VOC_NAMES, (*train, *sorted(more)), val, read, bad, prepare)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(drafts(folder, "scratch"))
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error.strerror or error}); name another folder with the environment "
                "variable ZSSEG_CACHE"
            ) from error
        yield scratch
