"""Reading word vectors: every format gives the same numbers, and what is no vector file is refused in one line."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zsseg import vectors
from zsseg.errors import DataError, SettingError
from zsseg.vectors import read_file, read_vocabulary

WORDS = ["the", "cow", "New_York", "naïve", "sheep", "late"]
MATRIX = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype(np.float32)


def text(*, header: bool, end: str = "") -> bytes:
    """Return the words as text; `end` is fastText's space before each line feed."""
    rows = [f"{word} {' '.join(map(str, row.tolist()))}{end}" for word, row in zip(WORDS, MATRIX, strict=True)]
    return "\n".join(([f"{len(WORDS)} 5"] if header else []) + rows).encode() + b"\n"


def binary(*, feed: bytes = b"\n") -> bytes:
    """Return the words in word2vec's binary format; the original tool ends each row with a line feed."""
    rows = [word.encode() + b" " + row.tobytes() + feed for word, row in zip(WORDS, MATRIX, strict=True)]
    return f"{len(WORDS)} 5\n".encode() + b"".join(rows)


FORMATS = {
    "word2vec.txt": text(header=True),
    "glove.txt": text(header=False),
    "fasttext.vec": text(header=True, end=" "),
    "fasttext.vec.gz": gzip.compress(text(header=True, end=" ")),
    "glove.txt.gz": gzip.compress(text(header=False)),
    "word2vec.bin": binary(),
    "gensim.bin": binary(feed=b""),
    "word2vec.bin.gz": gzip.compress(binary()),
    "binary-without-suffix": binary(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_words_and_numbers(tmp_path: Path, name: str) -> None:
    """The format is told from the contents, and the order of the file is kept."""
    (tmp_path / name).write_bytes(FORMATS[name])
    vocabulary = read_file(tmp_path / name, wanted=(), frequent=100)
    assert vocabulary.name == name
    assert vocabulary.size == len(WORDS)
    assert list(vocabulary.rows) == WORDS
    np.testing.assert_array_equal(vocabulary.vectors, MATRIX)
    np.testing.assert_allclose(vocabulary.unit("cow"), MATRIX[1] / np.linalg.norm(MATRIX[1]), rtol=1e-6)


@pytest.mark.parametrize("name", ["glove.txt", "word2vec.bin"])
def test_a_wanted_word_is_found_behind_the_frequent_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only the frequent and the wanted rows are kept, with the rank that the word has in the whole file."""
    monkeypatch.setattr(vectors, "COMMON", 3)
    (tmp_path / name).write_bytes(FORMATS[name])
    vocabulary = read_file(tmp_path / name, wanted=("late", "absent"), frequent=2)
    assert list(vocabulary.rows) == ["the", "cow", "late"]
    assert vocabulary.rank("late") == 5
    assert vocabulary.spellings == ("the", "cow", "New_York")
    assert vocabulary.size == len(WORDS)
    words, rows = vocabulary.frequent(2)
    assert words == ["the", "cow"]
    np.testing.assert_array_equal(rows, MATRIX[:2])
    np.testing.assert_array_equal(vocabulary.vectors[2], MATRIX[5])


def test_the_first_of_repeated_words_counts(tmp_path: Path) -> None:
    """A second row of the same word is passed over, whatever its numbers."""
    (tmp_path / "twice.txt").write_bytes(b"cow 1 2\nsheep 3 4\ncow 5 6\n")
    vocabulary = read_file(tmp_path / "twice.txt", wanted=(), frequent=10)
    assert list(vocabulary.rows) == ["cow", "sheep"]
    np.testing.assert_array_equal(vocabulary.vectors, [[1, 2], [3, 4]])


def test_a_word_with_a_space_is_passed_over(tmp_path: Path) -> None:
    """GloVe 840B holds tokens such as ". . .", which cannot be a class name; the rows around them are read."""
    (tmp_path / "spaced.txt").write_bytes(b"cow 1 2\n. . . 3 4\nsheep 5 6\n")
    assert list(read_file(tmp_path / "spaced.txt", wanted=(), frequent=10).rows) == ["cow", "sheep"]


class Bomb:
    """Unpickling this calls a function, as a hostile file would."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("name", ["vectors.pkl", "vectors.txt", "vectors.bin.gz", "word2vec.model", "vectors.kv"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, name: str, protocol: int) -> None:
    """The contents decide, also inside gzip, and nothing in the file runs."""
    data = pickle.dumps(Bomb(), protocol=protocol)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=r"expected word2vec text or binary, GloVe text or fastText \.vec"):
        read_file(tmp_path / name, wanted=(), frequent=10)


def test_arrays_and_archives_are_refused_by_kind(tmp_path: Path) -> None:
    """The message names what the file is."""
    np.savez(tmp_path / "a.npz", MATRIX)
    np.save(tmp_path / "a.npy", MATRIX)
    (tmp_path / "cc.bin").write_bytes(b"\xba\x16\x4f\x2f\x0c\0\0\0")
    for name, kind in (("a.npz", "a zip or npz archive"), ("a.npy", "NumPy array"), ("cc.bin", "a fastText model")):
        with pytest.raises(DataError, match=kind):
            read_file(tmp_path / name, wanted=(), frequent=10)


DAMAGED = {
    "half.txt": (text(header=True)[:-90], r"line \d+ is not a word and 5 numbers"),
    "short.txt": (b"3 2\ncow 1 2\nsheep 3 4\n", "truncated, its first line promises 3 words, found 2"),
    "half.bin": (binary()[:-10], "truncated, its first line promises 6 words, found 5"),
    "half.bin.gz": (gzip.compress(binary())[:-12], "truncated or damaged"),
    "letters.txt": (b"cow 1 2\nsheep 3 x\n", "damaged"),
    "nan.txt": (b"cow 1 2\nsheep 3 nan\n", "'sheep' has a non-finite value"),
    "empty.txt": (b"", "not a word-vector file"),
    "header-alone.txt": (b"5 300\n", "truncated, its first line promises 5 words, found 0"),
    "prose.txt": (b"It is a truth universally acknowledged\n", "not a word-vector file"),
    "noise.bin": (b"9 300\n" + np.random.default_rng(1).bytes(9000).replace(b" ", b"_"), "not a word-vector file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_gets_one_clear_line(tmp_path: Path, name: str) -> None:
    """Truncation, garbage and non-finite values are found and named."""
    data, message = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_file(tmp_path / name, wanted=(), frequent=10)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_zero_vector_has_no_direction(tmp_path: Path) -> None:
    """A word whose vector is zero is an error where the word is needed."""
    (tmp_path / "zero.txt").write_bytes(b"cow 0 0\nsheep 3 4\n")
    vocabulary = read_file(tmp_path / "zero.txt", wanted=(), frequent=10)
    np.testing.assert_allclose(vocabulary.unit("sheep"), [0.6, 0.8])
    with pytest.raises(DataError, match="'cow' has a zero vector"):
        vocabulary.unit("cow")


def test_a_set_that_was_not_downloaded_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to run is in the message; every GloVe size comes from one archive."""
    monkeypatch.setenv("ZSSEG_CACHE", str(tmp_path))
    with pytest.raises(SettingError, match="run `zsseg fetch-data word2vec-google-news-300` first"):
        read_vocabulary("word2vec-google-news-300", wanted=(), frequent=10)
    with pytest.raises(SettingError, match="run `zsseg fetch-data glove-6b` first"):
        read_vocabulary("glove-6b-100d", wanted=(), frequent=10)


def test_a_downloaded_set_is_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in the cache is read, and the source keeps its own name."""
    monkeypatch.setenv("ZSSEG_CACHE", str(tmp_path))
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "glove.6B.100d.txt").write_bytes(text(header=False))
    assert read_vocabulary("glove-6b-100d", wanted=(), frequent=10).name == "glove-6b-100d"


def test_a_misspelt_source_is_named_with_the_known_ones() -> None:
    """Neither a file nor a known name: the message lists the names."""
    with pytest.raises(SettingError, match=r"glove-6b-50: neither a file nor one of glove-6b-50d.*did you mean"):
        read_vocabulary("glove-6b-50", wanted=(), frequent=10)


def test_the_wheel_is_memory_mapped_glove() -> None:
    """The default source has GloVe's 400,000 words in order, 50 numbers each, and is not copied to memory."""
    glove = read_vocabulary("glove-6b-50d", wanted=(), frequent=10)
    assert glove.size == 400_000
    assert glove.frequent(3)[0] == ["the", ",", "."]
    assert glove.vectors.shape == (400_000, 50)
    assert isinstance(glove.vectors, np.memmap)
    np.testing.assert_allclose(glove.vectors[0, :3], [0.418, 0.24968, -0.41242], atol=1e-6)
    assert float(glove.unit("cow") @ glove.unit("sheep")) > 0.7


def test_close_spellings_come_from_common_words() -> None:
    """A slip of the finger is met with the word that was meant."""
    glove = read_vocabulary("glove-6b-50d", wanted=(), frequent=10)
    assert "bicycle" in glove.close_spellings("bicylce")
    assert glove.close_spellings("qqqqqqqqqqqqqq") == ""
