"""The documents hold to the command line: every command and option that they show exists."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from PIL import Image
from tiny import write_folder, zsseg

from zsseg.classes import UNSEEN_PRESETS
from zsseg.cli import app
from zsseg.config import (
    CalibrationName,
    Device,
    LossName,
    ModelName,
    Normalize,
    Partition,
    Policy,
    Precision,
    Protocol,
    Weighting,
)

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
STEPS = set(COMMANDS) - {"info", "export", "sweep"}  # the seven that stitch
SPLIT_AT = ("&&", "||", "|", ";", "&", ">", ">>", "2>", "<", ")", "(")
CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("train", "--model"): get_args(ModelName), ("train", "--loss"): get_args(LossName),
    ("train", "--weighting"): get_args(Weighting), ("train", "--precision"): get_args(Precision),
    ("train", "--device"): get_args(Device), ("make-split", "--policy"): get_args(Policy),
    ("make-split", "--preset"): tuple(UNSEEN_PRESETS), ("embed-labels", "--normalize"): get_args(Normalize),
    ("eval", "--partition"): get_args(Partition), ("eval", "--protocol"): get_args(Protocol),
    ("train", "--calibration"): get_args(CalibrationName),
}  # fmt: skip
DOCUMENTS = ("README.md", "examples/quickstart.sh", "docs/artifacts.md", "docs/tutorial.md")
GENERATED = {"reference.md"}  # pages that are made when the site is built
SITE = ROOT / "mkdocs.yml"
ENTRY = re.compile(r"(?:^|[\s`$(/;&|])(?:python -m )?zsseg(?=((?:[ \t]+[^`\n]*)?))")


def files() -> list[str]:
    """Return the documents and scripts that may show commands."""
    found = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.sh"), ROOT / "Makefile"]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.is_file())


def shown_code(path: Path) -> Iterator[str]:
    """Yield the lines of code: all of a script, the code blocks and inline code of a Markdown file."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix != ".md":
        yield from (line for line in text.splitlines() if not line.lstrip().startswith("#"))
        return
    blocks = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for block in blocks.findall(text):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", blocks.sub("", text))


def command_lines(path: Path) -> list[list[str]]:
    """Return the words after `zsseg` of every command line that a file shows."""
    found = []
    for line in shown_code(path):
        for match in ENTRY.finditer(line):
            words = split(match.group(1))
            if words and (words[0] in COMMANDS or words[0].startswith("-") or looks_like_a_command(words, line)):
                found.append(words)
    return found


def looks_like_a_command(words: list[str], line: str) -> bool:
    """Tell `zsseg fetchdata ...` at the start of a line from a path or prose that merely holds the name."""
    start = line.strip().removeprefix("$ ").removeprefix("python -m ")
    return start.startswith("zsseg ") and re.fullmatch(r"[a-z-]+", words[0]) is not None


