"""Small models that hold half of their own, where it matters how a kernel computes half; and ONNX Runtime's own sum.

In ONNX Runtime's CPU provider for x86-64 a node in float16 is computed in float32, and consecutive ones are not rounded
between; on aarch64 some have kernels in half. So 60000 + 60000 − 60000 is 60000 there and Inf here. None of our figures
may hang on that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SAMPLES = 8


def write_models(folder: Path) -> list[str]:
    """Write each model with its samples to a folder of its name; returns the names. The same bytes on any machine."""
    models = {
        # Half values beyond 65504 on the way, whose mean is within.
        "island": _model(
            "float",
            8,
            "a = MatMul(x, W) h = Cast<to=10>(a) s = Mul(h, h) m = ReduceMean<axes=[-1]>(s) d = Sqrt(m) n = Div(h, d) "
            "f = Cast<to=1>(n) y = MatMul(f, V)",
        ),
        # The sum that tells kernels in half from those in float32; not finite for any sample.
        "sum": _model(
            "float",
            64,
            "a = MatMul(x, W) h = Cast<to=10>(a) p = Add(h, big) q = Add(p, big) r = Sub(q, big) f = Cast<to=1>(r) "
            "y = Add(f, a)",
        ),
        # Of constants alone: one part is folded, and one, which is beyond half on the way, is left to be seen.
        "constants": _model(
            "float",
            64,
            "b = Add(big, big) c = Sub(b, big) t = Add(third, fine) u = Sub(t, third) k = Add(c, u) g = Cast<to=1>(k) "
            "a = MatMul(x, W) y = Mul(a, g)",
        ),
        # In half from end to end, within its range: a convolution too.
        "throughout": _model(
            "float16",
            12,
            "i = Reshape(x, image) c = Conv<pads=[1,1,1,1]>(i, K, B) r = Relu(c) p = GlobalAveragePool(r) "
            "e = Flatten(p) z = Add(e, third) y = Softmax<axis=-1>(z)",
        ),
    }
    for name, (model, samples) in models.items():
        (folder / name / "data").mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / name / "model.onnx")
        for index, sample in enumerate(samples):
            np.save(folder / name / "data" / f"{index:04}.npy", sample)
    return list(models)


def _model(kind: str, width: int, nodes: str) -> tuple[onnx.ModelProto, list[NDArray[Any]]]:
    """A graph of these nodes, from x (4, 64) to y (4, width) of the `kind`, and samples for it."""
    random = np.random.default_rng(18)
    constants = {
        "W": (random.standard_normal((64, 64)) * 0.3).astype(np.float32),
        "V": (random.standard_normal((64, 8)) * 0.3).astype(np.float32),
        "K": random.standard_normal((12, 1, 3, 3)).astype(np.float16),
        "B": random.standard_normal(12).astype(np.float16),
        **{"big": np.float16(60000), "third": np.float16(1 / 3), "fine": np.float16(2e-4)},
        "image": np.array([4, 1, 8, 8]),
    }
    inner = f"g ({kind}[4,64] x) => ({kind}[4,{width}] y) {{ {nodes} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {inner}')
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used)
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model, full_check=True)
    scale, dtype = (200, np.float32) if kind == "float" else (1, np.float16)
    return model, [(random.standard_normal((4, 64)) * scale).astype(dtype) for _ in range(SAMPLES)]


def runtime_sum() -> str:
    """What ONNX Runtime itself makes of 60000 + 60000 − 60000 in float16."""
    import onnxruntime

    nodes = [helper.make_node("Add", ["x", "x"], ["s"]), helper.make_node("Sub", ["s", "x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return str(session.run(None, {"x": np.full(1, 60000, np.float16)})[0][0])


if __name__ == "__main__":
    print(runtime_sum())
