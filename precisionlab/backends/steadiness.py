"""How steady the reference is: its own answer to a change in the last bits of what it takes and adds up.

A model that answers to it with an error as large as a tolerance allows cannot be judged by that tolerance: no other
arithmetic, not even another float32 machine's, gives its answer again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.errors import ErrorTable
from precisionlab.compare.gather import Gathering, SampleResult
from precisionlab.compare.judged import judged_errors
from precisionlab.compare.judging import Judging
from precisionlab.data import Sample
from precisionlab.rewrite.nudge import NudgingCopier, nudged


def steadiness(backend: OnnxRuntimeBackend, judging: Judging, samples: Iterable[Sample]) -> Comparison:
    """What is judged, with the last bits moved, against the same without; by the rules that judge a variant."""
    started = time.perf_counter()
    still = list(samples)
    moved = [replace(sample, inputs=nudged(sample.inputs)) for sample in still]
    gathering = Gathering(0, None)
    befores = list(backend.references(judging.names, still))
    for before, after in zip(befores, backend.references(judging.names, moved, NudgingCopier), strict=True):
        gathering.add(SampleResult(ErrorTable(0), judged_errors(judging, before, after), None, None))
    return gathering.comparison({}, {}, (), time.perf_counter() - started)
