"""What all peers share: the arguments, the samples, and the answer. Needs NumPy and ONNX Runtime alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Question:
    """What the benchmark asks of a peer."""

    model: Path
    data: Path
    precision: str
    tolerance: float
    graph: Path
    options: tuple[str, ...]

    def samples(self) -> list[dict[str, Any]]:
        """The samples that the peer may see: input name → array."""
        return [dict(np.load(file)) for file in sorted(self.data.glob("*.npz"))]


@dataclass(frozen=True)
class Answer:
    """The nodes to be kept high, and the precision that they are kept in."""

    high: list[str]
    seconds: float
    precision: str = "fp32"


def answer(version: str, work: Callable[[Question], Answer]) -> None:
    """Ask, and print the answer; whatever goes wrong inside the tool is an answer too."""
    model, data, precision, tolerance, graph, *options = sys.argv[1:]
    question = Question(Path(model), Path(data), precision, float(tolerance), Path(graph), tuple(options))
    try:
        found: dict[str, Any] = vars(work(question))
    except Exception as error:
        found = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    print("\n" + json.dumps({**found, "version": version}), flush=True)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start
