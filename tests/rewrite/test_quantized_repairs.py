"""Repairs of models with Q/DQ nodes of their own: of what these leave in float, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Array, proto
from test_repairs import every_value, random, sight_of

from precisionlab.errors import PlanError
from precisionlab.model import Model, load_model
from precisionlab.model.portable import is_quantizer
from precisionlab.model.repair import Exactness, Repair
from precisionlab.rewrite.repairs import found_repairs, repaired_graph

NORM = "sq = Mul(h, h) ms = ReduceMean <axes = [-1]> (sq) me = Add(ms, eps) rt = Sqrt(me) n = Div(h, rt)"
PRODUCT = (
    "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(wq, t, z) h = MatMul(xd, wd)"
)
NEXT = "nq = QuantizeLinear(n, s, z) nd = DequantizeLinear(nq, s, z) vd = DequantizeLinear(vq, u, z) y = MatMul(nd, vd)"
SIGNATURE = "(float[4,32] x) => (float[4,32] y)"


def model_of(folder: Path, body: str, scale: float = 400.0, signature: str = SIGNATURE) -> Model:
    integers = np.random.default_rng(1).integers(-127, 128, (2, 32, 32)).astype(np.int8)
    weights: dict[str, Array] = {
        "s": np.float32(0.03), "t": np.float32(scale / 127), "u": np.float32(0.01), "z": np.int8(0),
        "wq": integers[0], "vq": integers[1], "w": random(32, 32, scale=scale), "eps": np.float32(1e-5),
        "root": np.float32(2.0**-10), "one": np.float32(1),
    }  # fmt: skip
    used = {name: value for name, value in weights.items() if f"{name}," in body or f"{name})" in body}
    path = folder / "m.onnx"
    onnx.save_model(proto(f"{signature} {{ {body} }}", used), path)
    return load_model(path)


def kinds(model: Model, inputs: dict[str, Array]) -> list[str]:
    return [repair.kind for repair in found_repairs(sight_of(model, inputs))]


def taken(graph: ir.Model) -> dict[str, list[str]]:
    """What the quantizers and the products take, by node."""
    return {
        str(node.name): [str(value.name) for value in node.inputs if value is not None]
        for node in graph.graph
        if is_quantizer(node) or node.op_type == "MatMul"
    }


def test_a_norm_between_products_in_int8_is_repaired_and_these_take_what_they_took(tmp_path: Path) -> None:
    model, inputs = model_of(tmp_path, f"{PRODUCT} {NORM} {NEXT}"), {"x": random(4, 32)}
    found = found_repairs(sight_of(model, inputs))
    repaired = repaired_graph(model.onnx, found)

    assert [(one.kind, one.exactness) for one in found] == [("scale_sum_of_squares", Exactness.BITWISE)]
    assert taken(repaired) == taken(model.onnx)
    before, after = every_value(model.onnx, inputs), every_value(repaired, inputs)
    assert all(np.array_equal(before[name], after[name]) for name in ("xd", "h", "n", "nd", "y"))
    assert max(np.abs(after[name]).max() for name in after) < 65504
    assert np.abs(before["sq"]).max() > 65504


def test_squares_of_what_is_dequantised_are_repaired(tmp_path: Path) -> None:
    body = f"hq = QuantizeLinear(x, t, z) h = DequantizeLinear(hq, t, z) {NORM} {NEXT}"
    model, inputs = model_of(tmp_path, body, 1000.0), {"x": random(4, 32, scale=300)}
    found = found_repairs(sight_of(model, inputs))

    assert [repair.kind for repair in found] == ["scale_sum_of_squares"]
    assert taken(repaired_graph(model.onnx, found)) == taken(model.onnx)


SCORES = """xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
    kq = QuantizeLinear(k, s, z) kd = DequantizeLinear(kq, s, z) kt = Transpose(kd)
    p = MatMul(xd, kt) pt = Transpose(p) y = Mul(pt, root)"""
GIVEN = "(float[4,32] x, float[4,32] k) => (float[4,4] y)"


@pytest.mark.parametrize(("is_quantized", "found"), [(True, []), (False, ["scale_product"])])
def test_nothing_is_put_between_a_product_and_what_it_takes_dequantised(
    tmp_path: Path, is_quantized: bool, found: list[str]
) -> None:
    body = SCORES if is_quantized else "kt = Transpose(k) p = MatMul(x, kt) pt = Transpose(p) y = Mul(pt, root)"
    model = model_of(tmp_path, body.replace("s,", "t,"), 400.0, GIVEN)
    assert kinds(model, {"x": random(4, 32, scale=100), "k": random(4, 32, scale=100, seed=1)}) == found


LOGS = "sq = Mul(x, x) su = ReduceSum(sq) se = Add(su, eps) n = Log(se)"


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ("nq = QuantizeLinear(n, s, z) y = DequantizeLinear(nq, s, z)", []),
        (
            """c = Greater(n, one) y = If (c) <
                then_branch = tb () => (float[1,1] e) {
                    r = Relu(n) q = QuantizeLinear(r, s, z) e = DequantizeLinear(q, s, z)
                },
                else_branch = eb () => (float[1,1] f) { f = Identity(n) }>""",
            [],
        ),
        ("c = Identity(n) y = Sigmoid(c)", ["log_hypot"]),
    ],
)
def test_what_rounds_elsewhere_stands_in_front_of_no_quantizer(tmp_path: Path, behind: str, found: list[str]) -> None:
    model = model_of(tmp_path, f"{LOGS} {behind}", signature="(float[1,32] x) => (float[1,1] y)")
    assert kinds(model, {"x": random(1, 32, scale=400)}) == found


def test_what_rounds_elsewhere_is_repaired_behind_the_quantised_part(tmp_path: Path) -> None:
    logs = "sq = Mul(h, h) su = ReduceSum(sq) se = Add(su, eps) y = Log(se)"
    model = model_of(tmp_path, f"{PRODUCT} {logs}", 10.0, "(float[4,32] x) => (float[1,1] y)")
    assert kinds(model, {"x": random(4, 32)}) == ["log_hypot"]


def test_a_repair_by_hand_that_changes_what_a_product_takes_dequantised_is_refused(tmp_path: Path) -> None:
    model = model_of(tmp_path, SCORES, signature=GIVEN)
    by_hand = Repair("scale_product", Exactness.BITWISE, "p", ("node_of_p", "node_of_y"), (("operand", -4),), ())
    with pytest.raises(PlanError, match="computes with quantised numbers, and would take others"):
        repaired_graph(model.onnx, (by_hand,))


def test_a_mask_is_repaired_beside_a_quantised_product(tmp_path: Path) -> None:
    body = """xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(wq, u, z)
        h = MatMul(xd, wd) far = Mul(m, least) a = Add(h, far) n = Softmax(a)"""
    path = tmp_path / "m.onnx"
    onnx.save_model(
        proto(
            f"(float[4,32] x, float[4,32] m) => (float[4,32] y) {{ {body} {NEXT} }}",
            {
                "s": np.float32(0.03),
                "u": np.float32(1e-4),
                "z": np.int8(0),
                "least": np.float32(-3.4e38),
                "wq": np.ones((32, 32), np.int8),
                "vq": np.ones((32, 32), np.int8),
            },
        ),
        path,
    )
    mask = np.triu(np.ones((4, 32), np.float32), 4)
    assert kinds(load_model(path), {"x": random(4, 32), "m": mask}) == ["clamp_constant"]
