"""Drives our callbacks through their C++ vtables, as TensorRT would; runs in a process of its own.

    PYTHONPATH=<bindings' folder>:<repository> python callbacks.py MODULE LOG

MODULE is `tensorrt_bindings` or `tensorrt_rtx`, LOG the file that the logger writes. Prints what was seen as JSON.

The methods come first in the vtable, or behind the four slots of IVersionedInterface (two destructors, getAPILanguage,
getInterfaceInfo): the calibrator's from 10.0 on, ILogger's and IProfiler's from 11.0 on, the others' always.
pybind11 keeps the pointer to the C++ object behind the Python object's head, at id + 16.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from pathlib import Path

import numpy as np

from precisionlab.backends.tensorrt.calibrator import make_calibrator
from precisionlab.backends.tensorrt.listener import make_listener
from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger
from precisionlab.backends.tensorrt.monitor import make_monitor
from precisionlab.backends.tensorrt.profiler import make_profiler

trt = importlib.import_module(sys.argv[1])
LOG = Path(sys.argv[2])
VERSIONED = 4
CALIBRATOR = VERSIONED if hasattr(trt, "IDebugListener") else 0
LOGGER = 0 if hasattr(trt, "IInt8EntropyCalibrator2") else VERSIONED
POINTER, INT, TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p


class Dims(ctypes.Structure):
    """nvinfer1::Dims of 10.0 and later."""

    _fields_ = (("nb", ctypes.c_int32), ("d", ctypes.c_int64 * 8))


def slot(thing, index, result, *arguments):
    """The method in one slot of the C++ object's vtable, called with the object."""
    pointer = POINTER.from_address(id(thing) + 16).value
    vtable = POINTER.from_address(pointer).value
    address = POINTER.from_address(vtable + index * ctypes.sizeof(POINTER)).value
    function = ctypes.CFUNCTYPE(result, POINTER, *arguments)(address)

    def call(*values):
        assert thing is not None  # held: without the Python object the C++ one finds no method to call
        return function(pointer, *values)

    return call


def kept(thing):
    """What `raise_kept` raises."""
    try:
        thing.raise_kept()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def batch(calibrator, names):
    """getBatch(void *bindings[], char const *names[], int32_t count): what it answers, and the addresses."""
    get = slot(calibrator, CALIBRATOR + 1, ctypes.c_bool, POINTER, POINTER, INT)
    pointers = (POINTER * len(names))()
    texts = (TEXT * len(names))(*(name.encode() for name in names))
    return get(ctypes.addressof(pointers), ctypes.addressof(texts), len(names)), list(pointers)


def read_back(calibrator):
    """readCalibrationCache(size_t &length)."""
    length = ctypes.c_size_t(12345)
    read = slot(calibrator, CALIBRATOR + 2, POINTER, ctypes.POINTER(ctypes.c_size_t))
    data = read(ctypes.byref(length))
    return None if data is None else ctypes.string_at(data, length.value).decode()


def fed(*answers):
    """What a calibrator hands on whose feed gives these answers, and is then asked once more."""
    left, asked = list(answers), []

    def feed(names):
        asked.append(names)
        answer = left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    calibrator = make_calibrator(trt, None, feed)
    seen = [batch(calibrator, ["image", "a: b"]) for _ in range(len(answers) + 1)]
    return {
        "seen": seen,
        "asked": asked,
        "batches": calibrator.batches,
        "kept": kept(calibrator),
        "cache": read_back(calibrator),
    }


def calibrators():
    fed_too = []  # a calibrator with a cache leaves the samples alone
    cached = make_calibrator(trt, b"TRT-1-EntropyCalibration2\nx: 3c010a14\n", fed_too.append)
    back = read_back(cached)
    before = kept(cached)
    written = b"TRT-2-EntropyCalibration2\nx: 3c010a14\n"
    buffer = ctypes.create_string_buffer(written, len(written))
    slot(cached, CALIBRATOR + 3, None, POINTER, ctypes.c_size_t)(ctypes.addressof(buffer), len(written))
    ctypes.memset(buffer, 0, len(written))  # TensorRT's memory is gone after the call
    return {
        "cached": {
            "back": back,
            "kept": before,
            "written": cached.written.decode(),
            "size": slot(cached, CALIBRATOR, INT)(),
            "algorithm": slot(cached, CALIBRATOR + 4, INT)() == int(trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2),
            "asked": batch(cached, ["x"]),
            "kept then": kept(cached),
            "fed": fed_too,
        },
        "all": fed([0x1000, 0x2000], (np.int64(0x3000), np.uint64(0x7FFF00004000)), None),
        "raises": fed([0x1000, 0x2000], OSError("the sample is gone")),
        "interrupted": fed(KeyboardInterrupt()),
        "short": fed([0x1000]),
        "long": fed([0x1000, 0x2000, 0x3000]),
        "empty": fed([]),
        "null": fed([0x1000, 0]),
        "no addresses": fed(["here", "there"]),
    }


