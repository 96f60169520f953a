"""The options of commands that build TensorRT engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from precisionlab.backends.options import EngineOptions

Command = TypeVar("Command", bound=Callable[..., Any])

_BUILDING = (
    click.option(
        "--shapes",
        "engine_shapes",
        multiple=True,
        metavar="NAME:MIN,OPT,MAX",
        help="Engines: shapes of a dynamic input, as image:1x3x224x224,4x3x224x224,8x3x224x224.  [default: the data's]",
    ),
    click.option("--workspace", metavar="SIZE", help="Engines: memory for a build, such as 4G.  [default: TensorRT's]"),
    click.option(
        "--observe",
        default="256M",
        show_default=True,
        metavar="SIZE",
        help="Engines: bytes of layer outputs to look at in one engine; 0 looks at none.",
    ),
    click.option(
        "--plugins",
        multiple=True,
        type=click.Path(),
        metavar="LIBRARY",
        help="Engines: load this library of TensorRT plugins first; may be given again.",
    ),
)
"""How each engine is built and looked at."""
_SEARCHING = (
    click.option("--prefer", is_flag=True, help="Engines: pins are wishes (PREFER, not OBEY)."),
    click.option(
        "--hold-float",
        is_flag=True,
        help="Engines: hold what the plan has in float beside int8; else TensorRT may run any layer in int8.",
    ),
    click.option("--engine-calibration", is_flag=True, help="Engines: TensorRT finds the int8 ranges by itself."),
    click.option("--builds", default=8, show_default=True, help="Engines: build no more of each precision than this."),
    click.option("--engines", type=click.Path(), help="Engines: keep them here.  [default: in the run's folder]"),
)
"""How engines of plans are searched and kept."""


def build_options(command: Command) -> Command:
    """Give a command the options that say how one engine is built."""
    for option in reversed(_BUILDING):
        command = option(command)
    return command


def engine_options(command: Command) -> Command:
    """Give a command all options on engines."""
    for option in reversed(_SEARCHING):
        command = option(command)
    return build_options(command)


def build_options_of(given: Mapping[str, Any]) -> EngineOptions:
    """What was given for the options of one engine. Raises OptionError."""
    from precisionlab.backends.options import EngineOptions
    from precisionlab.system.parsing import parse_size

    return EngineOptions(
        shapes=tuple(given["engine_shapes"]),
        workspace=parse_size(given["workspace"], "workspace"),
        observe=parse_size(given["observe"], "observe") or 0,
        plugins=tuple(given["plugins"]),
    )


def engine_options_of(given: Mapping[str, Any]) -> EngineOptions:
    """What was given for all of them. Raises OptionError."""
    from dataclasses import replace

    from precisionlab.system.parsing import check_at_least

    check_at_least(1, builds=given["builds"])
    return replace(
        build_options_of(given),
        prefer=given["prefer"],
        calibrate=given["engine_calibration"],
        hold_float=given["hold_float"],
        builds=given["builds"],
        store=given["engines"],
    )
