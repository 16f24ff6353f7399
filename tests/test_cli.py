"""The command line as a user meets it: results, mistakes, exit codes, and files that stay as they were."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer.main
from PIL import Image
from tiny import NAMES, SIDE, write_folder, zsseg

from zsseg import __version__, artifacts
from zsseg.cli import app
from zsseg.images import encode_label_map

KINDS = ("data", "labels", "split", "model", "scores", "predictions")
TRAIN = ("train", "--frozen", "--epochs", "1")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make every artifact of a tiny data set once."""
    root = tmp_path_factory.mktemp("made")
    write_folder(root / "set")
    folder = root / "workspace"
    at = ("--workspace", folder)
    zsseg("fetch-data", "folder", "--root", root / "set", *at)
    zsseg("embed-labels", "--dim", "10", *at)
    zsseg("make-split", "--unseen", "cow,sheep", *at)
    zsseg(*TRAIN, *at)
    zsseg("eval", *at)
    zsseg("predict", root / "set" / "images" / "five.png", *at)
    return root


@pytest.fixture
def space(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that workspace, which is also what the commands work in."""
    folder = tmp_path / "workspace"
    shutil.copytree(made / "workspace", folder)
    shutil.copytree(made / "set", tmp_path / "set")
    monkeypatch.setenv("ZSSEG_WORKSPACE", str(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refuse(folder: Path, *words: object, says: tuple[object, ...], code: int = 1) -> str:
    """Run a command that must fail with one clear line on stderr and leave all files as they were."""
    before = contents(folder)
    result = zsseg(*words, "-q", expect=code)
    assert contents(folder) == before
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("zsseg: error: ")
    assert "Traceback" not in result.stderr
    for what in says:
        assert str(what) in lines[0]
    return lines[0]


def misuse(folder: Path, *words: object, says: str) -> None:
    """Run a command that must fail as a usage error and leave all files as they were."""
    before = contents(folder)
    result = zsseg(*words, expect=2)
    assert contents(folder) == before
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert says.lower() in " ".join(result.stderr.replace("│", " ").split()).lower()


# --- artifacts that are not what they should be -----------------------------------------------------------------------

NEEDS = [
    (("embed-labels",), "data", "fetch-data"),
    (("make-split",), "data", "fetch-data"),
    (TRAIN, "data", "fetch-data"),
    (("eval",), "model", "train"),
    (("eval",), "data", "fetch-data"),
    (("predict", "PHOTO"), "model", "train"),
]
FEEDS = [
    (("embed-labels",), "data"),
    (("make-split",), "data"),
    (TRAIN, "data"),
    (TRAIN, "labels"),
    (TRAIN, "split"),
    (("eval",), "model"),
    (("eval",), "data"),
    (("predict", "PHOTO"), "model"),
]


def of(words: tuple[str, ...], space: Path) -> list[object]:
    """Put a real photo in for the word PHOTO."""
    return [space.parent / "set/images/one.png" if word == "PHOTO" else word for word in words]


@pytest.mark.parametrize(("words", "kind", "maker"), NEEDS)
def test_a_missing_artifact_is_named_with_the_command_that_makes_it(
    space: Path, words: tuple[str, ...], kind: str, maker: str
) -> None:
    """Each command says which file is missing and what to run."""
    (space / f"{kind}.h5").unlink()
    refuse(space, *of(words, space), "--force", says=(space / f"{kind}.h5", "no such file", f"zsseg {maker}"))


@pytest.mark.parametrize(
    ("words", "kind", "given"), [(words, kind, given) for words, kind in FEEDS for given in KINDS if given != kind]
)
def test_swapped_artifacts(space: Path, words: tuple[str, ...], kind: str, given: str) -> None:
    """Every artifact given in another's place is refused with both kinds named."""
    wrong = space / f"{given}.h5"
    option = f"--{kind}"
    if words[0] == "train":
        shutil.copy(wrong, space / f"{kind}.h5")  # train's --model is the network, its files are named alike
        wrong = space / f"{kind}.h5"
        option = f"--{kind}"
    refuse(space, *of(words, space), option, wrong, "--force", says=(wrong, repr(given), repr(kind), f"--{kind}"))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path: Path) -> None:
    path.write_text("this is no HDF5 file\n")


def foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)


def newer(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 99


def flipped(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        digest = file.attrs["digest"]
        file.attrs["digest"] = ("0" if digest[0] != "0" else "1") + digest[1:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, "not a readable HDF5 file"),
        (text, "not a readable HDF5 file"),
        (foreign, "no finished zsseg artifact"),
        (newer, "schema 99"),
        (flipped, "do not match its digest"),
    ],
)
@pytest.mark.parametrize(
    ("words", "kind"), [(("make-split",), "data"), (TRAIN, "labels"), (TRAIN, "split"), (("eval",), "model")]
)
def test_damaged_artifacts(space: Path, words: tuple[str, ...], kind: str, damage: object, says: str) -> None:
    """A truncated, foreign, newer or altered file is refused with its name and the command that makes it anew."""
    path = space / f"{kind}.h5"
    damage(path)  # type: ignore[operator]
    maker = artifacts.MADE_BY[kind]
    refuse(space, *words, "--force", says=(path, says, f"zsseg {maker}"))


@pytest.mark.parametrize("damage", [truncated, text, foreign, newer])
def test_visualize_refuses_what_is_no_artifact(space: Path, damage: object) -> None:
    """Visualize, which takes any kind, still says what is wrong with a file."""
    damage(space / "scores.h5")  # type: ignore[operator]
    refuse(space, "visualize", space / "scores.h5", says=(space / "scores.h5",))


def test_visualize_refuses_a_split_without_its_data(space: Path) -> None:
    """A split alone cannot be drawn, and the message names the option."""
    (space / "data.h5").unlink()
    refuse(space, "visualize", space / "split.h5", says=("split.h5", "--data"))


def test_predict_names_the_argument_when_an_artifact_is_no_data(space: Path) -> None:
    """An artifact that holds no photos is refused, and no option is named that predict lacks."""
    line = refuse(space, "predict", space / "labels.h5", "--force", says=("labels.h5", "'labels'", "'data'"))
    assert "--data" not in line


# --- outputs ----------------------------------------------------------------------------------------------------------

OUTPUTS = [
    (("fetch-data", "folder", "--root", "SET"), "data"),
    (("embed-labels", "--dim", "5"), "labels"),
    (("make-split", "--unseen", "cow"), "split"),
    ((*TRAIN, "--seed", "5"), "model"),
    (("eval", "--seen-bias", "0.5"), "scores"),
    (("predict", "PHOTO", "--pictures", "NEW"), "predictions"),
]


@pytest.mark.parametrize(("words", "kind"), OUTPUTS)
def test_an_existing_output_needs_force(space: Path, words: tuple[str, ...], kind: str) -> None:
    """An output is kept without --force, and replaced by a whole new artifact with it."""
    places = {"SET": space.parent / "set", "PHOTO": space.parent / "set/images/one.png", "NEW": space.parent / "new"}
    filled = [places.get(word, word) for word in words]
    if kind == "data":
        (space / "data.h5").write_bytes((space / "split.h5").read_bytes())  # so that the new one differs
    refuse(space, *filled, says=(space / f"{kind}.h5", "exists already", "--force"))
    before = (space / f"{kind}.h5").read_bytes()
    zsseg(*filled, "--force")
    assert (space / f"{kind}.h5").read_bytes() != before
    artifacts.open_artifact(space / f"{kind}.h5", kind).close()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["data", "labels", "split", "model", "scores", "predictions"])
def test_visualize_draws_every_kind_and_refuses_to_draw_over(space: Path, kind: str) -> None:
    """Each kind gives pictures whose names stdout lists; a second run needs --force."""
    out = space / "pictures"
    result = zsseg("visualize", space / f"{kind}.h5")
    names = [Path(line) for line in result.stdout.splitlines()]
    assert names
    assert set(names) == set(out.iterdir())
    for name in names:
        with Image.open(name) as picture:
            assert min(picture.size) > 100
    refuse(space, "visualize", space / f"{kind}.h5", says=(names[0], "--force"))
    zsseg("visualize", space / f"{kind}.h5", "--force")


