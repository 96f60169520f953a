"""The search for one low precision's pins, on real evaluations: `evaluations`, the `choice` among them, the search."""

from precisionlab.pinning.evaluations import figures_text
from precisionlab.pinning.search import PinSearch

__all__ = ["PinSearch", "figures_text"]
