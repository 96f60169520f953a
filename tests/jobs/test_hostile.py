"""Files that somebody made to do harm: each ends in exit code 2 and one sentence.

Nothing is read that lies elsewhere, nothing waited for, nothing half written; memory and time are bounded.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import load, proto
from onnx import TensorProto, helper
from PIL import Image

from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.cli import cli
from precisionlab.errors import EngineError, ModelError
from precisionlab.model import load_model

Args = list[str]
Make = Callable[[], Args]
Case = tuple[Make, str]

ADD = "(float[2,3] x) => (float[2,3] y) { y = Add(x, w) }"
IMAGE = "(float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }"
ANY_IMAGE = "(float[1,3,h,v] x) => (float[1,3,h,v] y) { y = Relu(x) }"
ROW = "(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
ANY = "(float[n,k] x) => (float[n,k] y) { y = Relu(x) }"
HEADER = b"TRT-8601-EntropyCalibration2\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX'")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside.npy").write_bytes(npy((1, 4), np.ones(4)))
    (tmp_path / "outside.csv").write_text("path\na.npy\n")
    (tmp_path / "outside.bin").write_bytes(bytes(24))
    (tmp_path / "outside.toml").write_text('name = "outside"\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def refused(make: Make, words: str) -> None:
    args = make()
    before = sorted(Path().rglob("*"))
    started = time.monotonic()
    result: Result = CliRunner().invoke(cli, args)
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("precisionlab: ")
    assert words in last
    assert len(last) < 2100
    assert "Traceback" not in result.stderr
    assert sorted(Path().rglob("*")) == before
    assert time.monotonic() - started < 30


# --- what is made


def model(content: onnx.ModelProto | bytes, name: str = "m.onnx") -> Args:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return ["sweep", name]


def external(**entries: str) -> Make:
    """A model whose initialiser says that it lies in another file."""

    def make() -> Args:
        found = proto(ADD, {"w": np.zeros((2, 3), np.float32)})
        tensor = found.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"offset": "0", "length": "24", **entries}.items():
            tensor.external_data.add(key=key, value=value)
        Path("w.bin").write_bytes(bytes(24))
        Path("link.bin").symlink_to("../outside.bin")
        Path("folder").symlink_to("..")
        Path("loop").symlink_to("loop")
        os.mkfifo("pipe")
        return model(found)

    return make


def weight(change: Callable[[TensorProto], Any]) -> Make:
    """A model whose initialiser was tampered with."""

    def make() -> Args:
        found = proto(ADD, {"w": np.zeros((2, 3), np.float32)})
        change(found.graph.initializer[0])
        return model(found)

    return make


def reshaped(*dims: int) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def as_floats(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 5)


def sparse() -> Args:
    found = proto(ADD)
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 3]))
    return model(found)


def nested(depth: int) -> Args:
    """If within If, without end."""
    found = proto("(float[2] x, bool c) => (float[2] y) { y = Relu(x) }")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [y])
    leaf = graph
    for level in range(depth):
        inner = helper.make_node("If", ["c"], ["y"], f"if{level}", then_branch=graph, else_branch=leaf)
        graph = helper.make_graph([inner], "g", [], [y])
    found.graph.node[0].CopyFrom(graph.node[0])
    return model(found)


def endless_messages() -> Args:
    """A graph in an attribute of a node of a graph, two hundred times."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = field(2, b"g")
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    return model(field(7, graph))


def called_in_a_circle() -> Args:
    found = proto("(float[2] x) => (float[2] y) { y = my.f(x) }", domains=', "my" : 1')
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    for name, other in (("f", "g"), ("g", "f")):
        node = helper.make_node(other, ["a"], ["b"], domain="my")
        found.functions.append(helper.make_function("my", name, ["a"], ["b"], [node], opsets))
    return model(found)


def circle() -> Args:
    found = proto("(float[2] x) => (float[2] y) { a = Add(x, x) y = Relu(a) }")
    found.graph.node[0].input[1] = "y"
    return model(found)


