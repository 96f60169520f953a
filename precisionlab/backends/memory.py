"""How much memory the work may take: what the machine has, and what of it each part of the work gets.

The budget is of one process's resident memory at its peak. How it is parted depends on the budget and the model alone,
never on threads or on what is free at the moment: where a model is cut may change the last bits of a figure.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.rewrite.switched import is_laid_out

_SHARE = 0.5
"""Of the machine's memory, where nobody says otherwise: other work is there too."""

_UNKNOWN = 4 * 1024**3
"""What a machine is taken to have that does not tell."""

_PROGRAM = 320 * 1024**2
"""The interpreter, ONNX Runtime, numba's compiled loops, pandas and the report, before any model."""

_NODE = 64 * 1024
"""What a node takes for the whole job: in the model, in what is measured of it (32 KB are a histogram's while it is
counted), and in the report."""

BUILT = 32 * 1024
"""What a node takes besides in the graphs that are made of it, and in ONNX Runtime's sessions."""

_NODES = 1024
"""So many nodes at a time may a graph be made of, whatever the budget."""

_READER = 128 * 1024**2
"""The interpreter and ONNX's library: what is there while a model is read."""

_READING = 3
"""Copies of a model's file while it is read: its bytes, and the protobuf of ONNX's checker and of ours."""

_SESSION = 5
"""Copies of a graph's weights while its session is made: its own, packed and rounded ones, and those between."""

_SESSIONS = 14
"""The same for all sessions that live at a time where nothing is split: six graphs of the whole model."""

_WORTH = 2 * 1024**3
"""More than this for weights is no gain where plans have sessions of their own: a search over 300 MB of them took twice
as long as with parts in turn. With sessions that are shared it takes a third."""

_LEAST = 64 * 1024**2
"""What must be left for samples."""

_LARGEST_SEGMENT = 128 * 1024**2

_GROUP = Path("/sys/fs/cgroup")


def machine_memory(
    meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup"), group: Path = _GROUP
) -> int:
    """Bytes that this process may have at most: the machine's memory, or less where a control group limits it."""
    return min([_installed(meminfo), *_group_limits(own, group)])


def default_memory() -> int:
    """The budget where none is given: half of what the machine, or the control group, has in all."""
    return int(machine_memory() * _SHARE)


def _installed(meminfo: Path) -> int:
    try:
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return _UNKNOWN


