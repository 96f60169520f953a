"""What an extract is: a part of a model that shows a fault, and how large the fault is there and in the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precisionlab.search.certificate import json_number
from precisionlab.system.wording import counted, decibel

EXTRACT_SCHEMA = 1
"""Which names `extract.json` has."""

NEAR = 1.0
"""So many dB may the part be better than the whole, and show the same fault."""


@dataclass(frozen=True)
class Extract:
    """A part of a model, with its inputs.

    `what` says what was cut out, `layers` are its layers, `whole` is the SQNR in dB that the output has in the whole
    model on these samples, `part` that of the part alone, read back from its files; `bound` is the SQNR that is right.
    `is_layer` says that it is one layer's own error, which the part has to have as in the whole. `facts` is what stands
    in the JSON beside the figures.
    """

    model: str
    what: str
    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    samples: tuple[str, ...]
    whole: float
    part: float
    bound: float
    is_layer: bool
    facts: Mapping[str, Any]
    files: tuple[str, ...]
    folder: Path

    @property
    def shown(self) -> bool:
        """Whether the part shows what the whole does: as bad, or below the bound; NaN and Inf are the worst."""
        part, whole = (-math.inf if math.isnan(value) else value for value in (self.part, self.whole))
        return part <= whole + NEAR and whole < math.inf if self.is_layer else part < self.bound

    @property
    def sentence(self) -> str:
        """What came of it."""
        where = f"{self.what} ({counted(len(self.layers), 'layer')})"
        figures = f"{decibel(self.part)} dB alone, {decibel(self.whole)} dB in the whole model"
        if self.shown and self.part >= self.bound:
            return f"{where} gives the same alone: {figures}; by sqnr>={self.bound:g} that is no fault"
        if self.shown:
            return f"{where} shows the fault: {figures}"
        return f"{where} does NOT show the fault: {figures}"

    def to_dict(self) -> dict[str, Any]:
        """The content of `extract.json`."""
        return {
            "schema": EXTRACT_SCHEMA,
            **self.facts,
            "what": self.what,
            "layers": list(self.layers),
            "outputs": list(self.outputs),
            "samples": list(self.samples),
            "sqnr_db": {"whole": json_number(self.whole), "part": json_number(self.part)},
            "bound": self.bound,
            "shown": self.shown,
            "files": list(self.files),
        }
