"""What to do with a run's plans, as commands that a shell takes as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from precisionlab.data.hook import is_hook
from precisionlab.data.saved import is_raw
from precisionlab.errors import OptionError
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.report.cells import bounds_of, is_quantized
from precisionlab.report.section import PrecisionSection
from precisionlab.system.parsing import parse_duration
from precisionlab.system.usercode import is_object


@dataclass(frozen=True)
class Command:
    """One command, and what it is for."""

    words: str
    text: str


@dataclass(frozen=True)
class Commands:
    """The commands of one precision: to build its plan with other tools, and to check it.

    `refused` says of tools, in a sentence each, why it cannot be had for them.
    """

    title: str
    build: tuple[Command, ...]
    check: tuple[Command, ...]
    refused: tuple[str, ...] = ()


_TYPED = "typed-onnx"
_OBJECT = (
    "the command line: samples or metric were objects of a Python session; call precisionlab.export and "
    "precisionlab.verify there, and give them again"
)
_EXPORTS = (
    ("trtexec", ".sh", "TensorRT 8.6 to 10.16, with trtexec: a shell script"),
    (_TYPED, ".onnx", "TensorRT 11 and TensorRT-RTX, or any strongly typed build: a model that holds its types"),
    ("polygraphy", ".py", "Polygraphy: a script that holds the layers, with the command to run it"),
    ("modelopt", ".json", "NVIDIA ModelOpt: its commands and lists of nodes"),
    ("repaired-onnx", ".onnx", "Any other tool: the repaired model itself, in float32"),
    ("onnxruntime", ".onnx", "ONNX Runtime: a model with Q/DQ nodes and the plan’s scales"),
)


def commands_of(run: Mapping[str, Any], section: PrecisionSection) -> Commands:
    """The commands for the plan of one precision, with absolute paths: they run wherever they are typed."""
    if any(is_object(str(given)) for given in (run["data"]["folder"], run["data"].get("metric"))):
        return Commands(section.title, (), (), (_OBJECT,))
    folder, data = folder_of(run), run["data"]["folder"]
    plan = _path(str(folder / section.plan_file))
    stem = PurePath(section.plan_file).stem
    # Code of the user's is only ever run because it stands on the command line.
    code = _data(run) if data is not None and is_hook(str(data)) else []
    build = tuple(
        Command(words, _line("export", plan, *code, "--format", target, "--out", _path(str(folder / name))))
        for target, suffix, words in _EXPORTS
        if target in _use(section) - section.not_for.keys()
        for name in [_file_name(stem, target, suffix)]
    )
    code += _metric(run)
    each = " and ".join((*["repair"] * bool(section.repaired), *["pin"] * bool(section.pins or not section.repaired)))
    check = [Command(f"Measure the plan again, and that each {each} is needed", _line("verify", plan, *code))]
    if section.met:
        typed = ["--typed"] if _needs_types(section) else []
        on_gpu = _line("verify", plan, *code, "--backend", "tensorrt", *typed)
        check.append(Command("The same with TensorRT on the GPU that will run it", on_gpu))
    held_to = _held_to(run, section.name)
    beside = ["--out", _path(f"{folder}-{stem}")]
    again = _line("sweep", _model(run), *_data(run), "--plan", plan, *held_to, *_metric(run), *beside)
    check.append(Command("Look at it on other data: give its folder as --data", again))
    refused = tuple(f"{target}: {why}" for target, why in section.not_for.items() if target in _use(section))
    return Commands(section.title, build if section.met else (), tuple(check), refused)


def _model(run: Mapping[str, Any]) -> str:
    return _path(str(_absolute(run, str(run["model"]["path"]))))


def _data(run: Mapping[str, Any]) -> list[str]:
    """The samples of the run as options; of random ones the shapes."""
    data = run["data"]
    if data["folder"] is not None:
        return ["--data", _named(run, str(data["folder"]))]
    shapes = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in data.get("shapes", {}).items())
    return [word for shape in shapes for word in ("--shape", shape)]


def _metric(run: Mapping[str, Any]) -> list[str]:
    metric = run["data"].get("metric")
    return [] if metric is None else ["--metric", _named(run, str(metric))]


def _named(run: Mapping[str, Any], spec: str) -> str:
    """A folder, or code of the user's; a module is found by its name, and a file like other paths."""
    if is_raw(spec):
        return spec
    if not is_hook(spec) or spec.endswith(".py"):
        return _path(str(_absolute(run, spec)))
    module, _, name = spec.rpartition(":")
    return f"{_absolute(run, module)}:{name}" if module.endswith(".py") else spec


