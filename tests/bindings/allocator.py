"""Drives our output allocator through its C++ vtable, as TensorRT would; runs in a process of its own.

    PYTHONPATH=<bindings' folder>:<repository> python allocator.py MODULE

MODULE is `tensorrt_bindings` or `tensorrt_rtx`. In 8.6 the vtable is getInterfaceVersion, reallocateOutput,
notifyShape; from 10.0 on four slots of IVersionedInterface, reallocateOutput, reallocateOutputAsync, notifyShape; and
TensorRT-RTX has left out reallocateOutput. pybind11 keeps the C++ object's pointer behind the Python object's head.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys

from precisionlab.backends.tensorrt.execution import make_allocator

MODULE = sys.argv[1]
trt = importlib.import_module(MODULE)
POINTER, TEXT, SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64
OLD = not hasattr(trt, "IDebugListener")
RTX = MODULE == "tensorrt_rtx"
REALLOCATE = None if RTX else 1 if OLD else 4
ASYNC = None if OLD else 4 if RTX else 5
NOTIFY = 2 if OLD else 5 if RTX else 6


class Dims(ctypes.Structure):
    """nvinfer1::Dims: of 32 bits in 8.6, of 64 later."""

    _fields_ = (("nb", ctypes.c_int32), ("d", (ctypes.c_int32 if OLD else ctypes.c_int64) * 8))


def slot(thing, index, result, *arguments):
    pointer = POINTER.from_address(id(thing) + 16).value
    vtable = POINTER.from_address(pointer).value
    address = POINTER.from_address(vtable + index * ctypes.sizeof(POINTER)).value
    return lambda *values: ctypes.CFUNCTYPE(result, POINTER, *arguments)(address)(pointer, *values)


def notified(allocator, *dims):
    shape = Dims(len(dims))
    for index, dim in enumerate(dims):
        shape.d[index] = dim
    slot(allocator, NOTIFY, None, TEXT, ctypes.POINTER(Dims))(b"y: 1", ctypes.byref(shape))
    return allocator.shapes["y: 1"]


def asked(allocator, size):
    """What each of the two methods that this version has answers."""
    answers = []
    if REALLOCATE is not None:
        answers.append(slot(allocator, REALLOCATE, POINTER, TEXT, POINTER, SIZE, SIZE)(b"y: 1", 0x100, size, 256))
    if ASYNC is not None:
        call = slot(allocator, ASYNC, POINTER, TEXT, POINTER, SIZE, SIZE, POINTER)
        answers.append(call(b"y: 1", 0x100, size, 256, 0x700))
    return answers


taken = []


def reserve(name, nbytes):
    taken.append([name, nbytes])
    return 0xABC00


def full(name, nbytes):
    raise MemoryError(f"no room for {name}")


allocator, failing = make_allocator(trt, reserve), make_allocator(trt, full)
answers = asked(allocator, 1 << 40)
refused = asked(failing, 1000)
try:
    failing.raise_kept()
    raised = None
except MemoryError as error:
    raised = str(error)
failing.raise_kept()  # once alone
print(
    json.dumps(
        {
            "methods": (REALLOCATE is not None) + (ASYNC is not None),
            "answers": answers,
            "taken": taken,
            "refused": refused,
            "raised": raised,
            "shapes": [
                notified(allocator, 3, 4),
                notified(allocator, 0, 7),
                notified(allocator),
                notified(allocator, 1),
            ],
        }
    )
)
