"""Error statistics that merge, the metrics taken from them, and the tolerance that judges."""