def test_an_output_folder_that_cannot_be_written(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without write permission is refused before any work is done."""
    closed = space.parent / "closed"
    closed.mkdir()
    if os.access(closed, os.W_OK):
        closed.chmod(0o500)
    if os.access(closed, os.W_OK):  # root may write everywhere
        permitted = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and permitted(path, mode))
    refuse(space, "make-split", "--out", closed / "split.h5", says=(closed, "cannot write", "--out"))
    refuse(space, "eval", "--out", closed / "scores.h5", says=(closed, "cannot write"))
    refuse(space, "eval", "--force", "--json", closed / "scores.json", says=(closed, "cannot write", "--json"))
    assert not list(closed.iterdir())


def test_an_output_below_a_file(space: Path) -> None:
    """A path that leads through a file cannot be made, and says so."""
    refuse(space, "make-split", "--out", space / "data.h5" / "split.h5", says=(space / "data.h5", "folder"))
    refuse(space, "predict", of(("PHOTO",), space)[0], "--force", "--pictures", space / "data.h5", says=("--pictures",))


def test_an_output_that_is_a_folder(space: Path) -> None:
    """A folder in the place of a file is refused even with --force."""
    refuse(space, "eval", "--force", "--out", space, says=(space, "is a folder"))


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_misspelt_class_gets_a_suggestion(space: Path) -> None:
    """Both make-split and train name the class that was meant."""
    refuse(space, "make-split", "--unseen", "cow,shep", "--force", says=("shep", "did you mean sheep?"))
    refuse(space, *TRAIN, "--unseen", "cow,shep", "--force", says=("shep", "did you mean sheep?"))


def test_a_misspelt_class_leaves_nothing_behind(space: Path) -> None:
    """A train that would have made labels.h5 and split.h5 makes neither when a class is unknown."""
    for kind in ("labels", "split", "model"):
        (space / f"{kind}.h5").unlink()
    refuse(space, *TRAIN, "--unseen", "cow,shep", says=("shep", "did you mean sheep?"))


@pytest.mark.parametrize("command", ["embed-labels", "train"])
def test_dim_zero_is_a_usage_error(space: Path, command: str) -> None:
    """`--dim 0` is refused with exit code 2."""
    misuse(space, command, "--dim", "0", "--force", says="'--dim'")


def test_more_dims_than_the_vectors_have(space: Path) -> None:
    """A --dim above what the vectors can give names the largest that works."""
    refuse(space, "embed-labels", "--dim", "60", "--force", says=("--dim 60", "--dim 50", "--vectors"))
    refuse(space, "embed-labels", "--dim", "20", "--fit-words", "10", "--force", says=("--dim 20", "--fit-words"))


def test_embed_labels_concatenates_and_reports(space: Path) -> None:
    """Two sources, --audit and --json: the table on stdout, the same numbers in the file."""
    folder = space.parent
    for name, seed in (("one.txt", 0), ("two.txt", 1)):
        rows = np.random.default_rng(seed).normal(size=(40, 8))
        words = [*NAMES, *(f"word{number}" for number in range(35))]
        lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, rows.tolist(), strict=True)]
        (folder / name).write_text("\n".join(lines) + "\n")
    options = ("--vectors", folder / "one.txt", "--vectors", folder / "two.txt", "--dim", "5", "--remove-top", "1")
    result = zsseg("embed-labels", *options, "--audit", "--json", folder / "audit.json", "--force")
    shown = " ".join(result.stdout.split())  # where lines are broken depends on the length of the folder's name
    assert "one.txt and two.txt" in shown
    assert "rank agreement" in shown
    report = json.loads((folder / "audit.json").read_text())
    assert sum(report["occurrence"]["1"].values()) == len(report["names"])
    assert ["one.txt", "two.txt"] in [row["of"] for row in report["agreement"]]
    printed = zsseg("embed-labels", *options, "--json", "-", "--force")
    assert json.loads(printed.stdout) == report


def test_embed_labels_refuses_what_does_not_fit(space: Path) -> None:
    """Options that contradict each other stop it with one line and leave labels.h5 alone."""
    refuse(space, "embed-labels", "--reduce", "none", "--dim", "50", "--force", says=("--dim 50", "--reduce none"))
    refuse(space, "embed-labels", "--retrofit", "--wordnet", space, "--force", says=("--wordnet", "data.noun"))
    refuse(space, "embed-labels", "--text-weights", "x.pt", "--force", says=("--text-weights", "clip:MODEL"))
    encoder = ("--vectors", "all-minilm-l6-v2", "--prompt", "a photo")
    refuse(space, "embed-labels", *encoder, "--force", says=("--prompt", "{}"))


def test_an_unknown_preset(space: Path) -> None:
    """An unknown preset lists the known ones; a known one that the data cannot meet names the lacking classes."""
    refuse(space, "make-split", "--preset", "zs3-3", "--force", says=("zs3-3", "zs3-2", "spnet"))
    refuse(space, "make-split", "--preset", "spnet", "--force", says=("spnet", "sofa", "--unseen"))


@pytest.mark.parametrize(
    "pair",
    [
        ("--unseen", "cow", "--preset", "spnet"),
        ("--unseen", "cow", "--random", "1"),
        ("--random", "1", "--preset", "spnet"),
        ("--stratified", "1", "--random", "1"),
    ],
)
def test_two_ways_to_choose_the_unseen_classes(space: Path, pair: tuple[str, ...]) -> None:
    """Only one of --unseen, --preset, --random and --stratified may choose."""
    refuse(space, "make-split", *pair, "--force", says=(pair[0], pair[2]))


def test_make_split_audits_with_the_labels_at_hand(space: Path) -> None:
    """The audit names the nearest seen class by labels.h5; its numbers are those of embed-labels."""
    table = zsseg("make-split", "--unseen", "cow", "--audit", "--force").stdout
    assert "verdict" in table
    audit = json.loads(zsseg("make-split", "--unseen", "cow", "--json", "-", "--force").stdout)["audit"]
    with artifacts.open_artifact(space / "labels.h5", "labels") as labels:
        vectors = labels.array("vectors")
    cosines = {name: float(vectors[3] @ vectors[NAMES.index(name)]) for name in ("cat", "dog", "sheep")}  # unit length
    assert audit[0]["nearest"] == max(cosines, key=cosines.__getitem__)
    assert audit[0]["cosine"] == pytest.approx(max(cosines.values()), abs=1e-5)
    assert audit[0]["hidden_images"] == 1
    assert f"{audit[0]['nearest']} {audit[0]['cosine']:.2f}" in table


def test_make_split_audits_with_glove_where_there_are_no_labels(space: Path) -> None:
    """The default vectors serve, and no labels.h5 appears; --labels that name a missing file are an error."""
    (space / "labels.h5").unlink()
    before = set(contents(space))
    result = zsseg("make-split", "--stratified", "1", "--seed", "2", "--audit", "--force")
    assert "glove-6b-50d" in result.stderr
    assert set(contents(space)) == before
    missing = space / "none.h5"
    refuse(space, "make-split", "--unseen", "cow", "--audit", "--labels", missing, "--force", says=(missing, "no such"))
    refuse(space, "make-split", "--unseen", "cow", "--labels", missing, "--force", says=("--labels", "--audit"))


def test_an_audit_that_is_refused_leaves_the_split_as_it_was(space: Path) -> None:
    """Without unseen classes, over an existing split or report, nothing is written."""
    refuse(space, "make-split", "--audit", "--force", says=("--audit", "--unseen"))
    refuse(space, "make-split", "--unseen", "cow", "--audit", says=("split.h5", "exists already", "--force"))
    (space / "audit.json").write_text("mine")
    (space / "split.h5").unlink()
    refuse(space, "make-split", "--unseen", "cow", "--json", space / "audit.json", says=("audit.json", "--force"))
    zsseg("make-split", "--unseen", "cow", "--json", space / "audit.json", "--force")
    assert json.loads((space / "audit.json").read_text())["unseen"] == ["cow"]


def test_usage_errors(space: Path) -> None:
    """Unknown options, commands and choices, and missing arguments, exit with 2."""
    misuse(space, "eval", "--nosuch", says="--nosuch")
    misuse(space, "evaluate", says="evaluate")
    misuse(space, "train", "--loss", "dice", says="softmax")
    misuse(space, "train", "--model", space / "labels.h5", says="fcn32s")
    misuse(space, "train", "--epochs", "many", says="--epochs")
    misuse(space, "predict", says="IMAGE")
    misuse(space, "visualize", says="ARTIFACT")


def test_an_unknown_source(space: Path) -> None:
    """A misspelt source lists those that there are."""
    refuse(space, "fetch-data", "voc2021", "--force", says=("voc2021", "voc2012"))
    refuse(space, "fetch-data", "folder", "--force", says=("--root",))
    refuse(space, "fetch-data", "folder", "--root", space / "none", "--force", says=(space / "none", "no such folder"))


# --- artifacts that do not fit each other -----------------------------------------------------------------------------


def test_a_split_of_other_data(space: Path) -> None:
    """A split that was made from another data artifact is refused by train, which says how to make it again."""
    zsseg("fetch-data", "folder", "--root", space.parent / "set", "--limit", "4", "--force")
    refuse(space, *TRAIN, "--force", says=(space / "split.h5", space / "data.h5", "zsseg make-split --force"))


def test_labels_with_other_names(space: Path) -> None:
    """Labels of other classes are refused by train with the first difference named."""
    names = ("background", "cat", "horse", "cow", "sheep")
    write_folder(space.parent / "other", names=names)
    zsseg("fetch-data", "folder", "--root", space.parent / "other", "--out", space.parent / "other.h5")
    zsseg("embed-labels", "--data", space.parent / "other.h5", "--dim", "10", "--force")
    refuse(space, *TRAIN, "--force", says=("labels.h5", "'horse'", "'dog'"))


def test_eval_on_data_with_other_names(space: Path) -> None:
    """A model is not scored on data of other classes."""
    write_folder(space.parent / "other", names=(*NAMES, "horse"))
    zsseg("fetch-data", "folder", "--root", space.parent / "other", "--out", space.parent / "other.h5")
    refuse(space, "eval", "--data", space.parent / "other.h5", "--force", says=("5 and 6 classes", "other.h5"))


def test_train_flags_that_disagree_with_existing_artifacts(space: Path) -> None:
    """A --dim or --unseen other than what labels.h5 and split.h5 hold stops train with both values named."""
    refuse(
        space, *TRAIN, "--force", "--dim", "20", says=("labels.h5", "10", "20", "zsseg embed-labels --dim 20 --force")
    )
    line = refuse(space, *TRAIN, "--force", "--unseen", "dog", says=("split.h5", "cow,sheep", "dog"))
    assert "zsseg make-split --unseen dog --force" in line


def test_train_flags_that_agree_with_existing_artifacts(space: Path) -> None:
    """The same values, in another order or letter case, are no disagreement."""
    zsseg(*TRAIN, "--dim", "10", "--unseen", "Sheep, cow", "--force")


# --- train and predict as in the README -------------------------------------------------------------------------------


def test_train_makes_labels_and_split_and_says_so(space: Path) -> None:
    """`zsseg train --dim 50 --unseen cow,sheep` needs data.h5 alone."""
    for kind in ("labels", "split", "model"):
        (space / f"{kind}.h5").unlink()
    result = zsseg(*TRAIN, "--dim", "50", "--unseen", "cow,sheep")
    with artifacts.open_artifact(space / "labels.h5", "labels") as labels:
        assert labels.array("vectors").shape == (len(NAMES), 50)
    with artifacts.open_artifact(space / "split.h5", "split") as split:
        assert split.array("unseen").tolist() == [3, 4]
    for word in ("labels.h5", "--dim 50", "split.h5", "--unseen cow,sheep"):
        assert word in result.stderr
        assert word not in result.stdout
    assert "model.h5" in result.stdout


def test_train_in_an_empty_workspace_says_what_to_run(tmp_path: Path) -> None:
    """Without data.h5 the one line on stderr is the error, with the fetch-data line; no other file is spoken of."""
    result = zsseg("train", "--dim", "50", "--unseen", "cow,sheep", "--workspace", tmp_path, expect=1)
    assert result.stderr.count("\n") == 1
    assert "data.h5" in result.stderr
    assert "`zsseg fetch-data" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_softmax_model_through_all_steps(space: Path) -> None:
    """The baseline needs no labels.h5, and never predicts an unseen class."""
    (space / "labels.h5").unlink()
    zsseg(*TRAIN, "--loss", "softmax", "--force")
    assert not (space / "labels.h5").exists()
    scores = json.loads(zsseg("eval", "--force", "--json", "-").stdout)
    assert scores["generalized"]["unseen_miou"] == 0


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_quiet_leaves_stderr_empty(space: Path, command: str) -> None:
    """`-q` silences notes and bars, not the result."""
    photo = of(("PHOTO",), space) if command == "predict" else []
    result = zsseg(command, *photo, "-q", "--force")
    assert result.stderr == ""
    assert f"{command}ions.h5" in result.stdout or "scores.h5" in result.stdout


def test_quiet_training_leaves_stderr_empty(space: Path) -> None:
    """`-q` silences the notes of train, too, which makes what is missing without a word."""
    (space / "labels.h5").unlink()
    result = zsseg(*TRAIN, "--force", "-q")
    assert result.stderr == ""
    assert "labels.h5" not in result.stdout


def test_the_workspace_option_beats_the_environment(space: Path, tmp_path: Path) -> None:
    """ZSSEG_WORKSPACE names the workspace, --workspace overrides it."""
    zsseg("make-split", "--unseen", "dog", "--force")
    with artifacts.open_artifact(space / "split.h5", "split") as split:
        assert split.array("unseen").tolist() == [2]
    refuse(space, "make-split", "--workspace", tmp_path / "elsewhere", says=(tmp_path / "elsewhere" / "data.h5",))


def test_version() -> None:
    """`--version` prints the version to stdout and exits with 0."""
    assert zsseg("--version").stdout == f"zsseg {__version__}\n"


def test_every_option_has_help() -> None:
    """No command, argument or option is left without a help text."""
    group = typer.main.get_command(app)
    assert sorted(group.commands) == [
        "embed-labels", "eval", "export", "fetch-data", "info", "make-split", "predict", "sweep", "train", "visualize",
    ]  # fmt: skip
    bare = [name for name, command in group.commands.items() if not command.help]
    bare += [
        f"{name} {each.name}" for name, command in group.commands.items() for each in command.params if not each.help
    ]
    bare += [str(each.name) for each in group.params if not getattr(each, "help", None)]
    assert bare == []


def test_python_m_zsseg_and_the_exit_code_of_a_process(space: Path) -> None:
    """As a process, too, a mistake is one line on stderr and exit code 1."""
    command = [sys.executable, "-m", "zsseg", "make-split"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("zsseg: error: ")
    assert result.stderr.count("\n") == 1


# --- eval -------------------------------------------------------------------------------------------------------------


def test_json_to_stdout_is_json_alone(space: Path) -> None:
    """`--json -` gives a document that a machine can read, and nothing else on stdout."""
    scores = json.loads(zsseg("eval", "--json", "-", "--force").stdout)
    assert scores["unseen"] == ["cow", "sheep"]
    assert scores["images"] == 2
    assert scores["images_per_class"] == {"background": 2, "cat": 2, "dog": 1, "cow": 2, "sheep": 1}
    assert 0 <= scores["generalized"]["miou"] <= 1


def test_json_to_a_file(space: Path) -> None:
    """`--json FILE` writes the same document, beside the table; an existing file needs --force."""
    file = space / "scores.json"
    table = zsseg("eval", "--json", file, "--force").stdout
    assert "harmonic mIoU" in table
    assert json.loads(file.read_text()) == json.loads(zsseg("eval", "--json", "-", "--force").stdout)
    (space / "scores.h5").unlink()
    refuse(space, "eval", "--json", file, says=(file, "exists already", "--force"))
    zsseg("eval", "--json", file, "--force")


def test_json_into_a_folder_that_is_missing(space: Path) -> None:
    """A JSON file that cannot be written is refused before the work is done."""
    refuse(space, "eval", "--force", "--json", space / "none" / "scores.json", says=(space / "none", "--json"))
    refuse(space, "eval", "--force", "--json", space, says=(space, "--json"))


def test_eval_of_a_partition_without_photos(space: Path) -> None:
    """An empty partition names the one to take instead."""
    names = ("images", "masks", "classes.txt", "train.txt")
    for name in names:
        source, target = space.parent / "set" / name, space.parent / "trainonly" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    zsseg("fetch-data", "folder", "--root", space.parent / "trainonly", "--out", space.parent / "t.h5")
    refuse(space, "eval", "--data", space.parent / "t.h5", "--force", says=("t.h5", "--partition train"))
    zsseg("eval", "--data", space.parent / "t.h5", "--partition", "train", "--force")


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_refuses_what_is_no_image(space: Path) -> None:
    """A text file, a truncated photo and a missing file are named; nothing is written."""
    notes = space.parent / "notes.jpg"
    notes.write_text("no image")
    half = space.parent / "half.png"
    half.write_bytes(of(("PHOTO",), space)[0].read_bytes()[:500])  # type: ignore[attr-defined]
    for bad in (notes, half):
        refuse(space, "predict", bad, "--force", says=(bad, "--skip-bad"))
    refuse(space, "predict", space / "none.jpg", "--force", says=(space / "none.jpg", "no such file"))


def test_predict_with_one_bad_file_among_good_ones(space: Path) -> None:
    """A bad photo after a good one changes no file; then --skip-bad, as the message says, leaves it out."""
    shutil.rmtree(space / "predictions")
    (space / "predictions.h5").unlink()
    photos = space.parent / "photos"
    shutil.copytree(space.parent / "set" / "images", photos)
    (photos / "zebra.jpg").write_text("no image")
    refuse(space, "predict", photos, says=(photos / "zebra.jpg", "--skip-bad"))
    result = zsseg("predict", photos, "--skip-bad")
    assert "zebra.jpg" in result.stdout
    with artifacts.open_artifact(space / "predictions.h5", "predictions") as predictions:
        assert predictions.strings("ids") == sorted(path.stem for path in photos.glob("*.png"))


def test_predict_in_a_folder_without_images(space: Path) -> None:
    """An empty folder and one with other files only are named."""
    (space.parent / "empty").mkdir()
    refuse(space, "predict", space.parent / "empty", "--force", says=(space.parent / "empty", "no image"))
    (space.parent / "empty" / "notes.txt").write_text("no image")
    refuse(space, "predict", space.parent / "empty", "--force", says=(space.parent / "empty", "no image"))


def test_predict_refuses_to_overwrite_a_photo(space: Path) -> None:
    """Pictures beside their photos would overwrite them, even with --force: refused."""
    photos = space.parent / "set" / "images"
    before = contents(photos)
    refuse(space, "predict", photos, "--pictures", photos, "--force", says=(photos / "five.png", "--pictures"))
    assert contents(photos) == before


def test_predict_refuses_pictures_that_exist(space: Path) -> None:
    """A picture that exists already needs --force, or another folder."""
    (space / "predictions.h5").unlink()
    photo = space.parent / "set" / "images" / "five.png"
    refuse(space, "predict", photo, says=(space / "predictions" / "five.png", "exists already", "--force"))
    zsseg("predict", photo, "--pictures", space / "elsewhere")


def test_predict_two_files_of_one_stem(space: Path) -> None:
    """`a.png` and `a.jpg` get pictures and rows of their own."""
    photos = space.parent / "twins"
    photos.mkdir()
    Image.new("RGB", (40, 30)).save(photos / "a.png")
    Image.new("RGB", (50, 20)).save(photos / "a.jpg")
    zsseg("predict", photos, "--force")
    with artifacts.open_artifact(space / "predictions.h5", "predictions") as predictions:
        ids, sources = predictions.strings("ids"), predictions.strings("sources")
    assert len(set(ids)) == 2
    assert sources == ["a.jpg", "a.png"]
    assert sizes(space / "predictions", ids) == [(50, 20), (40, 30)]


def test_predict_a_photo_named_like_another_ones_overlay(space: Path) -> None:
    """`a.png` and `a_overlay.png` do not overwrite each other's pictures."""
    photos = space.parent / "overlays"
    photos.mkdir()
    Image.new("RGB", (40, 30)).save(photos / "a.png")
    Image.new("RGB", (50, 20)).save(photos / "a_overlay.png")
    pictures = space / "fresh"
    zsseg("predict", photos, "--force", "--pictures", pictures)
    assert len(list(pictures.iterdir())) == 4
    with artifacts.open_artifact(space / "predictions.h5", "predictions") as predictions:
        assert sizes(pictures, predictions.strings("ids")) == [(40, 30), (50, 20)]


def sizes(folder: Path, ids: list[str]) -> list[tuple[int, int]]:
    """Return the sizes of the label map PNGs, (width, height), and check that each is a palette picture."""
    found = []
    for name in ids:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.mode == "P"
            found.append(picture.size)
    return found


def test_predict_takes_every_kind_of_image(space: Path) -> None:
    """Turned, grey, transparent, CMYK, 16-bit, tiny and long images all get a label map of their upright size."""
    photos = space.parent / "kinds"
    photos.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 70, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    photo.save(photos / "turned.jpg", exif=exif)
    photo.convert("L").save(photos / "grey.png")
    photo.convert("LA").save(photos / "greyalpha.png")
    photo.convert("RGBA").save(photos / "alpha.png")
    photo.convert("CMYK").save(photos / "cmyk.jpg")
    photo.convert("P").save(photos / "palette.gif")
    photo.convert("1").save(photos / "bits.png")
    Image.fromarray(rng.integers(0, 65536, (48, 70), dtype=np.uint16)).save(photos / "deep.png")
    Image.new("RGB", (1, 1)).save(photos / "tiny.png")
    Image.new("RGB", (3, 2000)).save(photos / "tall.png")
    Image.new("RGB", (2000, 3)).save(photos / "wide.png")
    expected = {
        "turned": (48, 70), "tiny": (1, 1), "tall": (3, 2000), "wide": (2000, 3),
    }  # fmt: skip
    zsseg("predict", photos, "--force")
    with artifacts.open_artifact(space / "predictions.h5", "predictions") as predictions:
        ids = predictions.strings("ids")
        areas = predictions.array("areas")
        maps = [predictions.bytes_at("label_maps", index) for index in range(len(ids))]
    assert len(ids) == 11
    assert sizes(space / "predictions", ids) == [expected.get(name, (70, 48)) for name in ids]
    assert areas.sum(axis=1).tolist() == [width * height for width, height in sizes(space / "predictions", ids)]
    for name, encoded in zip(ids, maps, strict=True):
        with Image.open(space / "predictions" / f"{name}.png") as picture:
            assert encode_label_map(np.array(picture)) == encoded


def test_predict_of_a_data_artifact_and_its_picture_beside_truth(space: Path) -> None:
    """A data.h5 stands for its validation photos, and visualize then shows the truth."""
    zsseg("predict", space / "data.h5", "--force")
    with artifacts.open_artifact(space / "predictions.h5", "predictions") as predictions:
        assert predictions.strings("ids") == ["five", "six"]
        assert (predictions.array("areas").sum(axis=1) == SIDE * SIDE).all()
    zsseg("visualize", space / "predictions.h5")
    assert (space / "pictures" / "predictions.png").stat().st_size > 0


def test_predict_of_a_data_artifact_without_validation_photos(space: Path) -> None:
    """A data artifact without validation photos cannot be predicted, and the line says so."""
    root = space.parent / "set"
    (root / "val.txt").unlink()
    zsseg("fetch-data", "folder", "--root", root, "--out", space.parent / "t.h5")
    refuse(space, "predict", space.parent / "t.h5", "--force", says=("t.h5",))
