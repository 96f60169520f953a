"""The pages of the documentation, taken apart: blocks of code, links, headings, inline code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from precisionlab.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
_FENCE = re.compile(
    r"^(?P<mark>(?:<!-- (?P<what>run|file: \S+) -->\n)?)```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_OPERATORS = frozenset({"|", "||", "&&", ">", ">>", "2>"})


@dataclass(frozen=True)
class Block:
    """A block of code: `kind` is its language, `what` says `run`, or `file: NAME`, where it is marked so."""

    page: Path
    kind: str
    what: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, and those that are set in by four spaces."""
    text = page.read_text(encoding="utf-8")
    fenced = [Block(page, m["kind"], m["what"] or "", m["text"]) for m in _FENCE.finditer(text)]
    rest = _FENCE.sub("", text)
    return [*fenced, *(Block(page, "", "", m[0]) for m in re.finditer(r"(?:^ {4}\S.*\n)+", rest, re.M))]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """What the page links to within the project, pictures too."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    return [target for target in _LINK.findall(text) if not re.match(r"[a-z]+:", target)]


def inline(page: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings that a link reaches both in the repository and on the site."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.M):
        plain = re.sub(r"[`*]", "", heading)
        here = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower())
        found |= {here} & {site}
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `precisionlab …` line, up to a pipe or the like."""
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"\s*(?:- run: )?(?:\S*/)?precisionlab (?=[a-z-])(.*)", line)
        if match:
            yield list(_until_operator(shlex.split(match[1], comments=True)))


def _until_operator(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word in _OPERATORS:
            return
        yield word


def command_of(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and what is left for it. Raises KeyError where there is none."""
    found: click.Command = cli
    rest = list(words)
    while isinstance(found, click.Group):
        found = found.commands[rest.pop(0)]
    return found, rest


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The options, as click reads them. Raises click.UsageError where one is not known or has no such value."""
    found, rest = command_of(words)
    return found.make_context(str(found.name), rest, parent=click.Context(cli)).params


def options(command: click.Command = cli) -> set[str]:
    """The options of a command, and of those below it."""
    own = {name for parameter in command.params for name in parameter.opts} | {"--help", "--version", "-h"}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*map(options, below))
