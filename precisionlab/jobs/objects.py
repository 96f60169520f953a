"""What users of Python hand over in the place of files: models, samples and metrics that are in memory."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from precisionlab.errors import ModelError, OptionError
from precisionlab.system.disk import make_folder, told, write_whole_bytes
from precisionlab.system.usercode import named

ModelSource: TypeAlias = str | Path | Any
"""A path of an ONNX file; or an onnx.ModelProto or onnx_ir.Model."""

DataSource: TypeAlias = str | Path | Any
"""A folder, a hook, or what other tools have saved; or an iterable of samples (a DataLoader, a list, an array of them),
a function that gives one, or one sample as a dict."""

MetricSource: TypeAlias = str | Any
"""The name of a metric; or a class, an object with update and compute, or a function of outputs and label."""

P = ParamSpec("P")
R = TypeVar("R")

_MODELS, _NAMED = ("model", "other", "source"), ("data", "metric")
_FOLDER = Path("reports") / "models"
_LARGEST = (1 << 31) - 1


def takes_objects(job: Callable[P, R]) -> Callable[P, R]:
    """Have a job take models, samples and metrics as objects: its arguments `model`, `other`, `data` and `metric`.

    A model is written to `reports/models`, so that what is written of the run can name it. Samples and metrics have
    names while the job runs.
    """
    signature = inspect.signature(job)

    @functools.wraps(job)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        with ExitStack() as stack:
            for name in _MODELS:
                if name in bound.arguments:
                    bound.arguments[name] = model_file(bound.arguments[name])
            for name in _NAMED:
                value = bound.arguments.get(name)
                if value is not None and not isinstance(value, str | Path):
                    _check_here(name, bound.arguments)
                    value = _samples(value) if name == "data" else value
                    bound.arguments[name] = stack.enter_context(named(value))
            return job(*bound.args, **bound.kwargs)

    return wrapped


def _check_here(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises OptionError for an object that other processes would have to know."""
    elsewhere = next((option for option in ("processes", "dask") if arguments.get(option)), None)
    if elsewhere is not None:
        raise OptionError(
            f"{name} is an object of this process, which others do not know: leave {elsewhere}, or give files or an "
            "importable name"
        )


def model_file(model: Any) -> Any:
    """The path of a model: what is in memory is written to `reports/models`, by its name and content.

    Raises ModelError for what is no model, or too large for one file.
    """
    if model is None or isinstance(model, str | Path):
        return model
    proto = _proto(model)
    try:
        content = proto.SerializeToString(deterministic=True)
    except ValueError:
        content = b""
    if not 0 < len(content) <= _LARGEST:
        raise ModelError("the model has more than 2 GiB; save it with external data, and give its path")
    stem = re.sub(r"[^\w.-]+", "_", proto.graph.name).strip("._")[:60] or "model"
    path = _FOLDER / f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.onnx"
    with told(_FOLDER, "give the model's path"):
        make_folder(_FOLDER)
        if not path.exists():
            write_whole_bytes(path, content)
    return path


def _proto(model: Any) -> Any:
    import onnx
    import onnx_ir as ir

    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, ir.Model):
        return ir.to_proto(model)
    raise ModelError(
        f"a {type(model).__name__} is no model: give the path of an ONNX file, an onnx.ModelProto or an onnx_ir.Model"
    )


def _samples(data: Any) -> Any:
    """Samples that can be gone through again: an iterator is read into a list, one dict is one sample."""
    if isinstance(data, Mapping):
        return [data]
    if hasattr(data, "__next__"):  # a generator, which gives its samples once
        return list(data)
    return data
