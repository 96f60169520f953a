"""Models that break in half unless they are repaired, each with the plan that repairs it, as a sweep writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import Array, proto

from precisionlab.model import Model, load_model
from precisionlab.model.repair import Exactness, Repair
from precisionlab.plan.plan import PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.repairs import repaired_model

NORM = """h = MatMul(x, w)
    sq = Mul(h, h)
    ms = ReduceMean <axes = [-1]> (sq)
    me = Add(ms, eps)
    rt = Sqrt(me)
    hn = Div(h, rt)"""
"""An RMSNorm whose squares leave half, of h with values up to 8000."""
BREAKING = f"(float[4, 32] x) => (float[4, 8] y) {{ {NORM} y = MatMul(hn, w2) }}"


def weights() -> dict[str, Array]:
    """Of `BREAKING`."""
    rng = np.random.default_rng(0)
    return {
        "w": (rng.standard_normal((32, 32)) * 400).astype(np.float32),
        "w2": (rng.standard_normal((32, 8)) * 0.2).astype(np.float32),
        "eps": np.float32(1e-5),
    }


def samples_in(folder: Path, count: int = 8) -> Path:
    """So many samples for `BREAKING`."""
    data = folder / "data"
    data.mkdir()
    for number in range(count):
        np.save(data / f"{number}.npy", np.random.default_rng(number).standard_normal((4, 32)).astype(np.float32))
    return data


def repair_of(prefix: str = "", scale: int = -10) -> Repair:
    """The one that `NORM` needs; `prefix` stands in front of its nodes' names."""
    nodes = (f"{prefix}node_of_sq", f"{prefix}node_of_hn")
    return Repair("scale_sum_of_squares", Exactness.BITWISE, nodes[0], nodes, (("x", scale),))


def breaking(folder: Path, model: onnx.ModelProto | None = None, **how: Any) -> Model:
    """`BREAKING` or another model, as a file; `how` it is saved."""
    path = folder / "model.onnx"
    onnx.save_model(model or proto(BREAKING, weights()), path, **how)
    return load_model(path)


def plan_file(model: Model, *repairs: Repair, default: Precision = Precision.FP16, **more: Any) -> Path:
    """The plan's file beside the model: these repairs and no pin."""
    plan = PrecisionPlan(model.sha256, default, repairs=repairs)
    content = plan.to_dict()
    if repairs:
        content["repaired"] = {"sha256": repaired_model(model, repairs).content}
    path = model.path.parent / "plan.json"
    path.write_text(json.dumps({**content, **more}))
    return path
