"""Write the command reference from the command line itself: a hook of mkdocs, and a script.

    python docs/reference.py > reference.md

The page is made anew whenever the site is built and is not kept in the repository, so that no option can be missing
from it and no default be out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from zsseg.cli import app

PAGE = "reference.md"
OPENING = """\
# Commands

Every command with all its options, written from the command line itself when this site was built. `zsseg COMMAND
--help` shows the same in a terminal, `zsseg --install-completion` makes the shell complete commands and options.

Exit codes: 0; 1 for an error, which is one line on stderr; 2 for wrong usage; 130 when interrupted. stdout carries the
result, stderr everything else.
"""
# how typer ends a help text: "[env var: NAME; default: (text); 1<=x<=9; required]", each part where there is one
FACTS = re.compile(
    r"\s*\[(?:env var: (?P<variable>\w+)(?:; )?)?(?:default: (?P<default>\(.*\)|[^;]*)(?:; )?)?"
    r"(?P<range>[\d.]*(?:<=)?x(?:[<>]=[\d.]+)?)?(?:; )?(?P<required>required)?\]$"
)


def reference() -> str:
    """Return the page: the options of `zsseg` itself, then those of each command, in the order of `zsseg --help`."""
    group: Any = typer.main.get_command(app)
    root = group.context_class(group, info_name="zsseg")
    parts = [OPENING, "## Every command\n", *_table(group, root)]
    for name, command in group.commands.items():
        parts += _command(command, command.context_class(command, info_name=name, parent=root))
    return "\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Give mkdocs the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=reference()))
    return files


def _command(command: Any, context: Any) -> Iterator[str]:
    """Yield the lines of one command."""
    yield f"\n## {context.info_name}\n"
    yield f"{_escaped(command.help)}\n"
    examples = [line for line in (command.epilog or "").splitlines() if line and not line.endswith(":")]
    yield "\n".join(["```sh", *examples, "```\n"])
    yield f"`{command.get_usage(context).removeprefix('Usage: ')}`\n"
    yield from _table(command, context)


def _table(command: Any, context: Any) -> Iterator[str]:
    """Yield a table of arguments and options."""
    yield "| option | what it does | default |"
    yield "|---|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            text, facts = _divided(record[1])
            yield f"| `{record[0]}` | {_cell(_escaped(text))} | {_cell(_escaped(facts))} |"


def _divided(text: str) -> tuple[str, str]:
    """Divide "Of the pictures.  [default: png]" into what an option does and its default."""
    found = FACTS.search(text)
    if found is None:
        return text, ""
    default, least_and_most = found["default"] or "", found["range"] or ""
    facts = [
        found["variable"] and f"${found['variable']}",
        default[1:-1] if default.startswith("(") else default,
        re.sub(r"^([\d.]+)<=x<=([\d.]+)$", r"\1 to \2", least_and_most).replace("x>=", "at least "),
        found["required"],
    ]
    return text[: found.start()], "; ".join(filter(None, facts))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    """Keep a help text's signs from being read as Markdown or HTML, but link the pages that it names."""
    plain = re.sub(r"([*_<>\[\]])", r"\\\1", text)
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](\1.md)", plain)


if __name__ == "__main__":
    sys.stdout.write(reference())
