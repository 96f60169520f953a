"""What to do with a run's plans, as commands that a shell takes as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from precisionlab.data.hook import is_hook
from precisionlab.errors import OptionError
from precisionlab.report.cells import bounds_of, is_quantized
from precisionlab.report.section import PrecisionSection
from precisionlab.system.parsing import parse_duration


@dataclass(frozen=True)
class Command:
    """One command, and what it is for."""

    words: str
    text: str


@dataclass(frozen=True)
class Commands:
    """The commands of one precision: to build its plan with other tools, and to check it."""

    title: str
    build: tuple[Command, ...]
    check: tuple[Command, ...]


_TYPED = "typed-onnx"
_EXPORTS = (
    ("trtexec", ".sh", "TensorRT 8.6 to 10.16, with trtexec: a shell script"),
    (_TYPED, ".onnx", "TensorRT 11 and TensorRT-RTX, or any strongly typed build: a model that holds its types"),
    ("polygraphy", ".py", "Polygraphy: a script that holds the layers, with the command to run it"),
    ("modelopt", ".json", "NVIDIA ModelOpt: its commands and lists of nodes"),
    ("repaired-onnx", ".onnx", "Any other tool: the repaired model itself, in float32"),
    ("onnxruntime", ".onnx", "ONNX Runtime: a model with Q/DQ nodes and the plan’s INT8 scales"),
)


def commands_of(run: Mapping[str, Any], section: PrecisionSection) -> Commands:
    """The commands for the plan of one precision."""
    folder = folder_of(run)
    plan = _path(str(folder / section.plan_file))
    stem = PurePath(section.plan_file).stem
    build = tuple(
        Command(words, _line("export", plan, "--format", target, "--out", _path(str(folder / name))))
        for target, suffix, words in _EXPORTS
        if _is_offered(target, section)
        for name in [_file_name(stem, target, suffix)]
    )
    data = run["data"]["folder"]
    # Code of the user's is only ever run because it stands on the command line.
    code = [] if data is None or not is_hook(str(data)) else ["--data", str(data)]
    code += [] if run["data"].get("metric") is None else ["--metric", str(run["data"]["metric"])]
    each = " and ".join((*["repair"] * bool(section.repaired), *["pin"] * bool(section.pins or not section.repaired)))
    check = [Command(f"Measure the plan again, and that each {each} is needed", _line("verify", plan, *code))]
    if section.met:
        on_gpu = _line("verify", plan, *code, "--backend", "tensorrt")
        check.append(Command("The same with TensorRT on the GPU that will run it", on_gpu))
    sample_options = [] if data is None else ["--data", _path(str(data))]
    again = _line("sweep", _path(str(run["model"]["path"])), *sample_options, "--plan", plan)
    check.append(Command("Look at it on other data: give its folder as --data", again))
    return Commands(section.title, build if section.met else (), tuple(check))


def next_command(run: Mapping[str, Any], section: PrecisionSection) -> Command:
    """The export of a precision that is taken: for trtexec, or for a strongly typed build where the run's were such."""
    build = commands_of(run, section).build
    is_typed = (run["engines"] or {}).get("network") == "strongly typed"
    wanted = _TYPED if is_typed else _EXPORTS[0][0]
    found = next((command for command in build if f"--format {wanted} " in command.text), build[0])
    return replace(found, words=f"Next, for {found.words}")


def _file_name(stem: str, target: str, suffix: str) -> str:
    """What an export is called; Polygraphy imports its script, so that has the name of a Python module."""
    name = f"{stem}.{target}"
    return (name.replace(".", "_") if suffix == ".py" else name) + suffix


def _is_offered(target: str, section: PrecisionSection) -> bool:
    """Whether an export is of use for the plan."""
    return {"onnxruntime": is_quantized(section.name), "repaired-onnx": bool(section.repaired)}.get(target, True)


def longer_command(run: Mapping[str, Any]) -> str:
    """The run's command with twice what cut its search short: it goes on from the journal. "" where it has none."""
    words = [str(word) for word in run["command"]]
    doubled = [_doubled(words[:place], word) for place, word in enumerate(words)]
    return "" if doubled == words else shlex.join(doubled)


def _doubled(before: Sequence[str], word: str) -> str:
    """The word, or twice as much where it is the value of an option that may end a search."""
    option, _, joined = word.partition("=")
    name, value = (option, joined) if joined else (before[-1] if before else "", word)
    if name == "--budget":
        with suppress(OptionError):
            more = f"{2 * (parse_duration(value, 'budget') or 30):g}s"
            return f"{option}={more}" if joined else more
    if name == "--max-evaluations" and value.isdecimal():
        return f"{option}={2 * int(value)}" if joined else str(2 * int(value))
    return word


def repair_command_line(run: Mapping[str, Any], precision: str) -> str:
    """The command that looks for an equivalent model that is right in the precision without pins, as the run holds it.

    "" for a run on random inputs: a repair is held to samples.
    """
    data, metric = run["data"]["folder"], run["data"].get("metric")
    if data is None:
        return ""
    held_to = [word for bound in bounds_of(str(run["tolerance"][precision])) for word in ("--tolerance", str(bound))]
    measured = [] if metric is None else ["--metric", str(metric)]
    given = ["--data", _path(str(data)), "--precision", precision]
    return _line("repair", _path(str(run["model"]["path"])), *given, *held_to, *measured)


def run_commands(run: Mapping[str, Any]) -> tuple[Command, ...]:
    """What can be done with the run as a whole."""
    folder = _path(str(folder_of(run)))
    command = [str(word) for word in run["command"]]
    # A sweep that a program called has no command line of its own.
    again = [Command("Run it all again", shlex.join(command))] if command[:1] == ["precisionlab"] else []
    return (
        *again,
        open_command(run),
        Command("Compare it with another run", f"{_line('diff', folder)} OTHER_RUN"),
    )


def open_command(run: Mapping[str, Any]) -> Command:
    """What draws the report again, and opens it."""
    return Command("Draw this page again from the run’s files", _line("report", _path(str(folder_of(run))), "--open"))


def folder_of(run: Mapping[str, Any]) -> PurePath:
    """The run's folder as it was given; runs of older versions did not note it, and stand in the current one."""
    return PurePath(str(run.get("folder") or "."))


def _path(path: str) -> str:
    """A path as an argument: one that begins with a dash would be taken for an option."""
    return f"./{path}" if path.startswith("-") else path


def _line(*words: str) -> str:
    return shlex.join(["precisionlab", *words])
