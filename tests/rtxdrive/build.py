"""Builds real engines with TensorRT-RTX, and prints what came of them as JSON.

python build.py engine MODEL FOLDER [SHAPES …]
python build.py refused MODEL FOLDER
python build.py reason MODEL FOLDER TARGET
python build.py marked MODEL FOLDER TENSOR SHAPES
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from precisionlab.backends.tensorrt.api import features_of
from precisionlab.backends.tensorrt.build import build, make_builder, network_layers
from precisionlab.backends.tensorrt.jobs import BuildJob, LayerPin, Profile
from precisionlab.backends.tensorrt.logger import LogKeeper, make_logger
from precisionlab.backends.tensorrt.network import parse
from precisionlab.backends.tensorrt.profiles import add_profiles, check_profiles, parse_shapes
from precisionlab.errors import PrecisionLabError
from precisionlab.model import load_model
from precisionlab.precision import Precision

COMMAND, MODEL, FOLDER = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
KEEPER = LogKeeper(FOLDER / "build.log")


def job(*shapes: str, **options: Any) -> BuildJob:
    """A job for the model, with shapes that were checked as the program checks them."""
    profiles = dict(parse_shapes(text) for text in shapes)
    check_profiles(load_model(MODEL), profiles)
    return BuildJob(MODEL, FOLDER / "model.engine", profiles=profiles, **options)


def engine(*shapes: str) -> dict[str, Any]:
    """Build once with a fresh timing cache, and once with what that has left."""
    progress: list[int] = []
    wanted = job(*shapes, timing_cache=FOLDER / "timing.cache")
    built = build(trt, wanted, KEEPER, progress=lambda title, done, total: progress.append(done))
    build(trt, wanted, KEEPER)
    return {
        "size": built.size,
        "on disk": built.engine.stat().st_size,
        "layers": len(built.layers),
        "nodes": sorted({node for layer in built.layers for node in layer.nodes}),
        "dtypes": sorted({str(tensor.dtype) for layer in built.layers for tensor in layer.outputs}),
        "network": len(network_layers(trt, MODEL, KEEPER, typed=False)),
        "progress": progress[-1],
        "rising": progress == sorted(progress),
        "timings": (FOLDER / "timing.cache").exists(),
        "seconds": built.seconds,
    }


def refused() -> dict[str, list[str]]:
    """What is said of jobs that cannot be built."""
    fixed = job("image:4x1x8x8")
    pin = LayerPin("any", ("any",), ("any",), Precision.FP32)
    wrong = Profile((4, 1, 8), (4, 1, 8), (4, 1, 8))

    def stop(title: str, done: int, total: int) -> None:
        if done > 300:
            raise KeyError("progress failed")

    def in_an_odd_order() -> None:
        logger = make_logger(trt, KEEPER)
        builder = make_builder(trt, logger, KEEPER)
        with parse(trt, logger, builder, MODEL, features_of(trt), KEEPER) as parsed:
            config = builder.create_builder_config()
            shapes = {"image": Profile((4, 1, 8, 8), (2, 1, 8, 8), (8, 1, 8, 8))}
            add_profiles(trt, builder, parsed.network, config, [shapes])

    tries: dict[str, Callable[[], Any]] = {
        "no shapes": lambda: build(trt, replace(fixed, profiles={}), KEEPER),
        "wrong rank": lambda: build(trt, replace(fixed, profiles={"image": wrong}), KEEPER),
        "min > opt": in_an_odd_order,
        "fp16": lambda: build(trt, replace(fixed, enabled=frozenset({Precision.FP16})), KEEPER),
        "pins": lambda: build(trt, replace(fixed, pins=(pin,)), KEEPER),
        "unknown mark": lambda: build(trt, replace(fixed, marked=("nothing",)), KEEPER),
        "no such model": lambda: build(trt, replace(fixed, model=FOLDER / "none.onnx"), KEEPER),
        "no such folder": lambda: build(trt, replace(fixed, engine=MODEL / "inside a file" / "x.engine"), KEEPER),
        "progress fails": lambda: build(trt, fixed, KEEPER, progress=stop),
        "nothing": lambda: build(trt, fixed, KEEPER).size,
    }
    return {name: attempt(action) for name, action in tries.items()}


def reason(target: str) -> list[str]:
    """What is said of a model that is refused for this target."""
    return attempt(lambda: build(trt, BuildJob(MODEL, FOLDER / "model.engine", compute=target), KEEPER))


def attempt(action: Callable[[], Any]) -> list[str]:
    """The kind and the text of the error that this ends in."""
    try:
        action()
    except (PrecisionLabError, KeyError) as error:
        return [type(error).__name__, str(error)]
    return []


def marked(tensor: str, shapes: str) -> dict[str, Any]:
    """Whether the engine gives this tensor, and the model's output, without and with both of them marked."""
    found = {}
    output = load_model(MODEL).outputs[0].name
    for name, names in {"plain": (), "marked": (tensor, output, tensor)}.items():
        built = build(trt, job(shapes, marked=names), KEEPER)
        given = {found.name for layer in built.layers for found in layer.outputs}
        found[name] = {"tensor": tensor in given, "output": output in given}
    return found


print(json.dumps({"engine": engine, "refused": refused, "reason": reason, "marked": marked}[COMMAND](*sys.argv[4:])))
