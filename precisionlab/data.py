"""Calibration data: a folder of samples and its manifest, read one sample at a time."""

from __future__ import annotations

import csv
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precisionlab.errors import DataError
from precisionlab.model import Model, TensorInfo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "dataset.toml"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_ARRAY_SUFFIXES = frozenset({".npz", ".npy"})
RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class Sample:
    """One run of the model: its inputs by name, with the batch dimension, and its label."""

    name: str
    inputs: Mapping[str, NDArray[Any]]
    label: str | None = None


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
    labels_file: str | None = None
    metric: str | None = None
    output: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The samples that a run rests on. `files` is empty where the data is random.

    `sha256` covers manifest, labels and samples, by name and content.
    """

    model_inputs: tuple[TensorInfo, ...]
    model_outputs: tuple[TensorInfo, ...]
    manifest: Manifest
    folder: Path | None
    files: tuple[Path, ...]
    labels: Mapping[str, str]
    sha256: str
    seed: int
    random_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Whether the inputs are noise, which finds the wrong layers."""
        return self.folder is None

    @property
    def is_labelled(self) -> bool:
        """Whether every sample has a label."""
        return bool(self.files) and all(file.name in self.labels for file in self.files)

    def __len__(self) -> int:
        return RANDOM_SAMPLES if self.is_random else len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        """Read one sample after the other. Raises DataError with the file's name."""
        if self.folder is None:
            yield from _random_samples(self)
        for file in self.files:
            yield Sample(file.name, _read_inputs(file, self.model_inputs, self.manifest), self.labels.get(file.name))


def open_dataset(folder: Path, model: Model, limit: int | None, seed: int) -> Dataset:
    """Look through a data folder. With a limit, that many samples are chosen by the seed.

    Raises DataError where there is no sample, or the manifest or the labels cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    manifest = read_manifest(folder)
    _check_manifest(manifest, model, folder)
    found = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in _ARRAY_SUFFIXES | IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{folder}: no sample in it; put .npz, .npy or image files there, one for each sample")
    if limit is not None and limit < len(found):
        chosen = np.random.default_rng(seed).choice(len(found), limit, replace=False)
        found = [found[i] for i in sorted(chosen)]
    labels = _read_labels(folder, manifest)
    extra = [folder / name for name in (MANIFEST, manifest.labels_file or "") if name and (folder / name).is_file()]
    return Dataset(model.inputs, model.outputs, manifest, folder, tuple(found), labels, _hash([*extra, *found]), seed)


def random_dataset(model: Model, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Dataset:
    """Standard normal inputs (0 or 1 for integers), for want of data.

    `shapes` gives the shape of inputs with dynamic dimensions. Raises DataError where one is missing.
    """
    known = {}
    for info in model.inputs:
        shape = shapes.get(info.name, info.shape)
        if shape is None or not all(isinstance(dim, int) for dim in shape[1:]):
            raise DataError(
                f"{model.path}: input {info.name!r} has dynamic dimensions {list(shape or ())}; "
                f"give samples with --data, or its shape with --shape {info.name}:1x3x224x224"
            )
        known[info.name] = tuple(dim if isinstance(dim, int) else 1 for dim in shape)
        if not _fits(known[info.name], info):
            given = "x".join(map(str, shape))
            raise DataError(f"--shape {info.name}:{given} does not fit; the model wants {_dims(info)}")
    unknown = sorted(set(shapes) - set(known))
    if unknown:
        raise DataError(f"--shape {unknown[0]}: the model has no such input; it has {', '.join(known)}")
    name = f"random-{seed}-" + ",".join(f"{key}:{'x'.join(map(str, shape))}" for key, shape in known.items())
    return Dataset(model.inputs, model.outputs, Manifest(name="random"), None, (), {}, name, seed, known)


def read_manifest(folder: Path) -> Manifest:
    """Read `dataset.toml`, if there is one. Raises DataError for keys or values that mean nothing."""
    path = folder / MANIFEST
    if not path.is_file():
        return Manifest()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    labels = _table(data, "labels", path)
    inputs = _table(data, "inputs", path)
    _only(data, ("name", "description", "model", "inputs", "labels"), path, "")
    _only(labels, ("file", "metric", "output"), path, "labels.")
    return Manifest(
        name=_text(data, "name", path) or "",
        description=_text(data, "description", path) or "",
        model=_text(data, "model", path),
        inputs={name: _input_spec(_table(inputs, name, path), name, path) for name in inputs},
        labels_file=_text(labels, "file", path),
        metric=_text(labels, "metric", path),
        output=_text(labels, "output", path),
    )


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of the folder. Raises DataError where the name leads out of it."""
    path = (folder / name).resolve()
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
        "dtype": lambda text: np.dtype(text).name,
        "size": _size,
        "scale": _number,
        "mean": _numbers,
        "std": _divisors,
    }
    for key, read in readers.items():
        if key in data:
            try:
                spec[key] = read(data[key])
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}: {where}{key}: {error}") from None
    return InputSpec(**spec)


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise ValueError("write [height, width] in pixels")
    return value[0], value[1]


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
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


def _check_manifest(manifest: Manifest, model: Model, folder: Path) -> None:
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


