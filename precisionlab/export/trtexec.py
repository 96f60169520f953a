"""A plan as one command line of trtexec (TensorRT 8.6 to 10.16).

How trtexec reads its options (`samples/common/sampleOptions.cpp` and `sampleEngines.cpp` of TensorRT's open source):

- `--layerPrecisions` and `--layerOutputTypes` are split at every `,`, and each part at its last `:`. A single quote
  opens a quoted name, in which `,` still splits; the quotes are taken away. So a name with `,` or `'` cannot be given.
- `*` in a name stands for anything, at the first `*` alone. So a name with `*` would hit other layers.
- A name that is given exactly wins over one with `*`. A name that no layer has is passed over in silence.
- One output type alone stands for all outputs. With several, each layer of that name must have as many outputs, or
  trtexec ends with an error; an ONNX Split of two outputs is two layers of one output each. So here it is always one.
- For a name with `*`, the output type is ignored and float32 is set. So only float32 pins get one.
- Shapes for a model without dynamic inputs are an error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.calibration.cache import ALGORITHM
from precisionlab.errors import PlanError
from precisionlab.export.constraints import NodeConstraint, constraints_of
from precisionlab.export.subject import Export, Subject, command_line, int8_note, own_notes, quoted
from precisionlab.export.tuned import trtexec_tuning
from precisionlab.model import Model
from precisionlab.precision import Precision, any_quantized
from precisionlab.system.wording import counted

CACHE = "calibration.cache"
_UNREADABLE = {
    ",": "splits its lists there",
    "'": "takes it for a quotation mark",
    "*": "takes it for any text",
    "\0": "cannot be given it, as no argument can hold it",
}
_OWN_OPTIONS = {"INT8": "--int8", "FP8": "--fp8", "INT4": "--int4"}
"""Builder flag for a model's own Q/DQ nodes → trtexec's option; it has none for FP4."""
_HEADER = (
    "# The first line of the cache has to name the TensorRT that reads it: this one's, as trtexec tells it.",
    r"version=$(trtexec --help 2>&1 | sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | sed -n 1p)",
    f'header="TRT-$version-{ALGORITHM}"',
    'if [ -z "$version" ]; then',
    f'    echo "trtexec does not tell its version; {CACHE} stays as it is: $(sed -n 1p {CACHE})" >&2',
    f'elif [ "$(sed -n 1p {CACHE})" != "$header" ]; then',
    f'    sed "1s/.*/$header/" {CACHE} > {CACHE}.new',
    f"    mv {CACHE}.new {CACHE}",
    "fi",
)
"""Lines that any POSIX shell and sed run alike; `sed -i` is none of these."""
_LONGEST_WORD = 128 * 1024 - 1  # bytes; Linux's MAX_ARG_STRLEN, with the zero at the end
_INSTEAD = "rename it in the model, or export the plan with --format polygraphy"


def trtexec_command(subject: Subject) -> Export:
    """The command as one line. Raises PlanError for names that trtexec cannot be given, and for too long a command.

    With int8 layers, the line names the calibration cache that stands beside it.
    """
    words, notes = _words(subject)
    return Export(command_line(words) + "\n", _beside(subject), notes=notes)


def trtexec_script(subject: Subject) -> Export:
    """The command as a shell script, one option a line; it changes to its own folder, where the cache stands."""
    words, notes = _words(subject)
    lines = ["#!/bin/sh", f"# {_title(subject)}", *(f"# {_commented(note)}" for note in notes), "set -e"]
    lines += [
        'cd -- "$(dirname -- "$0")"',
        *(_HEADER if any_quantized(subject.enabled) else ()),
        "exec " + " \\\n    ".join([*map(quoted, words), '"$@"']),
    ]
    return Export("\n".join(lines) + "\n", _beside(subject), executable=True, notes=notes)


def _words(subject: Subject) -> tuple[list[str], tuple[str, ...]]:
    """The words of the command, and what is to be known of it."""
    enabled = subject.enabled
    held = constraints_of(subject)
    called = Counter(name for scope in subject.model.scopes for name in scope.node)
    for constraint in held.nodes:
        _check(subject, constraint, called)
    words = ["trtexec", f"--onnx={subject.path}", f"--saveEngine={subject.model.name}.engine", "--skipInference"]
    # On by default, TF32 cuts float32's mantissa to 10 bits: a layer in "fp32" would be nearly in fp16.
    words.append("--noTF32")
    words += ["--stronglyTyped"] * subject.typed
    words += [f"--{precision}" for precision in Precision if precision in enabled]
    words += [_OWN_OPTIONS[flag] for flag in subject.own_flags if flag in _OWN_OPTIONS]
    if any_quantized(enabled):
        words.append(f"--calib={CACHE}")
    if held.nodes:
        words.append("--precisionConstraints=obey")
        words.append(f"--layerPrecisions={_listed(subject.model, held.nodes)}")
        if storing := [constraint for constraint in held.nodes if constraint.stores]:
            words.append(f"--layerOutputTypes={_listed(subject.model, storing)}")
    for number, profiles in enumerate((subject.profiles, *subject.more_profiles)):
        words += [f"--profile={number}"] * bool(subject.more_profiles) + _shapes(profiles)
    words += trtexec_tuning(subject.tuning, subject.plugins, subject.model)
    for word in words:
        if len(word.encode("utf-8", "surrogateescape")) > _LONGEST_WORD:
            raise PlanError(
                f"{counted(len(held.nodes), 'node')} are to be held, and {word.partition('=')[0]} with all of them is "
                "longer than the 128 KiB that Linux gives one argument; export the plan with --format polygraphy"
            )
    return words, _notes(subject, held.nodes, held.left_alone)


def _check(subject: Subject, constraint: NodeConstraint, called: Mapping[str, int]) -> None:
    """Raises PlanError for a node that trtexec cannot be told of; `called` counts the names of the loaded model."""
    name = constraint.node
    _check_name("node", name)
    is_unknown = name not in subject.names and not name.startswith("node_of_")
    if is_unknown or max(subject.names.get(name, 0), called[name]) > 1:
        raise PlanError(
            f"node {name!r}: several nodes of the model's file have this name, and TensorRT numbers their layers by a "
            f"counter of its own, so trtexec cannot be told which is meant; {_INSTEAD}"
        )


def _check_name(what: str, name: str) -> None:
    for sign, why in _UNREADABLE.items():
        if sign in name:
            raise PlanError(f"{what} {name!r} has {sign!r} in its name, and trtexec {why}; {_INSTEAD}")


def _listed(model: Model, held: Iterable[NodeConstraint]) -> str:
    known = _names_of(model)
    parts = []
    for constraint in held:
        parts.append(f"{constraint.node}:{constraint.precision}")
        if _is_widened(constraint, known):
            parts.append(f"{constraint.node}_*:{constraint.precision}")
    return ",".join(parts)


def _names_of(model: Model) -> list[str]:
    """What layers of the network may be called after, sorted: nodes, and constants."""
    names = (name for graph in (model.onnx.graph, *model.bodies) for name in graph.initializers)
    inner = (name for body in model.bodies.values() for name in body.node)
    return sorted({*model.node, *inner, *(idle.name for idle in model.idle), *map(str, names)})


def _is_widened(constraint: NodeConstraint, known: Sequence[str]) -> bool:
    """Whether `NAME_*` is given as well: of a Gemm the parser makes `fc` and `fc_<n>`, the sum with the bias.

    Only where no other node or constant is called so, and all that the node takes and gives is float.
    """
    if constraint.precision is not Precision.FP32 or not (constraint.stores and constraint.alike):
        return False
    prefix = f"{constraint.node}_"
    place = bisect_left(known, prefix)
    return not (place < len(known) and known[place].startswith(prefix))


def _shapes(profiles: Mapping[str, Profile]) -> list[str]:
    words = []
    for name in profiles:
        _check_name("input", name)
    for option, which in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
        shapes = ((name, getattr(profile, which)) for name, profile in profiles.items())
        if parts := [f"{name}:{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes]:
            words.append(f"{option}={','.join(parts)}")
    return words


def _beside(subject: Subject) -> dict[str, bytes]:
    return {CACHE: subject.cache} if any_quantized(subject.enabled) else {}


def _title(subject: Subject) -> str:
    pins = counted(len(subject.plan.pins), "pin")
    what = "strongly typed, for trtexec of TensorRT 10" if subject.typed else "for trtexec of TensorRT 8.6 to 10.16"
    return _commented(f"{subject.model.name}: {subject.plan.default} with {pins}, {what}")


def _commented(text: str) -> str:
    """Text that cannot end a comment: names may hold line ends."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _notes(subject: Subject, held: Iterable[NodeConstraint], left_alone: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    for precision in Precision:
        if precision in subject.enabled and (builders := precision.number_format.builders):
            notes.append(f"--{precision} needs {builders}")
    if any_quantized(subject.enabled):
        notes.append(
            f"{CACHE} is for TensorRT {subject.tensorrt}: with a first line of another version trtexec has nothing to "
            "calibrate on, and the build fails; this script asks trtexec for its version, and changes that line"
        )
    notes += own_notes(subject)
    if "FP4" in subject.own_flags:
        notes.append("trtexec has no option for FP4; --format polygraphy sets the flag, and typed-onnx needs none")
    notes.append(
        "trtexec has no option for STRICT_NANS: its engine may hide a NaN (0·x folded to 0, x − x to 0, x / x to 1); "
        "--format polygraphy sets it"
    )
    known = _names_of(subject.model)
    if partly := [constraint.node for constraint in held if not _is_widened(constraint, known)]:
        notes.append(
            f"of {counted(len(partly), 'node')} ({partly[0]!r}{', …' if len(partly) > 1 else ''}) only the layer "
            "called like the node is held; where TensorRT makes several of one node, --format polygraphy holds them all"
        )
    notes += [f"node {name!r} is left to TensorRT: {reason}" for name, reason in left_alone.items()]
    return (*notes, *int8_note(subject))
