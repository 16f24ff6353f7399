"""Bring a published file to this machine whole: mirrors in turn, broken transfers resumed, checksum verified.

A transfer goes into FILE.part and gets its final name only when the checksum is right; what a broken transfer
brought stays there for the next try, on this mirror or another. Checksums are the published ones: VOC 2012 and SBD
as in torchvision, GoogleNews as in gensim-data's list, GloVe 6B as in pytorch-nlp and Embeddings.jl.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zsseg.artifacts import locked
from zsseg.errors import ArtifactError, DataError
from zsseg.progress import SILENT, Progress

logger = logging.getLogger(__name__)

TIMEOUT = (10.0, 60.0)  # seconds to connect, and to wait for the next bytes
RETRIES = 20  # resumes on one mirror, as long as each one brings something
PAUSE = 1.0  # seconds before a resume
PIECE = 1 << 16  # bytes read at once: at most this much is lost when a connection breaks
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Download:
    """A published file.

    Attributes:
        file: Its name on disk.
        mirrors: Where it is had, in the order to try.
        checksum: "algorithm:hexadecimal digest".
        elsewhere: What to do with a copy that was got in another way; ends the error when all mirrors fail.
    """

    file: str
    mirrors: tuple[str, ...]
    checksum: str
    elsewhere: str


_ARCHIVE = "download it elsewhere and name it with --archive FILE"
_VECTORS = "download it elsewhere and name the vectors in `zsseg embed-labels --vectors FILE`"

DOWNLOADS: dict[str, Download] = {
    "voc2012": Download(
        "VOCtrainval_11-May-2012.tar",
        (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://pjreddie.com/media/files/VOCtrainval_11-May-2012.tar",
        ),
        "md5:6cd6e144f989b92b3379bac3b3de84fd",
        _ARCHIVE,
    ),
    "sbd": Download(
        "benchmark.tgz",
        (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        ),
        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        _ARCHIVE,
    ),
    "word2vec-google-news-300": Download(
        "GoogleNews-vectors-negative300.bin.gz",
        (
            "https://github.com/RaRe-Technologies/gensim-data/releases/download/"
            "word2vec-google-news-300/word2vec-google-news-300.gz",
            "https://github.com/piskvorky/gensim-data/releases/download/"
            "word2vec-google-news-300/word2vec-google-news-300.gz",
        ),
        "md5:a5e5354d40acb95f9ec66d5977d140ef",
        _VECTORS,
    ),
    "glove-6b": Download(
        "glove.6B.zip",
        (
            "https://nlp.stanford.edu/data/glove.6B.zip",
            "https://downloads.cs.stanford.edu/nlp/data/glove.6B.zip",
            "https://huggingface.co/stanfordnlp/glove/resolve/main/glove.6B.zip",
        ),
        "sha256:617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
        _VECTORS,
    ),
}


class _BrokenTransferError(Exception):
    """A mirror did not give the whole file; the message is the reason, `resumable` whether to ask it again."""

    def __init__(self, reason: str, *, resumable: bool = False) -> None:
        super().__init__(reason)
        self.resumable = resumable


def obtain(download: Download, folder: Path, *, progress: Progress = SILENT) -> Path:
    """Return the verified file in a folder, downloading it where it is not there yet.

    Args:
        download: What to bring.
        folder: Where it is kept; made where missing.
        progress: Counts mebibytes.

    Raises:
        DataError: A file of that name is there but has another checksum (it is left alone), every mirror
            failed (each is named with its reason), or the folder cannot be written.
    """
    path = folder / download.file
    if path.exists():
        if not matches(path, download):
            raise DataError(f"{path}: {_mismatch(path, download)}; remove it and run the command again")
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path):
            return path if path.exists() else _from_mirrors(download, path, progress)
    except ArtifactError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be stored ({error.strerror or error}); free some space, or choose another folder "
            "with the environment variable ZSSEG_CACHE"
        ) from error


def matches(path: Path, download: Download) -> bool:
    """Return whether a file has the published checksum."""
    algorithm, expected = download.checksum.split(":")
    return _checksum(path, algorithm) == expected


def _checksum(path: Path, algorithm: str) -> str:
    import pooch

    return str(pooch.file_hash(str(path), alg=algorithm))


def _mismatch(path: Path, download: Download) -> str:
    algorithm, expected = download.checksum.split(":")
    return f"{algorithm} checksum {_checksum(path, algorithm)}, expected {expected}"


def _from_mirrors(download: Download, path: Path, progress: Progress) -> Path:
    part = path.with_name(path.name + ".part")
    failures = []
    for url in download.mirrors:
        try:
            _from_mirror(url, part, download, progress)
        except _BrokenTransferError as error:
            logger.info("%s: %s", url, error)
            failures.append(f"{url} ({error})")
        else:
            part.replace(path)
            return path
    kept = f"; {part.stat().st_size:,} bytes are kept for the next try" if part.exists() else ""
    raise DataError(
        f"{download.file}: no mirror gave it: {', '.join(failures)}{kept}; try again, or {download.elsewhere}"
    )


def _from_mirror(url: str, part: Path, download: Download, progress: Progress) -> None:
    """Complete and verify the .part file; a resumed file with a wrong checksum is fetched once more from the start."""
    resumed = part.exists()
    _complete(url, part, progress)
    if resumed and not matches(part, download):
        part.unlink()
        _complete(url, part, progress)
    if not matches(part, download):
        reason = f"{_mismatch(part, download)}; the file was removed"
        part.unlink()
        raise _BrokenTransferError(reason)


def _complete(url: str, part: Path, progress: Progress) -> None:
    """Transfer until the .part file is whole, resuming as long as every try brings something."""
    for _ in range(RETRIES):
        before = _size(part)
        try:
            return _transfer(url, part, progress)
        except _BrokenTransferError as error:
            if not error.resumable or _size(part) == before:
                raise
            logger.info("%s: %s; resuming", url, error)
            time.sleep(PAUSE)
    raise _BrokenTransferError(f"broken off {RETRIES} times")


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """Ask once for what is missing and append it.

    Raises:
        _BrokenTransferError: It did not come, or not all of it.
    """
    import requests
    import urllib3

    have = _size(part)
    # No compression on the way: some servers mark .tgz files as gzip-encoded, and unpacking would change them.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            start, total = _range(response, have, part)
            if start == total:
                return
            missing = 0 if total is None else -(-(total - start) // MEBIBYTE)
            saved = _saved(response, part, start)
            for _ in progress.track(saved, f"{part.stem} (MiB)", missing):
                pass
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _BrokenTransferError(_reason(error, part), resumable=True) from error
    if total is not None and _size(part) != total:
        raise _BrokenTransferError(f"broken off at {_size(part):,} of {total:,} bytes", resumable=True)


def _range(response: Any, have: int, part: Path) -> tuple[int, int | None]:
    """Return from where the answer goes on and the whole file's length, None where the server does not tell.

    Raises:
        _BrokenTransferError: The answer is an error.
    """
    sent = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == 416 and sent and sent[2] == str(have):
        return have, have  # the .part file was whole already
    if response.status_code == 416 or (response.status_code == 206 and (not sent or sent[1] != str(have))):
        part.unlink(missing_ok=True)  # it is longer than the file, or the server sends another piece
        raise _BrokenTransferError("the mirror cannot resume here", resumable=True)
    response.raise_for_status()
    if response.status_code == 206 and sent:
        return have, None if sent[2] == "*" else int(sent[2])
    length = response.headers.get("Content-Length")  # 200: asked for the whole, or the server ignored Range
    return 0, int(length) if length else None


def _saved(response: Any, part: Path, start: int) -> Iterator[int]:
    """Write the answer behind `start`, yielding the size at every full mebibyte and at the end."""
    with part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)
        told = start
        while piece := response.raw.read(PIECE, decode_content=False):
            file.write(piece)
            if file.tell() - told >= MEBIBYTE:
                told = file.tell()
                yield told
        if file.tell() > told:
            yield file.tell()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception, part: Path) -> str:
    """Say in a few words why a mirror failed; the libraries' own texts hold addresses in memory."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "cannot connect"
    return f"broken off after {_size(part):,} bytes"