def named_twice() -> Args:
    found = proto("(float[2] x) => (float[2] y) { y = Relu(x) z = Neg(x) }")
    found.graph.node[1].output[0] = "y"
    return model(found)


def escaping_name() -> Args:
    return weight(lambda tensor: (setattr(tensor, "name", "\x1b[2Jw\nx"), reshaped(7)(tensor)))()


def npy(shape: Any, values: Any = (), dtype: str = "<f4", version: bytes = b"\x01\x00", padding: int = 0) -> bytes:
    """An .npy file whose header says what it likes."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b" " * padding + b"\n"
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + np.asarray(values, np.float32).tobytes()


def npz(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def data(name: str, content: bytes | Callable[[], bytes], body: str = ROW, manifest: str = "") -> Make:
    """A folder of one sample."""

    def make() -> Args:
        Path("data").mkdir()
        (Path("data") / name).write_bytes(content if isinstance(content, bytes) else content())
        if manifest:
            (Path("data") / "dataset.toml").write_text(manifest)
        return [*model(proto(body)), "--data", "data"]

    return make


class Evil:
    def __reduce__(self) -> Any:
        return Path("ran").write_text, ("x",)


def pickled_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], object), allow_pickle=True)
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims this size, and holds one line, or the beginning of one."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    line = zlib.compress(bytes(min(width * 3 + 1, 1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", line), (b"IEND", b""))
    )


def picture(kind: str, keep: float = 1.0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()[: int(len(stream.getvalue()) * keep)]


def toml(text: str | bytes) -> Make:
    """A folder with this manifest beside a good sample, and links and pipes to be named."""

    def make() -> Args:
        folder = Path("data")
        folder.mkdir()
        (folder / "a.npy").write_bytes(npy((1, 4), np.ones(4)))
        (folder / "dataset.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        (folder / "link.csv").symlink_to("../../outside.csv")
        os.mkfifo(folder / "pipe.csv")
        return [*model(proto(ROW)), "--data", "data"]

    return make


def in_data(act: Callable[[Path], Any]) -> Make:
    def make() -> Args:
        args = data("a.npy", npy((1, 4), np.ones(4)))()
        act(Path("data"))
        return args

    return make


def model_outside() -> Args:
    args = toml('model = "../m.onnx"\n')()
    return ["calibrate", *args[2:]]


def plan(content: Any) -> Make:
    """A sweep that measures this plan: JSON, text or bytes."""

    def make() -> Args:
        args = model(proto(ROW))
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        Path("plan.json").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return [*args, "--plan", "plan.json"]

    return make


GOOD_PLAN = {"schema": 1, "model": {"sha256": "0" * 64}, "default": "fp16", "pins": []}


def sized(name: str, size: int, head: bytes, *args: str) -> Make:
    """A file with a hole: it takes no space, and reads as NUL bytes."""

    def make() -> Args:
        with Path(name).open("wb") as stream:
            stream.write(head)
            stream.truncate(size)
        return [*args, name]

    return make


def special(path: str, *args: str) -> Make:
    """A pipe that nobody writes to; or what else stands at that path."""

    def make() -> Args:
        if path == "pipe":
            os.mkfifo("pipe")
        if "--plan" in args:
            model(proto(ROW))
        return [*args, path]

    return make


MODELS: dict[str, Case] = {
    "external data with an absolute path": (external(location="/etc/hostname"), "outside the model's folder"),
    "external data in the folder above": (external(location="../outside.bin"), "outside the model's folder"),
    "external data by a link": (external(location="link.bin"), "outside the model's folder"),
    "external data by a linked folder": (external(location="folder/outside.bin"), "outside the model's folder"),
    "external data by a link to itself": (external(location="loop"), "is no usable path"),
    "external data with a NUL": (external(location="w\0.bin"), "is no usable path"),
    "external data without a place": (external(location=""), "outside the model's folder"),
    "external data in a pipe": (external(location="pipe"), "a pipe or a device"),
    "external data in a folder": (external(location="."), "Is a directory"),
    "external data behind the end": (external(location="w.bin", offset="8"), "ends at byte 32, the file is shorter"),
    "external data before the beginning": (external(location="w.bin", offset="-8"), "the file is shorter"),
    "external data with another length": (external(location="w.bin", length="25"), "holds 25 bytes"),
    "external data with less than nothing": (external(location="w.bin", length="-24"), "holds -24 bytes"),
    "external data with a word": (external(location="w.bin", offset="x"), "offset or length is not a number"),
    "external data with digits without end": (external(location="w.bin", offset="9" * 5000), "is not a number"),
    "too few bytes": (weight(lambda t: setattr(t, "raw_data", bytes(20))), "holds 20 bytes, its shape [2, 3]"),
    "too many bytes": (weight(lambda t: setattr(t, "raw_data", bytes(28))), "type FLOAT need 24"),
    "too few values": (weight(as_floats), "holds 5 values, its shape [2, 3] and type FLOAT need 6"),
    "a negative dimension": (weight(reshaped(-2, -3)), "has the negative dimension -2"),
    "dimensions beyond int64": (weight(reshaped(2**62, 4)), "need 73786976294838206464"),
    "dimensions that overflow to what is there": (weight(reshaped(2**62, 4, 2, 3)), "tensor 'w' holds 24 bytes"),
    "a type that is none": (weight(lambda t: setattr(t, "data_type", 99)), "has the type 99"),
    "no type": (weight(lambda t: setattr(t, "data_type", 0)), "has the type 0"),
    "a sparse initialiser": (sparse, "initialiser 'w' is sparse"),
    "protobuf without an end": (lambda: model(b"\x3b" * 1_000_000), "protobuf cannot parse it"),
    "messages within messages": (endless_messages, "protobuf cannot parse it"),
    "functions that call each other": (called_in_a_circle, "calls itself"),
    "nodes in a circle": (circle, "not a valid ONNX model"),
    "one name for two tensors": (named_twice, "not a valid ONNX model"),
    "a name that steers the terminal": (escaping_name, r"tensor '\x1b[2Jw\nx' holds 24 bytes"),
    "a model of 3 GB": (sized("m.onnx", 3 << 30, b"\x08\x08", "sweep"), "ONNX ends at 2 GiB"),
    "a device as model": (special("/dev/zero", "sweep"), "/dev/zero: a pipe or a device, which may never end"),
    "a pipe as model": (special("pipe", "sweep"), "pipe: a pipe or a device"),
    "a name too long": (special("m" * 5000, "sweep"), "no such file"),
    "a path through a file": (special("../outside.bin/m.onnx", "sweep"), "no such file"),
}

DATA: dict[str, Case] = {
    "a pickle": (data("a.npy", pickle.dumps(Evil())), "not a readable .npy file"),
    "a pickle in an array": (data("a.npy", pickled_npy), "Python objects (a pickle), which are never read"),
    "a pickle in an archive": (
        data("a.npz", lambda: npz({"x.npy": pickled_npy()})),
        "(a pickle), which are never read",
    ),
    "a bare pickle in an archive": (
        data("a.npz", lambda: npz({"x.npy": pickle.dumps(Evil())})),
        "a.npz: not a readable",
    ),
    "more promised than there is": (data("a.npy", npy((1000, 4), np.ones(4)), ANY), "header promises 16,000 bytes"),
    "a terabyte promised": (data("a.npy", npy((1 << 20, 1 << 18)), ANY), "would take 1,024.0 GiB"),
    "a shape beyond int64": (data("a.npy", npy((1 << 62, 1 << 62)), ANY), "would take"),
    "a negative shape": (data("a.npy", npy((-1, 4), np.ones(4)), ANY), "its header makes no sense"),
    "no bytes a value": (data("a.npy", npy((10**12, 4), dtype="|V0"), ANY), "its header makes no sense"),
    "a header that is a program": (data("a.npy", npy("__import__('os').mkdir('ran')")), "not a readable .npy file"),
    "a header nested without end": (data("a.npy", npy("(" * 4000)), "not a readable .npy file"),
    "a header of 4 GiB": (
        data("a.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff"),
        "its header claims to be 4,294,967,295 bytes",
    ),
    "an archive that names one array twice": (
        data("a.npz", lambda: npz({"x": npy((1, 4), np.ones(4)), "x.npy": npy((1, 4), np.ones(4))})),
        "'x' stands in it twice",
    ),
    "an archive of a hundred thousand names": (
        data("a.npz", lambda: npz({f"n{i}": b"" for i in range(20_000)}, zipfile.ZIP_STORED)),
        "lacks x",
    ),
    "a billion pixels": (data("a.png", png(40_000, 40_000), IMAGE), "a.png: more than 178,956,970 pixels"),
    "a line of a billion pixels": (data("a.png", png(1_000_000_000, 1)[:60], IMAGE), "more than 178,956,970"),
    "an image for no size": (data("a.png", png(12_000, 12_000), ANY_IMAGE), "more than 512 MiB; set inputs.x.size"),
    "a size without end": (
        data("a.png", png(4, 4), ANY_IMAGE, "[inputs.x]\nsize = [100000, 100000]\n"),
        "100000×100000 pixels, more than 512 MiB",
    ),
    **{
        f"half a {kind}": (data(f"a.{kind.lower()}", picture(kind, 0.5), IMAGE), "not a readable image")
        for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
    },
    "PostScript called an image": (data("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"), "a.png: "),
    "an empty array": (data("a.npy", b""), "not a readable .npy file"),
    "an empty archive": (data("a.npz", b""), "not a readable .npz file"),
    "an empty image": (data("a.png", b"", IMAGE), "not a readable image"),
    "a pipe among the samples": (in_data(lambda folder: os.mkfifo(folder / "b.npy")), "b.npy: a pipe or a device"),
    "a sample by a link": (in_data(lambda f: (f / "b.npy").symlink_to("../../outside.npy")), "outside the data folder"),
    "a pipe as manifest": (in_data(lambda folder: os.mkfifo(folder / "dataset.toml")), "a pipe or a device"),
    "a folder as manifest": (in_data(lambda folder: (folder / "dataset.toml").mkdir()), "Is a directory"),
    "a manifest by a link": (
        in_data(lambda folder: (folder / "dataset.toml").symlink_to("../../outside.toml")),
        "'dataset.toml' lies outside the data folder",
    ),
    "a pipe as listing": (toml('[samples]\nfile = "pipe.csv"\n'), "pipe.csv: the listing: a pipe or a device"),
    "a pipe as labels": (toml('[labels]\nfile = "pipe.csv"\n'), "pipe.csv: labels: a pipe or a device"),
    "a listing outside": (toml('[samples]\nfile = "../../outside.csv"\n'), "lies outside the data folder"),
    "a listing at an absolute path": (toml('[samples]\nfile = "/etc/samples.csv"\n'), "lies outside the data folder"),
    "a listing by a link": (toml('[samples]\nfile = "link.csv"\n'), "lies outside the data folder"),
    "labels outside": (toml('[labels]\nfile = "../../outside.csv"\n'), "lies outside the data folder"),
    "a path with a NUL": (toml('[labels]\nfile = "a\\u0000b"\n'), "is no usable path"),
    "a model outside": (model_outside, "'../m.onnx' lies outside the data folder"),
    "a manifest nested without end": (toml("a = " + "[" * 100_000), "dataset.toml: cannot be read"),
    "a manifest with a NUL": (toml(b"name = 'a\0b'"), "dataset.toml: cannot be read"),
    "a manifest with a number without end": (toml(f"[inputs.x]\nscale = 1{'0' * 400}\n"), "inputs.x.scale"),
    "a type that is a pickle": (toml('[inputs.x]\ndtype = "O"\n'), "'O' is no type that a model takes"),
    "a type of a gigabyte": (toml('[inputs.x]\ndtype = "V1073741824"\n'), "is no type that a model takes"),
    "a listing in a line": (
        in_data(lambda f: (f / "samples.csv").write_bytes(b"path\n" + b"a" * 200_000)),
        "field larger",
    ),
    "a listing without end": (
        in_data(lambda folder: sized(str(folder / "samples.csv"), 1 << 32, b"path\n")()),
        "the listing: larger than 256 MiB",
    ),
    "a listing nested without end": (
        in_data(lambda folder: (folder / "samples.jsonl").write_text('{"path": "a.npy", "label": ' + "[" * 90_000)),
        "line 1: not JSON: nested too deeply",
    ),
    "a label that is another's": (
        in_data(
            lambda folder: (
                (folder / "dataset.toml").write_text('[labels]\nfile = "l.csv"\n'),
                (folder / "l.csv").write_text("sample,label\na.npy,1\na.npy,2\n"),
            )
        ),
        "line 3: sample 'a.npy' has another label before",
    ),
}

PLANS: dict[str, Case] = {
    "another model's": (plan(GOOD_PLAN), "made for another model"),
    "nested without end": (plan("[" * 100_000), "plan.json: not JSON: nested too deeply"),
    "nested deeply": (plan('{"schema": 1, "x": ' + "[" * 500 + "]" * 500 + "}"), "not JSON: nested too deeply"),
    "NaN": (plan('{"schema": NaN}'), "not JSON: NaN is no JSON"),
    "a number beyond floats": (plan('{"schema": 1e999}'), "not JSON: 1e999 is too large for a number"),
    "digits without end": (plan('{"schema": ' + "9" * 10_000 + "}"), "plan.json: not JSON"),
    "a large number": (plan('{"schema": ' + "9" * 1000 + "}"), "this version reads 1 and 2"),
    "one key twice": (plan('{"schema": 1, "schema": 1}'), "not JSON: key 'schema' stands there twice"),
    "NUL bytes": (plan(b"\0" * 100), "plan.json: not JSON"),
    "UTF-16": (plan(json.dumps(GOOD_PLAN).encode("utf-16")), "plan.json: not JSON"),
    "nothing": (plan(b""), "plan.json: not JSON"),
    "a pin of a lone surrogate": (plan({**GOOD_PLAN, "default": "\ud800"}), r"unknown precision '\ud800'"),
    "a device": (special("/dev/zero", "sweep", "m.onnx", "--plan"), "a pipe or a device"),
    "a pipe": (special("pipe", "sweep", "m.onnx", "--plan"), "a pipe or a device"),
    "a folder": (special(".", "sweep", "m.onnx", "--plan"), "Is a directory"),
    "a hole of a terabyte": (
        lambda: [*model(proto(ROW)), *sized("plan.json", 1 << 40, b"{", "--plan")()],
        "plan.json: larger than 256 MiB",
    ),
}

CACHES: dict[str, Case] = {
    "a line of a gigabyte": (sized("c", 1 << 30, HEADER, "cache", "show"), "c: larger than 16 MiB"),
    "a line of a megabyte": (sized("c", 1 << 20, HEADER, "cache", "lint"), "line 2 has"),
    "a device": (special("/dev/zero", "cache", "show"), "/dev/zero: a pipe or a device"),
    "a pipe": (special("pipe", "cache", "lint"), "pipe: a pipe or a device"),
    "a folder": (special(".", "cache", "show"), "Is a directory"),
    "nothing": (sized("c", 0, b"", "cache", "show"), "this is no calibration cache"),
    "NUL bytes": (sized("c", 100, b"", "cache", "show"), "this is no calibration cache"),
    "a byte order mark": (sized("c", 40, b"\xef\xbb\xbf" + HEADER, "cache", "show"), "byte order mark"),
    "a name too long": (special("c" * 5000, "cache", "show"), "File name too long"),
}


def shard(change: Callable[[dict[str, Any]], Any], **arrays: Any) -> Make:
    """The histograms of a shard 1/1 of one sample, tampered with."""

    def make() -> Args:
        args = data("a.npy", npy((1, 4), np.ones(4)))()
        done = CliRunner().invoke(cli, ["calibrate", args[1], "--data", "data", "--shard", "1/1", "--out", "shard"])
        assert done.exit_code == 0, done.output
        with np.load("shard/histograms.npz") as archive:
            found = {**archive, **arrays}
        meta = json.loads(found["meta"].tobytes())
        change(meta)
        found["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        np.savez("shard/histograms.npz", **found)
        return ["calibrate", args[1], "--data", "data", "--merge", "shard", "--out", "merged"]

    return make


def context(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda meta: meta["context"].update(values)


STATES: dict[str, Case] = {
    "a shard of a billion": (shard(context(shard=[1, 10**9])), "its shard is no pair I, N"),
    "a shard of one number": (shard(context(shard=[1])), "its shard is no pair I, N"),
    "other tensors": (shard(lambda meta: meta.update(tensors=["x", "z"])), "histograms of other tensors"),
    "a tensor twice": (shard(lambda meta: meta.update(tensors=["x", "x"])), "a name stands in it twice"),
    "more tensors": (shard(lambda meta: meta.update(tensors=["x", "y", "z"])), "do not fit together"),
    "numbers for names": (shard(lambda meta: meta.update(samples=[1])), "no lists of names"),
    "negative counts": (shard(context(), bins=np.full((2, 4096), -1)), "the bins are no counts"),
    "counts that overflow": (shard(context(), bins=np.full((2, 4096), 2**62)), "the counts make no sense"),
    "an exponent without end": (shard(context(), counts=np.array([[10**9, 0, 0]] * 2)), "do not fit the bins"),
    "a range of NaN": (shard(context(), amax=np.full(2, np.nan)), "do not fit the bins"),
}


@pytest.mark.parametrize("case", STATES)
def test_hostile_histograms_are_refused(case: str) -> None:
    refused(*STATES[case])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("command", [["sweep"], ["cache", "show"], ["verify"]])
def test_a_file_that_must_not_be_read_is_told(command: Args) -> None:
    def make() -> Args:
        Path("secret").write_bytes(b"x")
        Path("secret").chmod(0)
        return [*command, "secret"]

    refused(make, "secret: cannot be read: Permission denied")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc is Linux's")
@pytest.mark.parametrize("command", [("cache", "show"), ("verify",), ("sweep", "m.onnx", "--plan")])
def test_a_file_that_cannot_be_read_is_told_to_root_too(command: tuple[str, ...]) -> None:
    refused(special("/proc/self/mem", *command), "/proc/self/mem: cannot be read: Input/output error")


@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_model_is_refused(case: str) -> None:
    refused(*MODELS[case])


@pytest.mark.parametrize("case", DATA)
def test_hostile_data_are_refused(case: str) -> None:
    refused(*DATA[case])
    assert not Path("ran").exists()


@pytest.mark.parametrize("case", PLANS)
def test_a_hostile_plan_is_refused(case: str) -> None:
    refused(*PLANS[case])


@pytest.mark.parametrize("case", CACHES)
def test_a_hostile_cache_is_refused(case: str) -> None:
    refused(*CACHES[case])


def test_a_plan_with_a_byte_order_mark_is_a_plan() -> None:
    refused(plan(b"\xef\xbb\xbf" + json.dumps(GOOD_PLAN).encode()), "made for another model")


RUN = {
    "model": {"path": "m.onnx"},
    "data": {
        "folder": None, "shapes": {"x": [1, 4]}, "limit": None, "seed": 0, "holdout": 0.25, "skip_bad": False,
        "metric": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"shapes": [[1, 4]]}, "data.shapes"),
        ({"shapes": {"x": [1, 10**30, "4"]}}, "data.shapes"),
        ({"shapes": {"x": [1, -4]}}, "data.shapes"),
        ({"limit": "8"}, "data.limit"),
        ({"limit": 0}, "data.limit"),
        ({"seed": -1}, "data.seed"),
        ({"seed": True}, "data.seed"),
        ({"holdout": 1}, "data.holdout"),
        ({"skip_bad": "no"}, "data.skip_bad"),
        ({"metric": ["os:remove"]}, "data.metric"),
        ({"folder": {}}, "data.folder"),
    ],
)
def test_a_run_beside_a_plan_that_no_sweep_wrote_is_refused(change: dict[str, Any], key: str) -> None:
    def make() -> Args:
        plan(GOOD_PLAN)()
        Path("run.json").write_text(json.dumps({**RUN, "data": {**RUN["data"], **change}}))
        return ["verify", "plan.json"]

    refused(make, f"run.json: {key} is not what a sweep writes")


def test_a_pipe_in_a_run_is_not_waited_for() -> None:
    def make(command: str) -> Make:
        def made() -> Args:
            Path("run").mkdir(exist_ok=True)
            Path("run/plan.json").write_text(json.dumps(GOOD_PLAN))
            if not Path("run/run.json").exists():
                os.mkfifo("run/run.json")
            return [command, "run" if command == "report" else "run/plan.json"]

        return made

    refused(make("verify"), "run.json: a pipe or a device")
    refused(make("report"), "run.json: a pipe or a device")


def test_names_that_are_paths_lead_nowhere() -> None:
    """Neither nodes nor models called like the folder above are written anywhere but where the user said."""
    found = proto("(float[1,4] x) => (float[1,4] y) { a = Relu(x) y = Exp(a) }")
    found.graph.name = "../../graph"
    found.graph.node[0].name, found.graph.node[1].name = "../../x", "/tmp/precisionlab-escaped"
    Path("sub").mkdir()
    Path("sub/...onnx").write_bytes(found.SerializeToString())
    outside = sorted(Path("..").glob("*"))
    swept = CliRunner().invoke(cli, ["sweep", "sub/...onnx", "--precisions", "fp16"])
    assert swept.exit_code in (0, 1), swept.output
    assert {path.name for path in Path().iterdir()} == {"sub", "reports"}
    assert [path.name for path in Path("reports").iterdir()] == ["model"]
    for target in ("trtexec", "polygraphy", "modelopt", "onnxruntime", "json", "typed-onnx"):
        args = ["export", "reports/model/plan.json", "--format", target, "--out", f"out/{target}/file"]
        result = CliRunner().invoke(cli, args)
        assert result.exit_code in (0, 2), result.output
    assert {path.name for path in Path().iterdir()} == {"sub", "reports", "out"}
    assert sorted(Path("..").glob("*")) == outside
    assert not Path("/tmp/precisionlab-escaped").exists()


def test_subgraphs_as_deep_as_protobuf_holds_them_are_read() -> None:
    model = load_model(Path(nested(20)[1]))
    assert [layer.op_types for layer in model.layers] == [("If",)]


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found = proto("(float[2] x) => (float[2] y) { a = Relu(x) y = Exp(a) }")
    found.graph.node[0].name = found.graph.node[1].name = "same"
    assert [node for layer in load(found, tmp_path).layers for node in layer.nodes] == ["same", "same_1"]


def test_a_model_in_the_place_of_its_own_external_data_is_checked_like_any_other(tmp_path: Path) -> None:
    """External data within the model's own file is odd, and harmless."""
    args = external(location="m.onnx", offset="1")()
    model = load_model(Path(args[1]))
    assert model.tensors["w"].shape == (2, 3)
    with pytest.raises(ModelError, match="the file is shorter"):
        load_model(Path(external_again(offset=str(Path(args[1]).stat().st_size - 8))))


