"""How much a command tells of its way: `-q` and `-v`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Verbosity(Enum):
    """What stands on standard error while a command works."""

    QUIET = "quiet"  # nothing
    NORMAL = "normal"  # a live display in a terminal, lines elsewhere
    VERBOSE = "verbose"  # lines with the time since the beginning, in a terminal too


_KEY = "precisionlab.verbosity"


def verbosity_options(command: Command) -> Command:
    """Give a command the options `-q` and `-v`. Its function is not told: `verbosity` is asked."""
    quiet = _option("-q", "--quiet", Verbosity.QUIET, "Show no progress: only the result, and errors.")
    verbose = _option("-v", "--verbose", Verbosity.VERBOSE, "Show progress as lines with times, in a terminal too.")
    return quiet(verbose(command))


def verbosity() -> Verbosity:
    """What the command under way was asked for."""
    context = click.get_current_context(silent=True)
    found: Verbosity = Verbosity.NORMAL if context is None else context.meta.get(_KEY, Verbosity.NORMAL)
    return found


def _option(short: str, long: str, how: Verbosity, words: str) -> Callable[[Command], Command]:
    def told(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if not value:
            return
        if ctx.meta.setdefault(_KEY, how) is not how:
            raise click.UsageError("-q shows nothing of the way and -v all of it; give one of them", ctx)

    return click.option(short, long, is_flag=True, expose_value=False, callback=told, help=words)
