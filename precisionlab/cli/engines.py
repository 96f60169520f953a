"""The options of commands that build TensorRT engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from precisionlab.backends.options import EngineOptions
    from precisionlab.backends.tuning import Tuning

Command = TypeVar("Command", bound=Callable[..., Any])

_TUNING = (
    click.option("--optimization-level", type=int, metavar="0…5", help="0 is built soonest, 5 searches longest."),
    click.option("--avg-timing", type=int, metavar="RUNS", help="Average a kernel's time over so many runs."),
    click.option("--dla", type=int, metavar="CORE", help="Run on this DLA core; what it cannot, on the GPU."),
    click.option(
        "--weight-streaming",
        metavar="SIZE",
        help="So much of the weights on the GPU, such as 2G or auto, the rest in host memory.",
    ),
    click.option("--version-compatible", is_flag=True, help="Load with later versions of TensorRT too."),
    click.option(
        "--io-format",
        "formats",
        multiple=True,
        metavar="NAME:FORMAT",
        help="Store this input or output so, as image:hwc or image:chw32.  [default: chw]",
    ),
    click.option("--refit", is_flag=True, help="Can be given other weights later."),
    click.option(
        "--plugins",
        multiple=True,
        type=click.Path(),
        metavar="LIBRARY",
        help="Load this library of TensorRT plugins first; may be given again.",
    ),
)
"""What is left to TensorRT where it is not asked for."""
_BUILDING = (
    click.option(
        "--shapes",
        "engine_shapes",
        multiple=True,
        metavar="NAME:MIN,OPT,MAX",
        help="Shapes of a dynamic input, as image:1x3x224x224,4x3x224x224,8x3x224x224.  [default: the data's]",
    ),
    click.option("--workspace", metavar="SIZE", help="Memory for a build, such as 4G.  [default: TensorRT's]"),
    click.option(
        "--observe",
        default="256M",
        show_default=True,
        metavar="SIZE",
        help="Bytes of layer outputs to look at in one engine; 0 looks at none.",
    ),
    *_TUNING,
)
"""How each engine is built and looked at."""
_SEARCHING = (
    click.option(
        "--typed",
        is_flag=True,
        help="Strongly typed, so that the plan is the types of the model (TensorRT 10 on).",
    ),
    click.option("--prefer", is_flag=True, help="Pins are wishes (PREFER, not OBEY)."),
    click.option(
        "--hold-float",
        is_flag=True,
        help="Hold what the plan has in float beside int8; else TensorRT may run any layer in int8.",
    ),
    click.option("--engine-calibration", is_flag=True, help="TensorRT finds the int8 ranges by itself."),
    click.option("--builds", default=8, show_default=True, help="Build no more of each precision than this."),
    click.option("--engines", type=click.Path(), help="Keep them here.  [default: in the run's folder]"),
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


def build_tuning_options(command: Command) -> Command:
    """Give a command the options that are left to TensorRT otherwise."""
    for option in reversed(_TUNING):
        command = option(command)
    return command


def tuning_of(given: Mapping[str, Any]) -> Tuning:
    """What was given for these. Raises OptionError."""
    from precisionlab.backends.tuning import AUTOMATIC, Tuning, parse_formats
    from precisionlab.system.parsing import check_at_least, parse_size

    level, budget = given["optimization_level"], given["weight_streaming"]
    check_at_least(0, optimization_level=level, dla=given["dla"])
    check_at_least(1, avg_timing=given["avg_timing"])
    return Tuning(
        optimization_level=level,
        avg_timing=given["avg_timing"],
        dla=given["dla"],
        weight_streaming=AUTOMATIC if budget == "auto" else parse_size(budget, "weight_streaming"),
        version_compatible=given["version_compatible"],
        refit=given["refit"],
        formats=parse_formats(given["formats"]),
    )


def build_options_of(given: Mapping[str, Any]) -> EngineOptions:
    """What was given for the options of one engine. Raises OptionError."""
    from precisionlab.backends.options import EngineOptions
    from precisionlab.backends.tensorrt.plugins import libraries_of
    from precisionlab.system.parsing import parse_size

    libraries_of(given["plugins"])  # one that cannot be read is refused before any work, whatever backend is taken
    return EngineOptions(
        shapes=tuple(given["engine_shapes"]),
        workspace=parse_size(given["workspace"], "workspace"),
        observe=parse_size(given["observe"], "observe") or 0,
        plugins=tuple(given["plugins"]),
        tuning=tuning_of(given),
    )


def engine_options_of(given: Mapping[str, Any]) -> EngineOptions:
    """What was given for all of them. Raises OptionError."""
    from dataclasses import replace

    from precisionlab.system.parsing import check_at_least

    check_at_least(1, builds=given["builds"])
    return replace(
        build_options_of(given),
        typed=given["typed"],
        prefer=given["prefer"],
        calibrate=given["engine_calibration"],
        hold_float=given["hold_float"],
        builds=given["builds"],
        store=given["engines"],
    )