def _read_labels(folder: Path, manifest: Manifest) -> dict[str, str]:
    if manifest.labels_file is None:
        return {}
    path = inside(folder, manifest.labels_file, str(folder / MANIFEST))
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets write a byte order mark
            rows = csv.DictReader(stream)
            if not {"sample", "label"} <= set(rows.fieldnames or ()):
                raise DataError(f"{path}: the first line must be the header sample,label")
            labels = {row["sample"]: row["label"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: labels cannot be read: {error}") from None
    short = [sample for sample, label in labels.items() if sample is None or label is None]
    if short:
        raise DataError(f"{path}: the line of sample {short[0]!r} has no label; give each line all columns")
    return labels


def _read_inputs(file: Path, inputs: Sequence[TensorInfo], manifest: Manifest) -> dict[str, NDArray[Any]]:
    arrays = _read_arrays(file, inputs, manifest)
    names = {info.name for info in inputs}
    missing, extra = sorted(names - set(arrays)), sorted(set(arrays) - names)
    if missing or extra:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}, which the model does not take"
        raise DataError(f"{file}: {wrong}; the model's inputs are {', '.join(info.name for info in inputs)}")
    return {info.name: _fitted(arrays[info.name], info, manifest.inputs.get(info.name), file) for info in inputs}


def _read_arrays(file: Path, inputs: Sequence[TensorInfo], manifest: Manifest) -> dict[str, NDArray[Any]]:
    suffix = file.suffix.lower()
    if suffix == ".npz":
        return _load_npz(file)
    if len(inputs) != 1:
        raise DataError(
            f"{file}: the model has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); "
            "give each sample as .npz with an array for each"
        )
    if suffix == ".npy":
        return {inputs[0].name: _load_npy(file)}
    return {inputs[0].name: _read_image(file, inputs[0], manifest.inputs.get(inputs[0].name, InputSpec()))}


def _load_npz(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for one cause: a damaged file
        raise DataError(f"{file}: not a readable .npz file: {_first_line(error)}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{file}: not a readable .npz file: {name!r} in it is not an array")
    return arrays


def _load_npy(file: Path) -> NDArray[Any]:
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # as above
        raise DataError(f"{file}: not a readable .npy file: {_first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{file}: not a readable .npy file: it is an archive; call it .npz")
    return array


def _read_image(file: Path, info: TensorInfo, spec: InputSpec) -> NDArray[np.float32]:
    from PIL import Image

    size = spec.size or _image_size(info, spec)
    try:
        with Image.open(file) as image:
            picture = image.convert("L" if spec.color == "L" else "RGB")
            if size is not None and picture.size != (size[1], size[0]):
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, np.float32)
    except Exception as error:  # Pillow raises many kinds for one cause: a damaged file
        raise DataError(f"{file}: not a readable image: {_first_line(error)}") from None
    pixels = pixels[..., None] if spec.color == "L" else pixels
    pixels = pixels[..., ::-1] if spec.color == "BGR" else pixels
    channels = pixels.shape[-1]
    if not {len(spec.mean), len(spec.std)} <= {1, channels}:
        raise DataError(f"{file}: mean or std in {MANIFEST} has not one value for each of {channels} channels")
    values = (pixels * np.float32(spec.scale) - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if spec.layout == "NCHW" else values)[None]


def _image_size(info: TensorInfo, spec: InputSpec) -> tuple[int, int] | None:
    if info.shape is None or len(info.shape) != 4:
        return None
    height, width = info.shape[2:] if spec.layout == "NCHW" else info.shape[1:3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _fitted(array: NDArray[Any], info: TensorInfo, spec: InputSpec | None, file: Path) -> NDArray[Any]:
    """The array as the model takes it, or a DataError that says what is wrong with it."""
    where = f"{file}: input {info.name!r}"
    wanted = None if info.dtype is None else info.dtype.numpy()
    if spec is not None and spec.dtype is not None:
        try:
            array = array.astype(spec.dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} is {array.dtype} and cannot become {spec.dtype}: {_first_line(error)}") from None
    if wanted is not None and array.dtype != wanted:
        raise DataError(
            f"{where} is {array.dtype}, the model wants {wanted}; save it as {wanted}, "
            f"or set inputs.{info.name}.dtype in {MANIFEST}"
        )
    if info.shape is not None:
        # A sample without its batch dimension is what people save; add it where that fits.
        if array.ndim == len(info.shape) - 1 and not (isinstance(info.shape[0], int) and info.shape[0] != 1):
            array = array[None]
        if not _fits(array.shape, info):
            found = "×".join(map(str, array.shape)) or "scalar"
            raise DataError(f"{where} has shape {found}, the model wants {_dims(info)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise DataError(f"{where} holds {count} values that are NaN or Inf; mend or remove the sample")
    return np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension


def _fits(shape: Sequence[int], info: TensorInfo) -> bool:
    return info.shape is None or (
        len(shape) == len(info.shape)
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(info.shape, shape, strict=True))
    )


def _dims(info: TensorInfo) -> str:
    return "×".join("?" if dim is None else str(dim) for dim in info.shape or ()) or "a scalar"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _random_samples(dataset: Dataset) -> Iterator[Sample]:
    for index in range(RANDOM_SAMPLES):
        generator = np.random.default_rng((dataset.seed, index))
        inputs: dict[str, NDArray[Any]] = {}
        for info in dataset.model_inputs:
            shape = dataset.random_shapes[info.name]
            dtype = np.dtype(np.float32) if info.dtype is None else info.dtype.numpy()
            if dtype.kind in "fV":  # V: bfloat16 and its like
                inputs[info.name] = generator.standard_normal(shape, np.float32).astype(dtype)
            else:
                inputs[info.name] = generator.integers(0, 2, shape).astype(dtype)
        yield Sample(f"random {index}", inputs)


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
