"""Calibration folders: a model, its samples as `.npz` files, and their labels.

- `<out>/<id>/<id>.onnx`
- `<out>/<id>/data/dataset.toml`: what the samples are, the dtype of every input, how labels are judged
- `<out>/<id>/data/labels.csv`: sample,label
- `<out>/<id>/data/0000.npz` and on: one run of the model each, an array per input
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One run of the model."""

    inputs: Mapping[str, Array]
    """Input name → array with batch dimension, in the dtype that the model wants."""
    label: str
    """A class index, a text, a number or JSON: whatever the task's metric reads."""


@dataclass(frozen=True)
class Recipe:
    """How one model and its labelled data are made."""

    id: str
    description: str
    model: Callable[[], Path]
    samples: Callable[[], Iterable[Sample]]
    output: str
    """The model output that the labels judge."""
    metric: str | None = None
    """`accuracy` for integer class labels; None where a class of `examples/metrics.py` is needed."""


def write(recipe: Recipe, out: Path) -> int:
    """Write the folder of `recipe` below `out`, replacing an earlier one; returns the number of samples."""
    folder = out / recipe.id
    if folder.exists() and not (folder / "data" / "dataset.toml").is_file():
        raise click.ClickException(f"{folder} is in the way, and was not written by this script")
    partial = out / f".{recipe.id}.partial"  # renamed at the end: a folder that is there is complete
    shutil.rmtree(partial, ignore_errors=True)
    data = partial / "data"
    data.mkdir(parents=True)
    shutil.copyfile(recipe.model(), partial / f"{recipe.id}.onnx")

    dtypes: dict[str, str] = {}
    count = 0
    with (data / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        labels = csv.writer(file, lineterminator="\n")
        labels.writerow(["sample", "label"])
        for count, sample in enumerate(recipe.samples(), start=1):
            name = f"{count - 1:04d}.npz"
            found = {key: str(array.dtype) for key, array in sample.inputs.items()}
            dtypes = dtypes or found
            if found != dtypes:
                raise ValueError(f"{recipe.id}: {name} has inputs {found}, those before it {dtypes}")
            # Rendered pages are mostly white: compressed they take a twentieth.
            np.savez_compressed(data / name, allow_pickle=False, **sample.inputs)
            labels.writerow([name, sample.label])
    (data / "dataset.toml").write_text(_manifest(recipe, dtypes), encoding="utf-8")

    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return count


def _manifest(recipe: Recipe, dtypes: Mapping[str, str]) -> str:
    lines = [f"name = {_quoted(recipe.id)}", f"description = {_quoted(recipe.description)}"]
    for name, dtype in dtypes.items():
        lines += ["", f"[inputs.{_key(name)}]", f"dtype = {_quoted(dtype)}"]
    lines += ["", "[labels]", 'file = "labels.csv"']
    if recipe.metric is not None:
        lines.append(f"metric = {_quoted(recipe.metric)}")
    lines.append(f"output = {_quoted(recipe.output)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML basic string


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "")
    return name if bare.isascii() and bare.isalnum() else _quoted(name)
