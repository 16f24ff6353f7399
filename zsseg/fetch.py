"""`fetch-data`: bring a data set into data.h5, or word vectors into the cache.

Images stay as the encoded bytes they came as; every image and label map is decoded once to check it. Images that
cannot be used are reported by file name: by default nothing is written then, with `skip_bad` they are left out.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zsseg import downloads, voc
from zsseg.archives import unpack
from zsseg.artifacts import Writer, check_output, create
from zsseg.classes import VOID
from zsseg.config import VECTOR_FILES, FetchConfig, cache_folder
from zsseg.errors import DataError, SettingError, suggestion
from zsseg.folders import folder_source
from zsseg.images import UInt8, decode_image, decode_label_map, encode_label_map
from zsseg.progress import SILENT, Progress
from zsseg.sources import Bad, Pair, Source, png, sample_source

logger = logging.getLogger(__name__)

SOURCES = ("sample", "voc2012", "sbd", "voc2012+sbd", "folder")
VECTORS = ("word2vec-google-news-300", "glove-6b")
WORKERS = 2  # threads that decode; Pillow lets go of Python's lock while it does
WINDOW = 4 * WORKERS  # images in memory at once

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class FetchSummary:
    """What `fetch_data` wrote.

    Attributes:
        path: The artifact.
        source: Where the data came from, one of `SOURCES`.
        names: Class names in index order.
        train: How many training images.
        val: How many validation images.
        skipped: What `skip_bad` left out: file name and reason.
    """

    path: Path
    source: str
    names: tuple[str, ...]
    train: int
    val: int
    skipped: tuple[Bad, ...]


@dataclass(frozen=True)
class _Photo:
    """A checked pair, ready to be stored."""

    id: str
    image: bytes
    label_map: bytes
    size: tuple[int, int]


def fetch_data(
    out: Path,
    config: FetchConfig,
    *,
    root: Path | None = None,
    archives: Sequence[Path] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> FetchSummary:
    """Read a data set, check all of it, and write data.h5.

    Training images come first, each partition in the order of its list. A folder's own train and val lists are kept;
    see `folders.folder_source` for what is done where they are missing. With a limit, every partition is thinned
    evenly and keeps its share, and at least one image; only what remains is read and checked.

    Args:
        out: The artifact to write.
        config: Source, limit, seed and what to do with bad files.
        root: The data set's folder for the source `folder`; for the archives, where downloads are kept
            instead of the cache folder.
        archives: Archives that were downloaded elsewhere, recognised by checksum or inner layout.
        force: Whether an existing artifact may be replaced.
        progress: Counts mebibytes, files and images.

    Returns:
        Counts and what was left out.

    Raises:
        SettingError: A setting that cannot be met.
        DataError: A download, archive, folder or image that cannot be used.
        ArtifactError: The output is refused or cannot be written.
    """
    _check_settings(config, root, archives)
    check_output(out, force=force)
    with _opened(config, root, archives, progress) as source:
        if not (source.train or source.val):
            raise DataError(f"{config.source}: lists no image; check the lists, or name another folder with --root")
        train, val = _limited(source.train, source.val, config.limit)
        source.prepare([*train, *val])
        with create(out, "data", params=asdict(config), inputs={}, force=force) as writer:
            counts, bad = _write(writer, source, (train, val), skip_bad=config.skip_bad, progress=progress)
            if bad and not config.skip_bad:
                raise _bad_files(bad, len(train) + len(val))
            if not sum(counts):
                raise DataError(f"{': '.join(bad[0])}; none of the {len(bad)} files can be used")
    return FetchSummary(out, config.source, source.names, *counts, skipped=bad)


def fetch_vectors(name: str, *, root: Path | None = None, progress: Progress = SILENT) -> Path:
    """Download word vectors, or find them where they are already.

    Args:
        name: "word2vec-google-news-300" or "glove-6b"; also a name of `config.VECTOR_FILES`.
        root: Where they are kept instead of the folder "vectors" in the cache.
        progress: Counts mebibytes.

    Returns:
        The vector file; for "glove-6b" the folder that holds its three, of 100, 200 and 300 dimensions.

    Raises:
        SettingError: No vectors of this name can be had.
        DataError: The download failed or is damaged.
    """
    folder = root or cache_folder() / "vectors"
    if name == "word2vec-google-news-300":
        return downloads.obtain(downloads.DOWNLOADS[name], folder, progress=progress)
    if name == "glove-6b" or (name in VECTOR_FILES and name.startswith("glove-6b-")):
        _fetch_glove(folder, progress)
        return folder / VECTOR_FILES[name] if name in VECTOR_FILES else folder
    raise SettingError(f"{name!r}: no such vectors, expected one of {', '.join(VECTORS)}{suggestion(name, VECTORS)}")


# --- settings and sources ---------------------------------------------------------------------------------------------


def _check_settings(config: FetchConfig, root: Path | None, archives: Sequence[Path]) -> None:
    if config.source not in SOURCES:
        hint = suggestion(config.source, (*SOURCES, *VECTORS))
        raise SettingError(f"{config.source!r}: no such source, expected one of {', '.join(SOURCES)}{hint}")
    if config.limit is not None and config.limit < 1:
        raise SettingError(f"--limit {config.limit}: expected 1 or more")
    if not 0 <= config.val_fraction < 1:
        raise SettingError(f"val_fraction {config.val_fraction}: expected 0 or more and less than 1")
    if config.source == "folder" and root is None:
        raise SettingError("folder: expected the data set's folder; name it with --root DIR")
    if config.source == "sample" and root is not None:
        raise SettingError("sample: is built in and takes no --root; leave it out, or take the source `folder`")
    if config.source in ("sample", "folder") and archives:
        raise SettingError(
            f"{config.source}: takes no --archive; leave it out, or take one of the sources voc2012, sbd"
        )


@contextlib.contextmanager
def _opened(config: FetchConfig, root: Path | None, archives: Sequence[Path], progress: Progress) -> Iterator[Source]:
    """Open the source, downloading what it needs."""
    if config.source == "sample":
        yield sample_source(config.seed, progress)
        return
    if config.source == "folder" and root is not None:
        yield folder_source(root, val_fraction=config.val_fraction, seed=config.seed)
        return
    folder = root or cache_folder()
    needed = config.source.split("+")
    given = _recognised(archives, needed)
    paths = [
        given.get(name) or downloads.obtain(downloads.DOWNLOADS[name], folder, progress=progress) for name in needed
    ]
    if needed == ["voc2012"]:
        opened = voc.voc_source(*paths)
    elif needed == ["sbd"]:
        opened = voc.sbd_source(paths[0], folder, progress)
    else:
        opened = voc.trainaug_source(paths[0], paths[1], folder, progress)
    with opened as source:
        yield source


def _recognised(archives: Sequence[Path], needed: Sequence[str]) -> dict[str, Path]:
    """Return which of the needed archives each given file is."""
    given: dict[str, Path] = {}
    for path in archives:
        if not path.is_file():
            what = (
                "is a folder; for an unpacked data set use `fetch-data folder --root`"
                if path.is_dir()
                else "no such file"
            )
            raise DataError(f"{path}: {what}")
        name = _which(path)
        if name is None or name not in needed:
            expected = ", ".join(f"{downloads.DOWNLOADS[key].file} ({key})" for key in needed)
            found = f"is the archive of {name}" if name else "has the layout of neither VOC 2012 nor SBD"
            raise DataError(f"{path}: {found}, expected {expected}")
        if name in given:
            raise DataError(f"{path}: is the archive of {name}, and so is {given[name]}; leave one out")
        given[name] = path
    return given


def _which(path: Path) -> str | None:
    for name in ("voc2012", "sbd"):
        if downloads.matches(path, downloads.DOWNLOADS[name]):
            return name
    found = voc.identify(path)
    if found:
        expected = downloads.DOWNLOADS[found].checksum
        logger.warning("%s: not the published checksum (%s), taken as %s by its layout", path, expected, found)
    return found


def _limited(train: Sequence[str], val: Sequence[str], limit: int | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Thin both partitions evenly to `limit` images in all, keeping their proportion and one of each at least."""
    total = len(train) + len(val)
    if limit is None or limit >= total:
        return tuple(train), tuple(val)
    if limit == 1 and train and val:
        raise SettingError("--limit 1: there are train and val images, expected 2 or more")
    val_count = min(max(round(limit * len(val) / total), 1 if val else 0), limit - (1 if train else 0))
    return _thinned(train, limit - val_count), _thinned(val, val_count)