def split(text: str) -> list[str]:
    """Split a command as the shell would, up to its end: a comment, a pipe, a redirection."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an apostrophe in a comment
        words = text.split()
    for index, word in enumerate(words):
        if word in SPLIT_AT or word.startswith("#"):
            return words[:index]
    return words


def options_of(command: Any) -> dict[str, Any]:
    return {
        name: each for each in command.params for name in (*each.opts, *each.secondary_opts) if name.startswith("-")
    }


def problem(words: list[str]) -> str | None:
    """Return what is wrong with a command line, or None."""
    if words[0] in ("--help", "-h", "--version", "--install-completion", "--show-completion"):
        return None
    if words[0] not in COMMANDS:
        return f"no command {words[0]!r}"
    known = {**options_of(COMMANDS[words[0]]), "--help": None, "-h": None}
    for word, following in pairwise([*words[1:], ""]):
        name, _, value = word.partition("=")
        if not name.startswith("-") or name == "-" or re.fullmatch(r"-[\d.]+", name):
            continue
        if name not in known:
            return f"{words[0]} has no option {name!r}"
        choices = CHOICES.get((words[0], name), ())
        given = value or following
        if choices and re.fullmatch(r"[a-z0-9-]+", given) and given not in choices:
            return f"{words[0]} {name} takes no {given!r}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_documents_are_there(document: str) -> None:
    """What the README promises and the demo runs exists."""
    assert (ROOT / document).is_file()


@pytest.mark.parametrize("document", files())
def test_every_command_shown_exists(document: str) -> None:
    """No document shows a command, an option or a choice that zsseg does not have."""
    wrong = {" ".join(words): problem(words) for words in command_lines(ROOT / document)}
    assert {line: what for line, what in wrong.items() if what} == {}


def test_the_reader_of_documents_finds_mistakes(tmp_path: Path) -> None:
    """The check above is not blind: it sees commands in blocks and in prose, and each kind of mistake."""
    page = tmp_path / "page.md"
    page.write_text(
        "Run `zsseg train --dims 50`, never `zsseg.load`.\n\n```sh\n$ zsseg fetchdata sample\n"
        "zsseg train --loss dice && zsseg eval \\\n  --json - > s.json\n"
        'zsseg predict "a b.jpg" --seen-bias -0.5 | cat  # it\'s fine\n```\n'
    )
    found = {" ".join(words): problem(words) for words in command_lines(page)}
    assert found["train --dims 50"] == "train has no option '--dims'"
    assert found["fetchdata sample"] == "no command 'fetchdata'"
    assert found["train --loss dice"] == "train --loss takes no 'dice'"
    assert found["eval --json -"] is None
    assert [what for line, what in found.items() if line.startswith("predict")] == [None]
    assert len(found) == 5


def test_the_readme_shows_all_seven_commands() -> None:
    """A newcomer finds each command in the README as it is typed."""
    shown = {words[0] for words in command_lines(ROOT / "README.md")}
    assert shown >= STEPS


def test_the_quickstart_runs_all_seven_commands() -> None:
    """The demo stitches all seven steps."""
    shown = {words[0] for words in command_lines(ROOT / "examples" / "quickstart.sh")}
    assert shown >= STEPS


@pytest.mark.parametrize("document", [name for name in files() if name.endswith(".md")])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    """No document links to a file of the repository that is not there."""
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    targets += re.findall(r"src=\"([^\"]+)\"", path.read_text(encoding="utf-8"))
    inside = [each for each in targets if not re.match(r"[a-z]+:", each) and each not in GENERATED]
    missing = [each for each in inside if not (path.parent / each).exists()]
    assert missing == []


@pytest.mark.parametrize("document", ["README.md", "docs/training.md", "docs/artifacts.md"])
def test_no_placeholder_is_left(document: str) -> None:
    """A document names its figures; none still waits to be filled in."""
    assert re.findall(r"@[A-Z]+@", (ROOT / document).read_text(encoding="utf-8")) == []


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the tutorial runs in the folder of a new user, one after the other, all eight of them."""
    write_folder(tmp_path / "photos")
    (tmp_path / "work").mkdir()
    with Image.open(tmp_path / "photos" / "images" / "five.png") as photo:
        photo.save(tmp_path / "work" / "img.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()
    for line in lines:
        zsseg(*(os.path.expanduser(word) for word in shlex.split(line)[1:]))  # noqa: PTH111  # of any word, as the shell
    assert {shlex.split(line)[1] for line in lines} == STEPS | {"info"}
    assert {path.name for path in Path("predictions").iterdir()} == {"img.png", "img_overlay.png"}
    assert Path("report.html").stat().st_size > 100_000


def test_the_reference_has_every_option() -> None:
    """The generated page names every command, argument, option, choice and default that the command line has."""
    rows = [line.split(" | ") for line in _reference().splitlines() if line.startswith("| `")]
    page = " ".join(row[0] for row in rows)
    for command in COMMANDS.values():
        for name in options_of(command):
            assert re.search(rf"[`\s]{name}[`,\s]", page), name
    assert page.count("--force") == sum("--force" in options_of(command) for command in COMMANDS.values())
    facts = {row[0].strip("| `"): (row[1], row[2].strip(" |")) for row in rows}
    assert facts["--regions <int range>"] == ("Regions of a photo at most; with --vocabulary.", "8; 1 to 255")
    assert facts["--workspace <path>"][1] == "$ZSSEG\\_WORKSPACE; current folder"
    assert facts["--fit-words <int range>"][1] == "20,000; 2,000 of a sentence encoder; at least 1"
    assert facts["--loss <" + "|".join(get_args(LossName)) + ">"][1] == "mse"


def test_the_site_holds_every_page() -> None:
    """Each page of docs/ is in the site's navigation, and each page there exists."""
    pages = re.findall(r": ([\w-]+\.md)$", SITE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(pages) == sorted({path.name for path in ROOT.glob("docs/*.md")} | GENERATED)


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """`make docs` builds: no dead link, no dead anchor, no page left out; and no page loads anything from elsewhere."""
    pytest.importorskip("material", reason="the site needs mkdocs-material: pip install zsseg[docs]")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(SITE), "--site-dir", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")]
    assert len(pages) == len(list(ROOT.glob("docs/*.md"))) + len(GENERATED) + 1  # and 404.html
    loaded = {
        url for page in pages for url in re.findall(r"<(?:script|link|img)[^>]* (?:src|href)=\"(http[^\"]*)", page)
    }
    assert loaded == set()


def _reference() -> str:
    specification = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    page: str = module.reference()
    return page
