"""Drives a Python calibrator through its C++ vtable, as libnvinfer would; runs in a process of its own.

    PYTHONPATH=<bindings' folder> python drive.py CACHE BACK WRITTEN

CACHE is what the calibrator's `read_calibration_cache` returns; BACK gets what comes out of the vtable, WRITTEN what
`write_calibration_cache` was given when the same bytes were put in. Prints the rest as JSON.

IInt8Calibrator in NvInfer.h has, in this order, getBatchSize, getBatch, readCalibrationCache, writeCalibrationCache and
getAlgorithm. In 8.6 they are the first five slots of the vtable; in 10.x four of IVersionedInterface stand before
(two destructors, getAPILanguage, getInterfaceInfo). pybind11 keeps the pointer to the C++ object behind the
Python object's head, at id + 16.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import tensorrt_bindings as trt

CACHE, BACK, WRITTEN = map(Path, sys.argv[1:])
FIRST_SLOT = 0 if trt.__version__.startswith("8.") else 4
BATCHES = [[0x1000, 0x2000], [0x3000, 0x4000]]


class Calibrator(trt.IInt8EntropyCalibrator2):
    """What a program has that goes by a ready cache, and keeps what TensorRT would write."""

    def __init__(self, cache):
        trt.IInt8EntropyCalibrator2.__init__(self)
        self.cache = cache
        self.written = None
        self.asked = []
        self.left = list(BATCHES)

    def get_batch_size(self):
        return 7

    def get_batch(self, names):
        self.asked.append(names)
        return self.left.pop(0) if self.left else None

    def read_calibration_cache(self):
        return self.cache

    def write_calibration_cache(self, cache):
        self.written = bytes(cache)


def slot(calibrator, index, result, *arguments):
    """The method in one slot of the C++ object's vtable, called with the object."""
    pointer = ctypes.c_void_p.from_address(id(calibrator) + 16).value
    vtable = ctypes.c_void_p.from_address(pointer).value
    address = ctypes.c_void_p.from_address(vtable + (FIRST_SLOT + index) * ctypes.sizeof(ctypes.c_void_p)).value
    # CFUNCTYPE gives the lock of the interpreter away, as the bindings do while libnvinfer builds.
    function = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *arguments)(address)
    return lambda *values: function(pointer, *values)


def read_back(calibrator):
    """readCalibrationCache(size_t &length): a pointer, and the length of what stands there."""
    length = ctypes.c_size_t(12345)
    data = slot(calibrator, 2, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))(ctypes.byref(length))
    return None if data is None else ctypes.string_at(data, length.value)


def batches(calibrator, names):
    """getBatch(void *bindings[], char const *names[], int32_t count) until it answers false."""
    get = slot(calibrator, 1, ctypes.c_bool, *[ctypes.c_void_p] * 2, ctypes.c_int32)
    found = []
    while True:
        pointers = (ctypes.c_void_p * len(names))()
        texts = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
        if not get(ctypes.addressof(pointers), ctypes.addressof(texts), len(names)):
            return found
        found.append(list(pointers))


content = CACHE.read_bytes()
calibrator = Calibrator(content)
back = read_back(calibrator)
assert back is not None
BACK.write_bytes(back)

buffer = ctypes.create_string_buffer(content, len(content))  # TensorRT's text ends with its length, not with a NUL
slot(calibrator, 3, None, ctypes.c_void_p, ctypes.c_size_t)(ctypes.addressof(buffer), len(content))
WRITTEN.write_bytes(calibrator.written)

names = ["image", "a: b"]
print(
    json.dumps(
        {
            "version": trt.__version__,
            "without a cache": read_back(Calibrator(None)) is None,
            "batch size": slot(calibrator, 0, ctypes.c_int32)(),
            "batches": batches(calibrator, names),
            "names": calibrator.asked[0],
            "algorithm": slot(calibrator, 4, ctypes.c_int32)(),
            "entropy 2": int(trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2),
        }
    )
)