def _around(plan: PrecisionPlan) -> list[str]:
    """The floats around a quantized precision, where they are not those that it has without a word."""
    is_usual = not plan.default.is_quantized or plan.around is plan.default.around
    return [] if is_usual else ["--around", plan.around.value]


def _held_to(run: Mapping[str, Any], precision: str) -> list[str]:
    """What the precision was held to, as options."""
    bounds = bounds_of(str(run["tolerance"][precision]))
    return [word for bound in bounds for word in ("--tolerance", str(bound))]


def next_command(run: Mapping[str, Any], section: PrecisionSection) -> Command | None:
    """The export of a precision that is taken: for trtexec, or for a strongly typed build where the run's were such.

    None where no command line can export it.
    """
    build = commands_of(run, section).build
    if not build:
        return None
    is_typed = (run["engines"] or {}).get("network") == "strongly typed"
    wanted = _TYPED if is_typed else _EXPORTS[0][0]
    found = next((command for command in build if f"--format {wanted} " in command.text), build[0])
    return replace(found, words=f"Next, for {found.words}")


def _needs_types(section: PrecisionSection) -> bool:
    """Whether the plan has a precision that TensorRT takes by Q/DQ nodes in the model alone."""
    names = {section.name, *(pin.precision.lower() for pin in section.pins)}
    kinds = (precision.number_format for precision in Precision if precision.value in names)
    return any(kind.is_quantized and not kind.is_implicit for kind in kinds)


def _file_name(stem: str, target: str, suffix: str) -> str:
    """What an export is called; Polygraphy imports its script, so that has the name of a Python module."""
    name = f"{stem}.{target}"
    return (name.replace(".", "_") if suffix == ".py" else name) + suffix


def _use(section: PrecisionSection) -> frozenset[str]:
    """The formats that are of use for the plan, whether or not it can be had in them."""
    useless = {"onnxruntime"} if not is_quantized(section.name) else set[str]()
    useless |= {"repaired-onnx"} if not section.repaired else set()
    return frozenset(target for target, _, _ in _EXPORTS) - useless


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


def repair_command_line(run: Mapping[str, Any], plan: PrecisionPlan) -> str:
    """The command that looks for an equivalent model that is right in a plan's precision without pins.

    The precision is held to what the run holds it to.     "" for a run on random inputs: a repair is held to samples.
    """
    given = (run["data"]["folder"], run["data"].get("metric"))
    if given[0] is None or any(map(is_object, map(str, given))):
        return ""
    precision = plan.default.value
    options = [*_data(run), "--precision", precision, *_around(plan), *_held_to(run, precision), *_metric(run)]
    return _line("repair", _model(run), *options)


def run_commands(run: Mapping[str, Any]) -> tuple[Command, ...]:
    """What can be done with the run as a whole."""
    # A sweep that a program called has no command line of its own.
    command = [str(word) for word in run["command"]]
    again = [Command("Run it all again", in_its_folder(run, shlex.join(command)))]
    return (*(again if command[:1] == ["precisionlab"] else ()), open_command(run))


def in_its_folder(run: Mapping[str, Any], line: str) -> str:
    """A command as it was typed, in the folder where it was; runs of older versions do not say where that is."""
    begun = run.get("started_in")
    return f"cd {shlex.quote(str(begun))} && {line}" if begun else line


def open_command(run: Mapping[str, Any]) -> Command:
    """What draws the report again, and opens it."""
    return Command("Draw this page again from the run’s files", _line("report", _path(str(folder_of(run))), "--open"))


def folder_of(run: Mapping[str, Any]) -> PurePath:
    """The run's folder; runs of older versions did not note it, and stand in the current one."""
    return _absolute(run, str(run.get("folder") or "."))


def seen_from(here: PurePath, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run with paths as they are short in the folder where it was started; the same where its own lies elsewhere.

    Commands made from it run in that folder alone.
    """
    folder = folder_of(run)
    if run.get("started_in") != str(here) or not folder.is_relative_to(here):
        return run
    return {**run, "started_in": None, "folder": str(folder.relative_to(here))}


def _absolute(run: Mapping[str, Any], path: str) -> PurePath:
    """A path that was given; as it is where an older version did not note where the run was started."""
    return PurePath(str(run.get("started_in") or ""), path)


def _path(path: str) -> str:
    """A path as an argument: one that begins with a dash would be taken for an option."""
    return f"./{path}" if path.startswith("-") else path


def _line(*words: str) -> str:
    return shlex.join(["precisionlab", *words])
