"""Makes an encoder of a size: `python -m benchmarks.encoder OUT [--blocks 12] [--width 768] [--heads 12]`.

As BERT is written: post-norm blocks of attention with an additive mask of float32's least number and of a GELU by its
error function, with random weights, and a few large scales in each LayerNorm as trained ones have. OUT gets model.onnx
with its weights beside it, and `data/` with samples whose lengths differ. 12 blocks of 768 are 92 M parameters, 24 of
1024 are 311 M.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROWS, CLASSES = 8192, 512


class Encoder:
    """Collects the nodes and weights of one encoder."""

    def __init__(self, width: int, heads: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._width, self._heads = width, heads
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        """A node with one output of its name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}/{kind}", **attributes))
        return name

    def weight(self, name: str, array: NDArray[np.generic] | float) -> str:
        """An initialiser; a plain number is float32 ()."""
        array = np.asarray(array, np.float32) if isinstance(array, float) else array
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """Normally distributed numbers."""
        return self.weight(name, self._random.standard_normal(shape, np.float32) * np.float32(scale))

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """x · W + b."""
        product = self.node("MatMul", [x, self.normal(f"{name}.weight", inputs, outputs, scale=inputs**-0.5)], name)
        return self.node("Add", [product, self.normal(f"{name}.bias", outputs, scale=0.02)], f"{name}.added")

    def norm(self, x: str, name: str) -> str:
        """LayerNormalization with four scales of 12."""
        scale = np.ones(self._width, np.float32)
        scale[self._random.integers(0, self._width, 4)] = 12
        inputs = [x, self.weight(f"{name}.scale", scale), self.weight(f"{name}.shift", np.zeros_like(scale))]
        return self.node("LayerNormalization", inputs, name, axis=-1, epsilon=1e-12)

    def mask(self) -> str:
        """0 for words, and float32's least number for what is none."""
        kept = self.node("Cast", ["mask"], "kept", to=TensorProto.FLOAT)
        hidden = self.node("Sub", [self.weight("one", 1.0), kept], "hidden")
        least = self.node("Mul", [hidden, self.weight("least", float(np.finfo(np.float32).min))], "masked")
        return self.node("Unsqueeze", [least, self.weight("in_front", np.array([1, 2]))], "mask4")

    def block(self, x: str, mask: str, name: str) -> str:
        """Attention and GELU, each with its residual and norm behind."""
        width, each = self._width, self._width // self._heads
        split = self.weight(f"{name}.split", np.array([0, 0, self._heads, each]))

        def part(kind: str, order: list[int]) -> str:
            made = self.linear(x, f"{name}.{kind}", width, width)
            parts = self.node("Reshape", [made, split], f"{name}.{kind}.parts")
            return self.node("Transpose", [parts], f"{name}.{kind}.turned", perm=order)

        query, key, value = part("q", [0, 2, 1, 3]), part("k", [0, 2, 3, 1]), part("v", [0, 2, 1, 3])
        scores = self.node("MatMul", [query, key], f"{name}.scores")
        scaled = self.node("Mul", [scores, self.weight(f"{name}.by", each**-0.5)], f"{name}.scaled")
        shares = self.node("Softmax", [self.node("Add", [scaled, mask], f"{name}.masked")], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{name}.mixed")
        joined = self.node("Transpose", [mixed], f"{name}.joined", perm=[0, 2, 1, 3])
        joined = self.node("Reshape", [joined, self.weight(f"{name}.whole", np.array([0, 0, width]))], f"{name}.flat")
        out = self.linear(joined, f"{name}.out", width, width)
        x = self.norm(self.node("Add", [out, x], f"{name}.residual"), f"{name}.norm")
        out = self.linear(
            self.gelu(self.linear(x, f"{name}.up", width, 4 * width), name), f"{name}.down", 4 * width, width
        )
        return self.norm(self.node("Add", [out, x], f"{name}.residual2"), f"{name}.norm2")

    def gelu(self, x: str, name: str) -> str:
        """x · (1 + erf(x / √2)) / 2."""
        part = self.node("Div", [x, self.weight(f"{name}.root", 2**0.5)], f"{name}.part")
        above = self.node("Erf", [part], f"{name}.erf")
        above = self.node("Add", [above, self.weight(f"{name}.one", 1.0)], f"{name}.above")
        twice = self.node("Mul", [x, above], f"{name}.twice")
        return self.node("Mul", [twice, self.weight(f"{name}.half", 0.5)], f"{name}.gelu")


def encoder(blocks: int, width: int, heads: int) -> onnx.ModelProto:
    """ids, mask int64 (batch, words) → logits float32 (batch, words, 512)."""
    made = Encoder(width, heads)
    x = made.norm(made.node("Gather", [made.normal("table", ROWS, width), "ids"], "embedded"), "embedded.norm")
    mask = made.mask()
    for block in range(blocks):
        x = made.block(x, mask, f"block{block}")
    made.node("MatMul", [x, made.normal("head", width, CLASSES, scale=width**-0.5)], "logits")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "words"]) for name in ("ids", "mask")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "words", CLASSES])
    graph = helper.make_graph(made.nodes, "encoder", inputs, [output], made.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--blocks", default=12, show_default=True)
@click.option("--width", default=768, show_default=True)
@click.option("--heads", default=12, show_default=True)
@click.option("--words", default=128, show_default=True)
@click.option("--samples", default=16, show_default=True)
def main(out: Path, blocks: int, width: int, heads: int, words: int, samples: int) -> None:
    """Write model and data into OUT."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    model = encoder(blocks, width, heads)
    large = {"save_as_external_data": True, "location": "model.data", "size_threshold": 1024}
    onnx.save_model(model, out / "model.onnx", **large)
    random = np.random.default_rng(1)
    for number in range(samples):
        mask = np.zeros((1, words), np.int64)
        mask[:, : random.integers(words // 2, words + 1)] = 1
        np.savez(out / "data" / f"{number:03}.npz", ids=random.integers(0, ROWS, (1, words)), mask=mask)


if __name__ == "__main__":
    main()