def external_again(**entries: str) -> str:
    for name in ("link.bin", "folder", "loop", "pipe"):
        Path(name).unlink()
    return external(location="m.onnx", **entries)()[1]


LIMIT = 3 << 30
MOST_GROWTH = 100 << 20
UNPACKED = 1 << 27

IN_A_CHILD = """
import json, resource, sys
from click.testing import CliRunner
from precisionlab.backends.tensorrt.buildlog import layers_of
from precisionlab.cli import cli
import precisionlab.jobs.calibrate, precisionlab.jobs.sweep
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
for args in json.loads(sys.argv[1]):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is that of imports, until it is forgotten
    before = peak()
    result = CliRunner().invoke(cli, args)
    growth = peak() - before
    print(json.dumps([result.exit_code, growth, result.stderr.splitlines()[-1]]))
"""


def archived(name: str, members: Mapping[str, bytes]) -> Args:
    Path(name).mkdir()
    Path(name, "histograms.npz" if name == "state" else "a.npz").write_bytes(npz(members))
    command = ["calibrate", "m.onnx", "--merge", "state", "--data", "."]
    return command if name == "state" else ["sweep", "m.onnx", "--data", name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_unpacks_to_much_takes_little() -> None:
    model(proto(ROW))
    cases: list[tuple[Args, str]] = [
        (
            archived("rows", {"x.npy": npy((UNPACKED >> 2, 1)) + bytes(UNPACKED)}),
            "rows/a.npz: holds 33,554,432 samples",
        ),
        (
            archived("header", {"x.npy": npy((1, 4), version=b"\2\0", padding=UNPACKED)}),
            "'x' in it: its header claims to be 134,217,7",
        ),
        (
            archived("state", {"meta.npy": npy((UNPACKED + 1,), dtype="|u1") + bytes(UNPACKED + 1)}),
            "'meta' in it would take 134,217,729 bytes",
        ),
        (sized("c", 1 << 32, HEADER, "cache", "show")(), "c: larger than 16 MiB"),
        (sized("large.onnx", 3 << 30, b"\x08\x08", "sweep")(), "ONNX ends at 2 GiB"),
    ]
    code = IN_A_CHILD.format(limit=LIMIT)
    asked = json.dumps([args for args, _ in cases])
    found = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    for (_, words), line in zip(cases, found.stdout.splitlines(), strict=True):
        exit_code, growth, sentence = json.loads(line)
        assert exit_code == 2
        assert words in sentence
        assert growth < MOST_GROWTH, sentence


LINE = "\nName: a, LayerType: b, Inputs: ["
BUILT = f"{LINE}], Outputs: [], TacticName: "
NODES = f"{BUILT}t, Metadata: "


@pytest.mark.parametrize(
    "text",
    [
        BUILT + ", JumpTargetA: 1" * 20_000,
        BUILT + ", StreamId: 1" * 20_000,
        LINE + "{ Name: x" + ", Dimensions: [1]" * 20_000,
        LINE + "{ Name: x" + ", Dimensions: [1], Datatype: Half, Format: " * 20_000,
        LINE + "{ Name: x" + ", Dimensions: [1" + ",1" * 200_000,
        "\nName: a" + ", LayerType: b" * 50_000,
        "\nName: a" * 50_000,
        "\n" * 300_000,
        NODES + "[ONNX Layer: ]" * 50_000,
        NODES + "[ONNX Layer: " + "]   " * 50_000,
        NODES + "[ONNX Layer: " + " (a | " * 50_000 + "]",
    ],
    ids=range(11),
)
def test_a_builders_log_with_names_made_to_hold_it_up_is_read_at_once(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(EngineError):
        layers_of("Layers:" + text)
    assert time.process_time() - started < 5
