"""Results as CSV and HTML. This room sees results, never backends."""

from precisionlab.system.callables import callable_as

callable_as(__name__, "precisionlab.jobs.report", "report")
