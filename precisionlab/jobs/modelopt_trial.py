"""Runs ModelOpt's commands as an export has written them, and looks which layers carry Q/DQ then."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from precisionlab.export import Export
from precisionlab.export.modelopt import QUANTIZED
from precisionlab.export.modelopt_rules import VERSION
from precisionlab.system.disk import temporary_folder
from precisionlab.system.wording import counted

_PACKAGE = "nvidia-modelopt"
_SECONDS = 900.0
_NAMED = 6


@dataclass(frozen=True)
class _Trial:
    """What ModelOpt made: the claimed nodes whose two operands come out of a DequantizeLinear; or why it failed."""

    version: str
    carrying: tuple[str, ...]
    failed: str = ""


def tried(export: Export) -> Export:
    """The export with what ModelOpt makes of it here, where it is installed; else with what is known of it.

    `made` stands in the place of `claimed` then: `how` it is known, the nodes `quantized`, and those `left_alone`, each
    with the reason where one is known; null without int8 layers.
    """
    content = json.loads(str(export.content))
    claimed = content.pop("claimed")
    if not claimed:
        return _with(export, content, None, ())
    expected = {node: reason for node, reason in claimed.items() if reason}
    known, version = f"by the source of {VERSION}", _installed()
    if not version:
        told = f"ModelOpt is not installed here to try; {known} it quantises {_share(claimed, expected)}"
        return _with(export, content, _made(known, claimed, expected), (told,))
    trial = _trial(version, content["commands"], export.beside, tuple(claimed))
    if trial.failed:
        told = f"ModelOpt {version} fails here ({trial.failed}); {known} it quantises {_share(claimed, expected)}"
        return _with(export, content, _made(known, claimed, expected), (told,))
    left = {node: reason for node, reason in claimed.items() if node not in trial.carrying}
    told = f"ModelOpt {version}, run here, quantises {_share(claimed, left)}"
    return _with(export, content, _made(f"ModelOpt {version}, run", claimed, left), (told,))


def _made(how: str, claimed: Mapping[str, str], left: Mapping[str, str]) -> dict[str, object]:
    return {"how": how, "quantized": [node for node in claimed if node not in left], "left_alone": dict(left)}


def _with(export: Export, content: Mapping[str, object], made: object, notes: tuple[str, ...]) -> Export:
    text = json.dumps({**content, "made": made}, indent=1, ensure_ascii=False) + "\n"
    return replace(export, content=text, notes=(*export.notes, *notes))


def _installed() -> str:
    """The version of ModelOpt that this Python has; empty where it has none."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _share(claimed: Mapping[str, str], left: Mapping[str, str]) -> str:
    """`3 of 5 layers of the plan, and leaves alone fc (a product with one row), …`."""
    said = f"{len(claimed) - len(left)} of {counted(len(claimed), 'layer')} that the plan has in int8"
    if not left:
        return said
    named = [f"{node} ({reason})" if reason else node for node, reason in list(left.items())[:_NAMED]]
    more = [f"{len(left) - _NAMED} more"] if len(left) > _NAMED else []
    return f"{said}, and leaves alone {'; '.join([*named, *more])}"


def _trial(version: str, commands: Sequence[str], beside: Mapping[str, bytes], claimed: Sequence[str]) -> _Trial:
    """Run what copies the model and what quantises it, in a folder that goes again."""
    with temporary_folder() as folder:
        for name, data in beside.items():
            (folder / name).write_bytes(data)
        for command in commands[:2]:
            words = [sys.executable, *shlex.split(command)[1:]]
            try:
                done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                return _Trial(version, (), f"not finished after {_SECONDS:.0f} s")
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                return _Trial(version, (), last[:200])
        made = next(folder.glob(f"*{QUANTIZED}"), None)  # none is written where nothing is quantised
        return _Trial(version, () if made is None else _carrying(made, claimed))


def _carrying(file: Path, claimed: Sequence[str]) -> tuple[str, ...]:
    graph = onnx.load_model(file, load_external_data=False).graph
    dequantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    nodes = {node.name: node for node in graph.node}
    return tuple(
        name for name in claimed if name in nodes and all(taken in dequantised for taken in nodes[name].input[:2])
    )
