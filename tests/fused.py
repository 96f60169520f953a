"""Small models whose first layer TensorRT-RTX was seen to run as one kernel, or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from models import Array, load, proto

from precisionlab.model import Model

C = 16
RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Array] = {
    "w": RNG.standard_normal((C, C, 3, 3)).astype(np.float32),
    "w2": RNG.standard_normal((C, C, 3, 3)).astype(np.float32),
    "d": RNG.standard_normal((C, 1, 3, 3)).astype(np.float32),
    "f": RNG.uniform(0.5, 2, (C, 1, 1)).astype(np.float32),
    "m": RNG.standard_normal((8, 8)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    **{name: np.ones(C, np.float32) for name in ("g", "h", "e", "v")},
}
CONV = "[c] t = Conv<pads = [1,1,1,1]>(x, w)"
BN = "[bn] n = BatchNormalization(t, g, h, e, v)"
NEXT = "[c2] y = Conv<pads = [1,1,1,1]>"
FUSED: dict[str, tuple[str, bool]] = {  # nodes, and whether TensorRT-RTX 1.7.1 runs the first layer as one kernel
    "an output": (f"{CONV} [bn] y = BatchNormalization(t, g, h, e, v)", False),
    "an activation as output": (f"{CONV} {BN} [r] y = Relu(n)", False),
    "before a Conv": (f"{CONV} {BN} {NEXT}(n, w2)", True),
    "an activation before a Conv": (f"{CONV} {BN} [r] u = Relu(n) {NEXT}(u, w2)", True),
    "SiLU before a Conv": (f"{CONV} {BN} [s] u = Sigmoid(n) [q] p = Mul(n, u) {NEXT}(p, w2)", True),
    "before a depthwise Conv": (f"{CONV} {BN} [c2] y = Conv<group = 16, pads = [1,1,1,1]>(n, d)", False),
    "before a residual sum": (f"{CONV} {BN} [a] z = Add(n, x) {NEXT}(z, w2)", False),
    "taken twice, by a Conv and a sum": (
        f"{CONV} {BN} [c2] z = Conv<pads = [1,1,1,1]>(n, w2) [a] y = Add(z, n)",
        False,
    ),
    "before MaxPool": (f"{CONV} {BN} [p] y = MaxPool<kernel_shape = [2,2]>(n)", True),
    "before AveragePool": (f"{CONV} {BN} [p] y = AveragePool<kernel_shape = [2,2]>(n)", True),
    "before GlobalAveragePool": (f"{CONV} {BN} [p] y = GlobalAveragePool(n)", False),
    "before Softmax": (f"{CONV} {BN} [s] y = Softmax<axis = 1>(n)", False),
    "a factor as output": (f"{CONV} [k] y = Mul(t, f)", False),
    "a factor before a Conv": (f"{CONV} [k] n = Mul(t, f) {NEXT}(n, w2)", True),
    "a shift as output": (f"{CONV} [k] n = Add(t, f) [r] y = Relu(n)", True),
    "a residual sum as output": (f"{CONV} [k] n = Add(t, x) [r] y = Relu(n)", True),
    "an activation of another kind": (f"{CONV} [r] y = HardSwish(t)", False),
}


def model_of(body: str, folder: Path, shape: str = f"1,{C},8,8") -> Model:
    used = {name: array for name, array in WEIGHTS.items() if f" {name})" in body or f" {name}," in body}
    dims = ",".join("opqr"[: len(shape.split(","))])
    return load(proto(f"(float[{shape}] x) => (float[{dims}] y) {{ {body} }}", used), folder)
