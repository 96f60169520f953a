"""Outputs as Polygraphy's RunResults: what `polygraphy run --load-outputs` compares its own runs with.

Source: Polygraphy 0.53, `polygraphy/comparator/struct.py` and `polygraphy/json/serde.py`. Its own code is not needed to
write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.compare.wide import is_float
from precisionlab.data.saved import TYPE, encoded
from precisionlab.system.disk import told, write_whole
from precisionlab.system.lock import held_file

Outputs = Mapping[str, NDArray[Any]]


class RunResults:
    """The outputs of several runners on the same samples, in the samples' order."""

    def __init__(self, runners: Sequence[str], names: Sequence[str]) -> None:
        """`names` are the outputs that are kept; others that a runner gives are left out."""
        self._names = tuple(names)
        self._iterations: list[tuple[str, list[dict[str, Any]]]] = [(runner, []) for runner in runners]

    def add(self, *outputs: Outputs) -> None:
        """One sample's outputs, of each runner."""
        for (runner, iterations), found in zip(self._iterations, outputs, strict=True):
            arrays = {name: _plain(found[name]) for name in self._names if isinstance(found.get(name), np.ndarray)}
            held = {name: {"values": encoded(array), TYPE: "LazyArray"} for name, array in arrays.items()}
            iterations.append({"outputs": held, "runtime": None, "runner_name": runner, TYPE: "IterationResult"})

    @property
    def text(self) -> str:
        """The JSON."""
        return json.dumps({"lst": self._iterations, TYPE: "RunResults"}) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON where the user wants it, whole or not at all. Raises OptionError where that cannot be done."""
        advice = "choose another place"
        with held_file(path, lambda text: None, advice), told(path, advice):
            write_whole(path, self.text)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """As `.npy` files hold it: bfloat16 and its like become float32, text stays."""
    if array.dtype.kind == "V" and is_float(array):
        return array.astype(np.float32)
    return array.astype(str) if array.dtype.kind == "O" else array