def _thinned(ids: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(ids[index * len(ids) // count] for index in range(count))


# --- checking and writing ---------------------------------------------------------------------------------------------


def _write(
    writer: Writer, source: Source, ids: tuple[Sequence[str], Sequence[str]], *, skip_bad: bool, progress: Progress
) -> tuple[tuple[int, int], tuple[Bad, ...]]:
    """Store all images that are good; after a bad one and without `skip_bad`, only go on counting.

    Returns:
        The number of train and of val images stored, and the bad ones.
    """
    bad = list(source.bad)
    counts = []
    first = 0
    # `images` mutes warnings while it decodes; two threads that do so can leave them muted, so restore them here.
    with warnings.catch_warnings():
        photos = iter(progress.track(_checked(source, [*ids[0], *ids[1]]), "Reading images", sum(map(len, ids))))
        for partition, part in zip(("train", "val"), ids, strict=True):
            stored = 0
            for _ in part:
                photo = next(photos)
                if not isinstance(photo, _Photo):
                    bad.append(photo)
                elif skip_bad or not bad:
                    _append(writer, photo)
                    stored += 1
            writer.put(partition, np.arange(first, first + stored))
            first += stored
            counts.append(stored)
        for _ in photos:  # lets the progress finish
            pass
    writer.put("names", source.names)
    return (counts[0], counts[1]), tuple(bad)


def _append(writer: Writer, photo: _Photo) -> None:
    writer.append("ids", photo.id)
    writer.append("images", photo.image)
    writer.append("label_maps", photo.label_map)
    writer.append("sizes", np.asarray(photo.size))


def _checked(source: Source, ids: Sequence[str]) -> Iterator[_Photo | Bad]:
    """Read and check images in `WORKERS` threads, in order, with at most `WINDOW` of them in memory."""
    waiting: deque[Future[_Photo | Bad]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for photo_id in ids:
                waiting.append(pool.submit(_check, source, photo_id))
                if len(waiting) == WINDOW:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _check(source: Source, photo_id: str) -> _Photo | Bad:
    try:
        photo_id.encode()
        pair = source.read(photo_id)
        image = decode_image(pair.image, pair.image_name)
        label_map = _label_map(pair)
        _check_label_map(label_map, image, source.names, pair.label_name)
        return _Photo(photo_id, _image_bytes(pair, image), _label_bytes(pair, label_map), image.shape[:2])
    except UnicodeEncodeError:
        return repr(photo_id), "the file name is not valid UTF-8; rename it"
    except DataError as error:
        name, _, reason = str(error).partition(": ")
        return name, reason


def _label_map(pair: Pair) -> UInt8:
    if isinstance(pair.label_map, bytes):
        return decode_label_map(pair.label_map, pair.label_name)
    return pair.label_map


def _check_label_map(label_map: UInt8, image: UInt8, names: Sequence[str], label_name: str) -> None:
    """Compare a label map with its image and the classes.

    Raises:
        DataError: It has another size, or holds an id that is neither a class nor void.
    """
    if label_map.shape != image.shape[:2]:
        (height, width), (image_height, image_width) = label_map.shape, image.shape[:2]
        raise DataError(
            f"{label_name}: label map of {width}×{height} pixels, expected the image's {image_width}×{image_height}"
        )
    present = np.flatnonzero(np.bincount(label_map.ravel(), minlength=VOID + 1))
    wrong = [index for index in present.tolist() if index >= len(names) and index != VOID]
    if wrong:
        raise DataError(
            f"{label_name}: holds class id {wrong[0]}, expected 0 to {len(names) - 1} for the {len(names)} classes, "
            f"or {VOID} for void"
        )


def _image_bytes(pair: Pair, image: UInt8) -> bytes:
    """Return the file's own bytes where it is JPEG or PNG, else a PNG of the upright image."""
    return pair.image if pair.image.startswith((_JPEG, _PNG)) else png(image)


def _label_bytes(pair: Pair, label_map: UInt8) -> bytes:
    """Return the file's own bytes where it is PNG, else a palette PNG."""
    if isinstance(pair.label_map, bytes) and pair.label_map.startswith(_PNG):
        return pair.label_map
    return encode_label_map(label_map)


def _bad_files(bad: Sequence[Bad], total: int) -> DataError:
    name, reason = bad[0]
    more = f"; {len(bad)} bad files in all among {total} images" if len(bad) > 1 else f"; the only bad one of {total}"
    return DataError(f"{name}: {reason}{more}; mend them, or leave them out with --skip-bad")


# --- vectors ----------------------------------------------------------------------------------------------------------


def _fetch_glove(folder: Path, progress: Progress) -> None:
    """Unpack the GloVe files that are missing, and remove the archive then."""
    files = [file for name, file in VECTOR_FILES.items() if name.startswith("glove-6b-")]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        return
    archive = downloads.obtain(downloads.DOWNLOADS["glove-6b"], folder, progress=progress)
    try:
        for file in progress.track(missing, "Unpacking", len(missing)):
            unpack(archive, file, folder / file)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error
    archive.unlink()
