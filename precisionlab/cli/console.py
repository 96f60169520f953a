"""The console that everything is printed to: one that leaves a closed pipe to the command line."""

from __future__ import annotations

import rich.console


class Console(rich.console.Console):
    """As rich has it, but a reader who has gone is an exception, not an exit with 1: that has a meaning here."""

    def on_broken_pipe(self) -> None:
        """Called while the exception is handled."""
        raise