def _group_limits(own: Path, group: Path) -> Iterator[int]:
    """The limits of the process's control groups and of those above them, version 2 and 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, name = group, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = group / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's, and the limit stands at the root of what is mounted.
        place = root / path.strip("/")
        for folder in (place, *place.parents):
            if folder == root or root in folder.parents:
                limit = _number(folder / name)
                if limit:
                    yield limit


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None


@dataclass(frozen=True)
class Share:
    """What of the budget the work on one model gets, in bytes.

    `memory` is the budget itself. `segment` is how much the outputs that one graph shows for a sample may take,
    `weights` the weights of one graph; None: they need not be parted. `samples` is for all samples that are at work at
    a time. `nodes` is how many nodes of the model one graph may be made of; None: any number.
    """

    memory: int
    segment: int
    weights: int | None
    samples: int
    nodes: int | None = None

    @property
    def is_parted(self) -> bool:
        """Whether graphs of parts of the model take turns, instead of being there together."""
        return self.weights is not None or self.nodes is not None

    def side_by_side(self, model: Model, threads: int, each: int, where: str) -> int:
        """How many of the threads may have a sample that takes `each` bytes, most of it at the layer `where`.

        Raises OptionError where one takes too much already.
        """
        if each <= self.samples:
            return max(1, min(threads, self.samples // max(1, each)))
        raise too_little(self.memory, model, each, f"one sample's values at layer {where}")


UNLIMITED = Share(1 << 62, _LARGEST_SEGMENT, None, 1 << 62)
"""Nothing is asked: graphs as large as does them good."""


def share_of(memory: int, model: Model) -> Share:
    """Part a budget for a model. Raises OptionError where the model alone takes more, whatever is split."""
    if memory < _least(model, _LEAST):
        raise too_little(memory, model, _LEAST, "one sample's values, at the least")
    return _parted(memory, model)


def _parted(memory: int, model: Model) -> Share:
    weights, largest = _weights(model), _largest(model)
    work = memory - sum(_held(model).values())
    others = BUILT * max(0, len(model.node) - _NODES)  # the nodes beside those of one graph
    worth = _WORTH if is_laid_out(model) else work
    if _SESSIONS * weights <= min((work - others) // 2, worth) and others <= work // 4:
        samples = work - others - _SESSIONS * weights
        return Share(memory, min(_LARGEST_SEGMENT, samples // 8), None, samples)
    limit = largest + (work - _SESSION * largest) // 3 // _SESSION
    samples = work - _SESSION * limit
    return Share(memory, min(_LARGEST_SEGMENT, samples // 8), limit, samples, _NODES if others else None)


def _least(model: Model, each: int) -> int:
    """What is enough to read the model, and to run it in parts in turn with so much room beside its weights."""
    reading = _READER + _READING * model.path.stat().st_size
    return max(reading, sum(_held(model).values()) + _SESSION * _largest(model) + each)


def enough(model: Model, each: int) -> int:
    """A budget that is enough for the whole job, where one sample's values take `each` bytes."""
    found = _least(model, max(each, _LEAST))
    while (room := _parted(found, model).samples) < each:  # of what is there more than samples get a part
        found += max(each - room, 1024**2)
    return found


def largest_copy(memory: int) -> int:
    """How large a model may be for a copy of it to be written: it is read, and made into protobuf and into bytes."""
    return max(0, memory - _PROGRAM) // 4


def too_little(memory: int, model: Model, each: int, what: str) -> OptionError:
    """The error that says with how much the whole job is done, and for what, where a sample takes `each` bytes."""
    needed = enough(model, each)
    largest = _largest(model)
    made_ready = f"the largest layer's weights of {size(largest)}, {_SESSION} times while they are made ready"
    parts = {**_held(model), made_ready: _SESSION * largest, what: each}
    if needed == _READER + _READING * (file := model.path.stat().st_size):
        parts = {"the program": _READER, f"reading its file of {size(file)}": _READING * file}
    made_up = ", ".join(f"{size(count)} for {part}" for part, count in parts.items() if count)
    return OptionError(
        f"--memory {size(memory)} is too little for {model.path}: however it is split, {_at_least(needed)} are needed "
        f"(among them {made_up}); give that much, or sweep it on a larger machine"
    )


def _at_least(count: int) -> str:
    """Bytes as they are written in options, and no fewer: what is told must be enough when it is given."""
    if count < 1024**3:
        return f"{math.ceil(count / 1024**2)}M"
    return f"{math.ceil(count * 100 / 1024**3) / 100:g}G"


def size(count: int) -> str:
    """Bytes as they are written in options: 512M, 3.5G."""
    return f"{count / 1024**3:.3g}G" if count >= 1024**3 else f"{max(1, round(count / 1024**2))}M"


def _held(model: Model) -> dict[str, int]:
    inside = sum(
        value.const_value.nbytes
        for value in model.onnx.graph.initializers.values()
        if value.const_value is not None and not isinstance(value.const_value, (ir.ExternalTensor, ir.LazyTensor))
    )
    nodes = len(model.node)
    graphs = _NODE * nodes + BUILT * min(nodes, _NODES)
    return {"the program": _PROGRAM, "the model and its graphs": inside + model.folded + graphs}


def _weights(model: Model) -> int:
    return sum(layer.weight_bytes for layer in model.layers)


def _largest(model: Model) -> int:
    return max((layer.weight_bytes for layer in model.layers), default=0)
