"""The search for one low precision's pins, on real evaluations: a `Task` goes in, a result with its proof comes out."""

from precisionlab.search.pinning.evaluations import figures_text
from precisionlab.search.pinning.search import PinSearch
from precisionlab.search.pinning.task import Task

__all__ = ["PinSearch", "Task", "figures_text"]