def listeners():
    seen = []

    def take(name, address, dtype, shape, stream):
        if name == "bad":
            raise RuntimeError("no room left")
        values = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), shape)
        seen.append([name, dtype, shape, stream, values.tolist()])

    listener = make_listener(trt, take)
    if listener is None:
        return None
    process = slot(listener, VERSIONED, ctypes.c_bool, POINTER, INT, INT, ctypes.POINTER(Dims), TEXT, ctypes.c_size_t)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    shape = Dims(2, (ctypes.c_int64 * 8)(2, 3))

    def show(name, location=trt.TensorLocation.DEVICE):
        return process(
            values.ctypes.data, int(location), int(trt.DataType.FLOAT), ctypes.byref(shape), name.encode(), 77
        )

    answers = [show("conv: 1"), show("/层/out", trt.TensorLocation.HOST), show("bad"), show("after bad")]
    errors = [kept(listener), kept(listener)]
    answers.append(show("next run"))
    return {"seen": seen, "answers": answers, "kept": errors}


def monitors():
    told, stop = [], []

    def progress(title, done, total):
        if "bad" in title:
            raise RuntimeError("the pipe is closed")
        told.append([title, done, total])

    monitor = make_monitor(trt, progress, lambda: bool(stop))
    if monitor is None:
        return None
    start = slot(monitor, VERSIONED, None, TEXT, TEXT, INT)
    step = slot(monitor, VERSIONED + 1, ctypes.c_bool, TEXT, INT)
    finish = slot(monitor, VERSIONED + 2, None, TEXT)
    answers = []
    start(b"Building engine", None, 2)
    start(b"Timing", b"Building engine", 2)
    answers += [step(b"Timing", 0), step(b"Timing", 1)]
    finish(b"Timing")
    answers += [step(b"Building engine", 0), step(b"Building engine", 1)]
    finish(b"Building engine")
    stop.append(1)
    cancelled = step(b"Building engine", 1)
    stop.clear()
    none_kept = kept(monitor)
    start(b"bad", None, 2)
    after_error = [step(b"bad", 0), step(b"fine", 1)]
    return {
        "told": told,
        "answers": answers,
        "cancelled": cancelled,
        "kept": [none_kept, kept(monitor), kept(monitor)],
        "after an error": after_error,
    }


def profilers():
    profiler = make_profiler(trt)
    empty = profiler.layers()
    report = slot(profiler, LOGGER, None, TEXT, ctypes.c_float)
    for milliseconds in (1.0, 2.0):
        for name in (b"in", b"conv + relu", b"conv + relu", b"out"):
            report(name, milliseconds)
        if milliseconds == 2.0:
            report(b"branch", 4.0)
    return {"empty": empty, "layers": profiler.layers(), "runs": profiler.runs}


def loggers():
    keep = LogKeeper(LOG)
    log = slot(make_logger(trt, keep), LOGGER, None, INT, TEXT)
    severity = trt.ILogger.Severity
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        log(int(getattr(severity, name)), f"{name} of /层/Conv".encode())
    log(int(severity.ERROR), b"ERROR of /\xe5\xb1\x82/Conv")
    log(int(severity.VERBOSE), b"Layers:\nName: a")

    class Broken:
        def take(self, severity, text):
            raise KeyboardInterrupt

    slot(make_logger(trt, Broken()), LOGGER, None, INT, TEXT)(int(severity.ERROR), b"nobody hears it")
    return {"errors": keep.errors, "warnings": keep.warnings, "tail": keep.tail, "layers": keep.layers}


print(
    json.dumps(
        {
            "version": trt.__version__,
            "calibrator": calibrators() if hasattr(trt, "IInt8EntropyCalibrator2") else None,
            "listener": listeners(),
            "monitor": monitors(),
            "profiler": profilers(),
            "logger": loggers(),
        }
    )
)
