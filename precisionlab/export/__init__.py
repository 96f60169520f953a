"""A plan for other tools: one file a target, each a pure function from a `Subject` to an `Export`."""

from __future__ import annotations

from precisionlab.export.subject import Export, Subject
from precisionlab.system.callables import callable_as

__all__ = ["Export", "Subject"]

callable_as(__name__, "precisionlab.jobs.exporting", "export")
