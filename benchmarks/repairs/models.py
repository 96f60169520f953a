"""The models that break in FP16: real ones, and small ones made around one pattern each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.typed_models import files_of

Array = NDArray[Any]
REAL = ("magika", "minilm_l3", "digits", "basic_pitch")
SAMPLES = 48  # of a made model
_SEED = 19


class Net:
    """A graph that is written down node by node; each node's name is its output's."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(_SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def weight(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> str:
        """Random weights of a product that gives `gain` times the size of what it takes."""
        return self.weight(self.random.standard_normal((rows, columns)) * gain / math.sqrt(rows))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; what it gives."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def gelu(self, value: str) -> str:
        """As PyTorch exports it: x · (1 + erf(x / √2)) · 0.5."""
        erf = self.op("Erf", self.op("Div", value, self.weight(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", value, self.op("Add", erf, self.weight(1))), self.weight(0.5))

    def model(self, inputs: Mapping[str, tuple[int, list[Any]]], output: str) -> onnx.ModelProto:
        """The model; `inputs` have a type and a shape each."""
        taken = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
        given = helper.make_empty_tensor_value_info(output)
        given.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self._nodes, "made", taken, [given], self._weights)
        found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        found = onnx.shape_inference.infer_shapes(found)
        onnx.checker.check_model(found, full_check=True)
        return found


Made = tuple[onnx.ModelProto, Iterator[Mapping[str, Array]]]


def rms_norm() -> Made:
    """Two feed-forward blocks behind RMSNorms, on a residual stream with a few massive channels (as in LLaMA)."""
    net, width = Net(), 64
    stream = "x"

    def normed(value: str) -> str:
        mean = net.op("ReduceMean", net.op("Pow", value, net.weight(2)), axes=[-1], keepdims=1)
        root = net.op("Sqrt", net.op("Add", mean, net.weight(1e-6)))
        quotient = net.op("Mul", value, net.op("Div", net.weight(1), root))
        return net.op("Mul", quotient, net.weight(net.random.uniform(0.5, 1.5, width)))

    for _ in range(2):
        inner = net.gelu(net.op("MatMul", normed(stream), net.matrix(width, 4 * width)))
        stream = net.op("Add", stream, net.op("MatMul", inner, net.matrix(4 * width, width, 10)))
    output = net.op("MatMul", normed(stream), net.matrix(width, 32))
    sizes = np.full(width, 30, np.float32)
    sizes[[3, 40]] = 2000, 900
    samples = ({"x": net.random.standard_normal((1, 16, width), np.float32) * sizes} for _ in range(SAMPLES))
    return net.model({"x": (TensorProto.FLOAT, [1, 16, width])}, output), samples


def l2_norm() -> Made:
    """An embedding of large numbers, divided by its length: x / √Σx²."""
    net, width = Net(), 128
    hidden = net.op("Relu", net.op("MatMul", "x", net.matrix(64, width)))
    long = net.op("MatMul", hidden, net.matrix(width, width, 1500))
    length = net.op("Sqrt", net.op("ReduceSum", net.op("Mul", long, long), net.weight([-1], np.int64)))
    unit = net.op("Div", long, net.op("Clip", length, net.weight(1e-12)))
    output = net.op("Mul", net.op("MatMul", unit, net.matrix(width, 32)), net.weight(10))
    samples = ({"x": net.random.standard_normal((4, 64), np.float32)} for _ in range(SAMPLES))
    return net.model({"x": (TensorProto.FLOAT, [4, 64])}, output), samples


def masked_attention() -> Made:
    """A block of self-attention with a mask of −1e9, LayerNorm and GELU (as BERTs were exported for years)."""
    net, width, heads, length = Net(), 64, 4, 12

    def split(value: str, order: list[int]) -> str:
        shape = net.weight([0, 0, heads, width // heads], np.int64)
        return net.op("Transpose", net.op("Reshape", value, shape), perm=order)

    def projected(value: str) -> str:
        return net.op("Add", net.op("MatMul", value, net.matrix(width, width)), net.weight(net.random.random(width)))

    def normed(value: str) -> str:
        scale, bias = net.weight(net.random.uniform(0.5, 1.5, width)), net.weight(net.random.random(width))
        return net.op("LayerNormalization", value, scale, bias, axis=-1)

    mask = net.op("Unsqueeze", net.op("Cast", "mask", to=TensorProto.FLOAT), net.weight([1, 2], np.int64))
    bias = net.op("Mul", net.op("Sub", net.weight(1), mask), net.weight(-1e9))
    query, key, value = (split(projected("x"), o) for o in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = net.op("Div", net.op("MatMul", query, key), net.weight(math.sqrt(width // heads)))
    weights = net.op("Softmax", net.op("Add", scores, bias), axis=-1)
    joined = net.op("Transpose", net.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    joined = net.op("Reshape", joined, net.weight([0, 0, width], np.int64))
    stream = normed(net.op("Add", "x", projected(joined)))
    inner = net.gelu(net.op("MatMul", stream, net.matrix(width, 4 * width)))
    output = normed(net.op("Add", stream, net.op("MatMul", inner, net.matrix(4 * width, width))))

    def samples() -> Iterator[Mapping[str, Array]]:
        for index in range(SAMPLES):
            there = np.arange(length) < 3 + index % (length - 3)
            values = net.random.standard_normal((1, length, width), np.float32)
            yield {"x": values, "mask": there[np.newaxis].astype(np.int64)}

    kinds = {"x": (TensorProto.FLOAT, [1, length, width]), "mask": (TensorProto.INT64, [1, length])}
    return net.model(kinds, output), samples()


def conv_pair() -> Made:
    """A Conv that gives 10⁵, Relu and MaxPool, and a Conv that makes ordinary numbers of it."""
    net = Net()

    def conv(value: str, channels: tuple[int, int], gain: float) -> str:
        taken, given = channels
        weights = net.random.standard_normal((given, taken, 3, 3)) * gain / math.sqrt(9 * taken)
        return net.op("Conv", value, net.weight(weights), net.weight(net.random.random(given) * gain), pads=[1] * 4)

    large = net.op("MaxPool", net.op("Relu", conv("x", (3, 16), 5e4)), kernel_shape=[2, 2], strides=[2, 2])
    small = net.op("Relu", conv(large, (16, 32), 1e-5))
    flat = net.op("Flatten", net.op("GlobalAveragePool", small))
    output = net.op("Gemm", flat, net.matrix(32, 10), net.weight(net.random.random(10)))
    samples = ({"x": net.random.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(SAMPLES))
    return net.model({"x": (TensorProto.FLOAT, [1, 3, 32, 32])}, output), samples


MADE: Mapping[str, Callable[[], Made]] = {
    "rms_norm": rms_norm,
    "l2_norm": l2_norm,
    "masked_attention": masked_attention,
    "conv_pair": conv_pair,
}
MODELS = (*REAL, *MADE)


def source_of(name: str, folder: Path) -> tuple[Path, Path]:
    """The model's file and the folder of its samples; a made one is written into `folder`."""
    if name not in MADE:
        return files_of(name)
    model, samples = MADE[name]()
    path, data = folder / f"{name}.onnx", folder / "samples"
    onnx.save(model, path)
    data.mkdir()
    for index, sample in enumerate(samples):
        np.savez(data / f"{index:04}.npz", **dict(sample))
    return path, data
