"""A plan for Polygraphy: a script that it runs on the parsed network, and the command to build the engine with.

Polygraphy's own `--layer-precisions` sets what a layer computes in, never what it stores, and finds layers by name
alone; so all of it is left to the script, `--trt-network-postprocess-script`, which goes by the rules of `pins.py`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from precisionlab.backends.tensorrt.jobs import LayerPin, Profile
from precisionlab.errors import OptionError, PlanError
from precisionlab.export import network_script
from precisionlab.export.subject import Export, Subject, command_line, int8_note, own_notes
from precisionlab.export.tuned import polygraphy_tuning
from precisionlab.precision import Precision, any_quantized

CACHE = "calibration.cache"
FILE = "precision_pins.py"
_PLACE = "PINS = ()\n"
_BARRED, _FUNCTIONS = (f"{name}: frozenset[str] = frozenset([])\n" for name in ("BARRED", "FUNCTIONS"))
_TAKEN = frozenset({*sys.stdlib_module_names, "tensorrt", "polygraphy", "numpy", "onnx"})


def check_file(out: Path | None) -> str:
    """What the script is called. Raises OptionError for a name that Polygraphy, which imports it, cannot import."""
    if out is None:
        return FILE
    if out.suffix != ".py" or not out.stem.isidentifier() or out.stem in _TAKEN:
        raise OptionError(
            f"--out {out}: Polygraphy imports the script, so its name must be that of a Python module of its own, "
            f"such as {FILE}"
        )
    return out.name


def polygraphy_script(subject: Subject, file: str) -> Export:
    """The script, with the command in its first lines; `file` is what it will be called.

    Raises PlanError for names of inputs that Polygraphy's command line cannot be given.
    """
    command = command_line(polygraphy_words(subject, file))
    source = inspect.getsource(network_script)
    model = subject.model
    barred = {str(name) for scope in model.scopes for name in scope.node if " | " in name}
    barred |= {idle.name for idle in model.idle if " | " in idle.name}
    source = _filled(_filled(source, _BARRED, barred), _FUNCTIONS, {f.name for f in model.onnx.functions.values()})
    before, place, after = source.partition(_PLACE)
    assert place, "the place of the pins is gone from network_script.py"
    pins = "".join(f"    {_row(pin)},\n" for pin in subject.pins)
    # In a comment, no name can end the line.
    head = f"# Run in this folder:\n#   {ascii(command)[1:-1] if not command.isprintable() else command}\n"
    content = f"{head}{before}PINS = (\n{pins})\n{after}" if pins else f"{head}{source}"
    int8 = any_quantized(subject.enabled)
    return Export(content, {CACHE: subject.cache} if int8 else {}, notes=_notes(subject))


def _filled(source: str, place: str, names: Iterable[str]) -> str:
    """The source with names in the place of an empty list."""
    assert place in source, f"{place!r} is gone from network_script.py"
    return source.replace(place, place.replace("[]", ascii(sorted(names))))


def polygraphy_words(subject: Subject, file: str) -> list[str]:
    """The words of the command. Raises PlanError."""
    enabled = subject.enabled
    words = ["polygraphy", "convert", str(subject.path), "--model-type", "onnx", "--convert-to", "trt"]
    words += ["-o", f"{subject.model.name}.engine", "--trt-config-postprocess-script", f"{file}:configure"]
    words += ["--strongly-typed"] * subject.typed
    words += [f"--{precision}" for precision in Precision if precision in enabled]
    words += [f"--{flag.lower()}" for flag in subject.own_flags if flag in ("INT8", "FP8")]  # others: the script
    if any_quantized(enabled):
        words += ["--calibration-cache", CACHE]
    if subject.pins:
        words += ["--precision-constraints", "obey", "--trt-network-postprocess-script", f"{file}:postprocess"]
    for profiles in (subject.profiles, *subject.more_profiles):
        for option, which in (("--trt-min-shapes", "min"), ("--trt-opt-shapes", "opt"), ("--trt-max-shapes", "max")):
            if profiles:
                words += [option, *(_shape(name, profile, which) for name, profile in profiles.items())]
    return [*words, *polygraphy_tuning(subject.tuning, subject.plugins)]


def _shape(name: str, profile: Profile, which: str) -> str:
    if name.startswith("-"):
        raise PlanError(f"input {name!r} begins with '-', and Polygraphy would take it for an option; rename it")
    return f"{name}:[{','.join(map(str, getattr(profile, which)))}]"


def _row(pin: LayerPin) -> str:
    return ascii((pin.layer, pin.nodes, pin.tensors, pin.precision.number_format.tensorrt))


def _notes(subject: Subject) -> tuple[str, ...]:
    enabled = subject.enabled
    notes = []
    for precision in Precision:
        if precision in enabled and (builders := precision.number_format.builders):
            notes.append(f"--{precision} needs {builders}")
    if any_quantized(enabled):
        notes.append(
            f"{CACHE} is for TensorRT {subject.tensorrt}; another version skips it and calibrates on random inputs: "
            "give yours with --tensorrt"
        )
    return (*notes, *own_notes(subject), *int8_note(subject))
