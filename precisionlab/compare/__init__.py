"""Error statistics that merge, the metrics taken from them, and the tolerance that judges."""

from precisionlab.system.callables import callable_as

callable_as(__name__, "precisionlab.jobs.compare", "compare")
