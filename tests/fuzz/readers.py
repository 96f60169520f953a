"""The readers that are fuzzed: each takes a file's bytes, and returns or raises PrecisionLabError, nothing else."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path

import onnx
import onnx.parser

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.calibration.cache import read_cache, read_cache_file
from precisionlab.calibration.fingerprint import fingerprint_from_json, read_fingerprint
from precisionlab.calibration.state import read_state
from precisionlab.data.folder import open_folder
from precisionlab.data.listing import find_listing, read_labels, read_listing
from precisionlab.data.manifest import Manifest
from precisionlab.errors import PrecisionLabError
from precisionlab.jobs.plan_source import model_of, run_beside, source_of, with_layers_of
from precisionlab.model import Model, load_model
from precisionlab.plan.file import plan_from_dict, read_plan

_LAYERS = {"conv": ("conv", "relu"), "gemm": ("gemm",), "node_of_y": ("node_of_y",)}
_MOST_SAMPLES = 3  # of a file with many
_BMP = bytes.fromhex(  # 2×2 pixels
    "424d46000000000000003600000028000000020000000200000001001800000000001000000000000000000000000000000000000000"
    "0000ffffff000000ff00ff000000"
).ljust(0x46, b"\0")

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def survives(read: Callable[[bytes], None], content: bytes) -> None:
    """Read the content. A PrecisionLabError that says something is as good as success; anything else goes up."""
    said = "nothing was wrong"
    try:
        read(content)
    except PrecisionLabError as error:
        said = str(error)
    assert said.strip()


def _model(content: bytes) -> None:
    load_model(_file("model.onnx", content))


def _cache(content: bytes) -> None:
    found = read_cache_file(_file("calibration.cache", content))
    again = read_cache(found.to_bytes(), "again")
    assert again.to_bytes() == found.to_bytes()
    assert list(again.scales) == list(found.scales)


def _fingerprint(content: bytes) -> None:
    found = read_fingerprint(_file("calibration.cache.json", content))
    assert fingerprint_from_json(found.to_json(), "again") == found


def _plan(content: bytes) -> None:
    """The same bytes as a plan, and as the run beside it."""
    path = _file("plan.json", content)
    _file("run.json", content)
    try:
        plan = read_plan(path, "0" * 64, _LAYERS)
        assert plan_from_dict(plan.to_dict()) == plan
    except PrecisionLabError:
        pass
    run = run_beside(path)
    model_of(run, path)
    source_of(run, None)
    with_layers_of(run, _tiny("float[1,2]"))


def _manifest(content: bytes) -> None:
    folder = _folder("manifest")
    (folder / "sample.bmp").write_bytes(_BMP)
    (folder / "labels.csv").write_text("sample,label\nsample.bmp,1\n")
    (folder / "list.csv").write_text("path\nsample.bmp\n")
    _read_folder(folder, "dataset.toml", content, _tiny("float[n,3,h,w]"))


def _listing(content: bytes) -> None:
    """The same bytes as a listing, CSV or JSON lines, and as labels."""
    folder = _folder("listing")
    name = "samples.jsonl" if content.startswith(b"{") else "samples.csv"
    file = folder / name
    file.write_bytes(content)
    try:
        found = find_listing(folder, Manifest())
        assert found is not None
        read_listing(found, folder)
    except PrecisionLabError:
        pass
    try:
        read_labels(folder, Manifest(labels_file=name))
    finally:
        file.unlink()


def _arrays(content: bytes) -> None:
    """An .npy, .npz or an image, by how it begins; as one sample, and as many where it holds many."""
    if content.startswith((b"\x93NUMPY", b"PK")):
        name = "sample.npy" if content.startswith(b"\x93") else "sample.npz"
        for shape in ("float[1,2]", "float[n,k]"):
            survives(lambda found: _read_folder(_folder("arrays"), name, found, _tiny(shape)), content)  # noqa: B023
    else:
        _read_folder(_folder("arrays"), "sample.png", content, _tiny("float[n,3,h,w]"))


def _read_folder(folder: Path, name: str, content: bytes, model: Model) -> None:
    file = folder / name
    file.write_bytes(content)
    try:
        for entry in islice(open_folder(folder, model).entries(), _MOST_SAMPLES):
            entry.read()
    finally:
        file.unlink()


def _buildlog(content: bytes) -> None:
    layers_of("Layers:" + content.decode("utf-8", "replace"))


def _state(content: bytes) -> None:
    found = read_state(_file("histograms.npz", content))
    again = read_state(_file("histograms.npz", found.to_bytes()))
    assert (again.context, again.samples, list(again.histograms)) == (
        found.context,
        found.samples,
        list(found.histograms),
    )
    for histogram in found.histograms.values():  # what a merge of shards does with them
        histogram.merge(histogram)
        assert histogram.width > 0
        assert histogram.count >= 0


READERS: Mapping[str, Callable[[bytes], None]] = {
    "model": _model,
    "cache": _cache,
    "fingerprint": _fingerprint,
    "plan": _plan,
    "manifest": _manifest,
    "listing": _listing,
    "arrays": _arrays,
    "buildlog": _buildlog,
    "state": _state,
}


def fastest_folder() -> str | None:
    """Where temporary files cost no disk; None where that is nowhere."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@cache
def _tiny(shape: str) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({shape} x) => (float y) {{ y = ReduceMax(x) }}'
    return load_model(_file("tiny.onnx", onnx.parser.parse_model(text).SerializeToString()))


def _file(name: str, content: bytes) -> Path:
    path = _folder("files") / name
    path.write_bytes(content)
    return path


@cache
def _folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
