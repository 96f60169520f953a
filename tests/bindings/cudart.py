"""Prints what a cuda-python has, and what our `Cuda` makes of it where no GPU is; runs in a process of its own.

    CUDA_VISIBLE_DEVICES= PYTHONPATH=<cuda-python's folder>:<repository> python cudart.py

Cython writes each function's parameters into the first line of its documentation: `cudaMalloc(size_t size)`.
"""

from __future__ import annotations

import json
import re

from precisionlab.backends.tensorrt.cuda import Cuda, runtime_module
from precisionlab.errors import EngineError

cudart = runtime_module()
functions, enums = {}, {}
for name in dir(cudart):
    thing = getattr(cudart, name)
    signature = re.match(rf"{name}\((.*?)\)", getattr(thing, "__doc__", None) or "")
    if name.startswith("cuda") and signature and not isinstance(thing, type):
        functions[name] = [parameter for parameter in signature[1].split(",") if parameter.strip()]
    elif hasattr(thing, "__members__"):
        enums[name] = list(thing.__members__)

cuda = Cuda(cudart)
errors = cudart.cudaError_t
try:
    Cuda.load()
    refused = None
except EngineError as error:
    refused = str(error)
try:
    told = cuda.check((errors.cudaErrorInvalidValue, None), "it was tried")
except EngineError as error:
    told = str(error)
print(
    json.dumps(
        {
            "module": cudart.__name__,
            "functions": functions,
            "enums": enums,
            "refused": refused,
            "told": told,
            "checked": cuda.check((errors.cudaSuccess, 7, 8), "it was tried"),
            "handles": [int(cudart.cudaStream_t()), int(cudart.cudaEvent_t())],
        }
    )
)
