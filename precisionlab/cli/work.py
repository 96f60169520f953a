"""The options that say where the work of a command is done, and with how much of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--processes", type=int, help="Share the work between so many processes, to the same bits."),
    click.option("--dask", metavar="ADDRESS", help="Share it over the Dask cluster with this scheduler (extra dask)."),
    click.option("--threads", type=int, help="Threads to use.  [default: all processors]"),
    click.option(
        "--device", default="cpu", show_default=True, help="Where the emulation runs: cpu, or a GPU: cuda, cuda:1."
    ),
    click.option(
        "--memory",
        metavar="SIZE",
        help="Memory that each process may take, such as 4G.  [default: half of the machine's]",
    ),
)


def work_options(command: Command) -> Command:
    """Give a command the options `processes`, `dask`, `threads`, `device` and `memory`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
