"""The console that everything is printed to: a closed pipe is left to the command line, and no name steers it."""

from __future__ import annotations

import unicodedata
from typing import Any

import rich.console
from rich.text import Text


class Console(rich.console.Console):
    """As rich has it, but a reader who has gone is an exception, not an exit with 1: that has a meaning here."""

    def on_broken_pipe(self) -> None:
        """Called while the exception is handled."""
        raise

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as it is printed, in a line or a table: names out of files must not steer the terminal."""
        return super().render_str("".join(map(_shown, text)), **options)


def _shown(sign: str) -> str:
    if sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs"):
        return sign
    return ascii(sign)[1:-1]


def shortened(name: str, width: int) -> str:
    """The end of a long name, which tells more than its beginning."""
    return name if len(name) <= width else "…" + name[-width + 1 :]
