"""What a terminal shows, at two widths, as pictures to be looked at; no line of it is wider than the terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Opened, chromium, needs_browser
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

from precisionlab.cli import cli
from precisionlab.cli.summary import print_summary
from precisionlab.jobs.result import SweepResult

pytestmark = [needs_browser, pytest.mark.thorough]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def photograph(browser: Any, text: str, columns: int, folder: Path, name: str) -> None:
    """The text, with its colours, as a picture where PRECISIONLAB_SCREENSHOTS asks for it."""
    if "PRECISIONLAB_SCREENSHOTS" not in os.environ:
        return
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(text), soft_wrap=True)
    page = folder / f"{name}.html"
    page.write_text(console.export_html(), encoding="utf-8")
    with Opened(browser, page, 9 * columns) as opened:
        opened.photograph(name)


def widest(text: str) -> int:
    """The longest line but for commands, which are whole so that they can be copied."""
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines()
    return max(len(line) for line in lines if " precisionlab " not in f" {line}")


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("kind", ["swept", "repaired"])
def test_a_summary_fits_its_terminal(
    browser: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    columns: int,
    kind: str,
) -> None:
    result: SweepResult = request.getfixturevalue(f"{kind}_digits")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    print_summary(result, stream)
    head, _, commands = stream.getvalue().partition("Report:")
    photograph(browser, stream.getvalue(), columns, tmp_path, f"terminal-{kind}-{columns}")
    assert widest(head) <= columns
    assert "\x1b[" in head
    assert "precisionlab report" in commands


@pytest.mark.parametrize("command", ["sweep", "diff"])
def test_help_fits_eighty_columns(browser: Any, tmp_path: Path, command: str) -> None:
    printed = CliRunner().invoke(cli, [command, "--help"], terminal_width=80)
    assert printed.exit_code == 0
    photograph(browser, printed.output, 80, tmp_path, f"terminal-help-{command}")
    assert widest(printed.output) <= 80
