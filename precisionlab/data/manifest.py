"""`dataset.toml`: what a data folder says of itself, and which files it may name."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precisionlab.data.sample import first_line
from precisionlab.errors import DataError
from precisionlab.model import Model
from precisionlab.system.quoting import cause
from precisionlab.system.reading import UnreadableError, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "dataset.toml"
_LARGEST = 1 << 20


@dataclass(frozen=True)
class InputSpec:
    """How the manifest says that an input is made of a sample.

    `dtype` converts arrays; the rest is for images: resized to `size` (height, width), converted to
    `color`, then (x · scale − mean) / std for each channel, laid out as `layout`.
    """

    dtype: str | None = None
    size: tuple[int, int] | None = None
    layout: str = "NCHW"
    color: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Manifest:
    """What `dataset.toml` says; all of it is optional."""

    name: str = ""
    description: str = ""
    model: str | None = None
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    samples_file: str | None = None
    labels_file: str | None = None
    metric: str | None = None
    output: str | None = None


def read_manifest(folder: Path) -> Manifest:
    """Read `dataset.toml`, if there is one. Raises DataError for keys or values that mean nothing."""
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return Manifest()
    inside(folder, MANIFEST, str(folder))
    try:
        data = tomllib.loads(read_text(path, _LARGEST))
    except UnreadableError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, a date that is none
        raise DataError(f"{path}: cannot be read as TOML; {cause('tomllib', error)}") from None
    labels = _table(data, "labels", path)
    inputs = _table(data, "inputs", path)
    samples = _table(data, "samples", path)
    _only(data, ("name", "description", "model", "inputs", "samples", "labels"), path, "")
    _only(samples, ("file",), path, "samples.")
    _only(labels, ("file", "metric", "output"), path, "labels.")
    return Manifest(
        name=_text(data, "name", path) or "",
        description=_text(data, "description", path) or "",
        model=_text(data, "model", path),
        inputs={name: _input_spec(_table(inputs, name, path), name, path) for name in inputs},
        samples_file=_text(samples, "file", path),
        labels_file=_text(labels, "file", path),
        metric=_text(labels, "metric", path),
        output=_text(labels, "output", path),
    )


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the folder. Raises DataError where the name leads out of it."""
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a null byte
        raise DataError(f"{where}: {name!r} is no usable path: {error}") from None
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {name!r} lies outside the data folder; only files inside it are read")
    return path


def _input_spec(data: Mapping[str, Any], name: str, path: Path) -> InputSpec:
    where = f"inputs.{name}."
    _only(data, ("dtype", "size", "layout", "color", "scale", "mean", "std"), path, where)
    spec: dict[str, Any] = {}
    for key in ("dtype", "layout", "color"):
        if (text := _text(data, key, path)) is not None:
            spec[key] = text
    if spec.get("layout", "NCHW") not in ("NCHW", "NHWC") or spec.get("color", "RGB") not in ("RGB", "BGR", "L"):
        raise DataError(f"{path}: {where}layout is NCHW or NHWC, {where}color is RGB, BGR or L")
    readers: dict[str, Callable[[Any], Any]] = {
        "dtype": _dtype,
        "size": _size,
        "scale": _number,
        "mean": _numbers,
        "std": _divisors,
    }
    for key, read in readers.items():
        if key in data:
            try:
                spec[key] = read(data[key])
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{path}: {where}{key}: {first_line(error)}") from None
    return InputSpec(**spec)


def _dtype(text: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "a", which is refused below anyway
            found = np.dtype(text)
    except Exception:  # TypeError, ValueError, SyntaxError, … as the text goes
        raise ValueError(f"{text[:40]!r} is no type; write float32, int64, …") from None
    if found.kind not in "biuf" and not found.name.startswith(("bfloat", "float")):
        raise ValueError(f"{text[:40]!r} is no type that a model takes; write float32, int64, …")
    return str(found.name)


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise ValueError("write [height, width] in pixels")
    return value[0], value[1]


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    with np.errstate(over="ignore"):
        single = np.float32(value)  # what pixels are computed in
    if not np.isfinite(single) or (value and not single):
        raise ValueError(f"{value!r} is beyond float32, in which pixels are computed")
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if value == []:
        raise ValueError("give one number, or one for each channel")
    return tuple(_number(v) for v in (value if isinstance(value, list) else [value]))


def _divisors(value: Any) -> tuple[float, ...]:
    if 0 in (numbers := _numbers(value)):
        raise ValueError("it divides, and must not be 0")
    return numbers


def _table(data: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: [{key}] must be a table")
    return value


def _text(data: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{path}: {key} must be a string")
    return value


def _only(data: Mapping[str, Any], known: Sequence[str], path: Path, prefix: str) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise DataError(f"{path}: unknown key {prefix}{unknown[0]}; known are {', '.join(known)}")


def check_manifest(manifest: Manifest, model: Model, folder: Path) -> None:
    """Raises DataError where the manifest names what the model has not."""
    path = folder / MANIFEST
    inputs = [info.name for info in model.inputs]
    for name in manifest.inputs:
        if name not in inputs:
            raise DataError(f"{path}: [inputs.{name}]: the model has no such input; it has {', '.join(inputs)}")
    outputs = [info.name for info in model.outputs]
    if manifest.output is not None and manifest.output not in outputs:
        raise DataError(
            f"{path}: labels.output {manifest.output!r} is no output of the model; it has {', '.join(outputs)}"
        )
    if manifest.metric not in (None, "accuracy"):
        raise DataError(
            f'{path}: labels.metric {manifest.metric!r} is not known; use "accuracy", '
            "or leave it out and give your own with --metric package.module:name"
        )
    if manifest.metric is not None and manifest.labels_file is None:
        raise DataError(f"{path}: labels.metric needs labels.file")
