"""Why ONNX Runtime does not load or run a graph: a sentence of ours, with its own words behind it."""

from __future__ import annotations

import re

from precisionlab.system.quoting import cause

WHO = "ONNX Runtime"


_NO_MEMORY = re.compile(r"[Ff]ailed to allocate|bad_alloc|bad allocation|[Oo]ut of memory")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\((\d+)\) node with name '([^']*)'")
_UNKNOWN_OPERATOR = re.compile(r"([\w.\-]*):(\w+)\(-?\d+\) is not a registered function/op")
_NEW_OPSET = re.compile(r"Opset (\d+) is under development")
_NEW_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_RUNNING = re.compile(r"while running (?P<op>\w+) node\. Name:'(?P<name>.*?)' Status")
_LOADING = re.compile(
    r"Node ?\((?P<name>.*?)\) Op ?\((?P<op>\w+)\)|Optype \((?P<op2>\w+)\).* in node \((?P<name2>.*?)\)"
)


def why_not_loaded(error: Exception) -> str:
    """What stands behind "cannot load the model: "."""
    text = str(error)
    if match := _UNKNOWN_OPERATOR.search(text):
        operator = f"{match[1]}::{match[2]}" if match[1] else match[2]
        return f"it does not know the operator {operator}; replace it, or define it as a function in the model"
    if match := _NO_KERNEL.search(text):
        return (
            f"it has no kernel for node {match[3]!r}, {match[1]} of opset {match[2]} with the types that it has here; "
            "convert the model to another opset (onnx.version_converter.convert_version) or other types"
        )
    if match := _NEW_OPSET.search(text):
        return (
            f"this version of it does not know opset {match[1]} yet; convert the model to an older one "
            "(onnx.version_converter.convert_version), or install a newer onnxruntime"
        )
    if match := _NEW_IR.search(text):
        return (
            f"the file's IR version is {match[1]}, and this version of it knows those up to {match[2]}; save the model "
            f"with ir_version = {match[2]}, or install a newer onnxruntime"
        )
    where = _node(_LOADING.search(text))
    what = f"{where} is not what its operator allows" if where else "it refuses the graph"
    return f"{what}; fix it, or export the model again; {cause(WHO, error)}"


def why_not_run(error: Exception) -> str:
    """What stands behind "cannot run the model: "."""
    where = _node(_RUNNING.search(str(error))) or "it"
    todo = "see whether the sample's shapes and values are what the model is made for, or export the model again"
    return f"{where} fails on a sample; {todo}; {cause(WHO, error)}"


def check_memory(error: Exception) -> None:
    """Raises MemoryError where that is what ONNX Runtime ran out of: the model is not to blame."""
    if _NO_MEMORY.search(str(error)):
        raise MemoryError(cause(WHO, error)) from None


def _node(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    found = match.groupdict()
    return f"node {found['name'] or found.get('name2')!r} ({found['op'] or found.get('op2')})"
