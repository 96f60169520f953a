"""What the emulation takes for granted of TensorRT, by precision, in the order of docs/how-it-works.md."""

from __future__ import annotations

from precisionlab.jobs.selftest_bf16 import BF16
from precisionlab.jobs.selftest_fp8 import FP8
from precisionlab.jobs.selftest_fp16 import FP16
from precisionlab.jobs.selftest_int4 import INT4
from precisionlab.jobs.selftest_int8 import EXPLICIT, INT8, INT8_PRODUCT

FAMILIES = (FP16, BF16, INT8, INT8_PRODUCT, EXPLICIT, FP8, INT4)
"""Each has an engine of its own, so that one that is refused leaves the others."""
