"""The judge of `benchmarks.pins` on small models whose right answers are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import proto

from benchmarks import pins
from benchmarks.pins_judge import Arrays, candidates, compare, end_error, named, rounded, session

OVERFLOW = proto(
    "(float[2] x) => (float[2] y) { [up] u = Mul(x, big) [down] d = Mul(u, small) [shift] y = Add(d, x) }",
    {"big": np.float32(1000), "small": np.float32(0.001)},
)
LARGE = [{"x": np.array([100, 3], np.float32)}]


def low(model: onnx.ModelProto, precision: str, *, high: tuple[str, ...] = ()) -> dict[str, str]:
    return {name: precision for name in candidates(model, precision) if name not in high}


def run(model: onnx.ModelProto, sample: Arrays) -> np.ndarray:
    return session(model).run(None, dict(sample))[0]


def test_an_overflow_is_found_and_repaired_by_the_nodes_that_have_it():
    broken = end_error(OVERFLOW, rounded(OVERFLOW, low(OVERFLOW, "fp16"), {}), LARGE)
    half = end_error(OVERFLOW, rounded(OVERFLOW, low(OVERFLOW, "fp16", high=("up",)), {}), LARGE)
    repaired = end_error(OVERFLOW, rounded(OVERFLOW, low(OVERFLOW, "fp16", high=("up", "down")), {}), LARGE)
    assert (broken.sqnr, broken.nonfinite) == (-math.inf, 1)
    assert half.nonfinite == 1  # `down` rounds what it takes
    assert repaired.sqnr > 60
    assert repaired.nonfinite == 0


def test_a_wider_rung_holds_the_overflow_too():
    wider = low(OVERFLOW, "fp16") | {"up": "bf16", "down": "bf16"}
    model = proto("(float[2] x) => (float[2] y) { [a] y = Mul(x, w) }", {"w": np.float32(1.1)}, opset=13)
    x = np.array([1.2345, 6.789], np.float32)

    def bf16(value: np.ndarray) -> np.ndarray:
        return np.asarray(value, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)

    uneven = [{"x": np.array([100.24, 3.1], np.float32)}]
    assert 30 < end_error(OVERFLOW, rounded(OVERFLOW, wider, {}), uneven).sqnr < 60
    np.testing.assert_array_equal(
        run(rounded(model, {"a": "bf16"}, {}), {"x": x}), bf16(bf16(x) * bf16(np.float32(1.1)))
    )


def test_nothing_low_changes_nothing():
    error = end_error(OVERFLOW, rounded(OVERFLOW, {}, {}), LARGE)
    assert error.sqnr == math.inf


def test_fp16_rounds_inputs_weights_and_outputs():
    model = proto("(float[3] x) => (float[3] y) { [a] y = Mul(x, w) }", {"w": np.float32(0.1)})
    x = np.array([0.1, 1 / 3, 1e-8], np.float32)
    expected = (x.astype(np.float16).astype(np.float32) * np.float32(np.float16(0.1))).astype(np.float16)
    np.testing.assert_array_equal(run(rounded(model, {"a": "fp16"}, {}), {"x": x}), expected.astype(np.float32))


def quantised(values: np.ndarray, scale: np.ndarray | np.float32) -> np.ndarray:
    return (np.clip(np.rint(values / scale), -128, 127) * scale).astype(np.float32)


@pytest.mark.parametrize("opset", [12, 17])
def test_int8_is_what_numpy_computes(opset: int):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8), np.float32), rng.standard_normal((8, 3), np.float32) * np.float32([1, 10, 0])
    model = proto("(float[4,8] x) => (float[4,3] y) { [a] y = MatMul(x, w) }", {"w": w}, opset=opset)
    amax = 1.5  # some of x is clipped
    columns = np.array([np.abs(w[:, 0]).max(), np.abs(w[:, 1]).max(), 1], np.float32) / np.float32(127)
    expected = quantised(x, np.float32(amax / 127)) @ quantised(w, columns)
    found = run(rounded(model, {"a": "int8"}, {"x": amax}), {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_int8_weights_have_a_scale_for_each_output_channel():
    w = np.array([[1.0, 0.003], [100.0, 0.3]], np.float32)
    x = np.eye(2, dtype=np.float32)
    body = "(float[2,2] x) => (float[2,2] y) {{ [a] y = Gemm<transB = {}>(x, w) }}"
    by_row = run(rounded(proto(body.format(1), {"w": w}), {"a": "int8"}, {"x": 1.0}), {"x": x}).T
    by_column = run(rounded(proto(body.format(0), {"w": w}), {"a": "int8"}, {"x": 1.0}), {"x": x})
    np.testing.assert_allclose(by_row, quantised(w, np.array([[1.0], [100.0]], np.float32) / 127), rtol=1e-5)
    np.testing.assert_allclose(by_column, quantised(w, np.array([100.0, 0.3], np.float32) / 127), rtol=1e-5)


def test_int8_leaves_other_nodes_and_high_ones_alone():
    model = proto(
        "(float[2,2] x) => (float[2,2] y) { [a] m = MatMul(x, w) [b] y = Relu(m) }", {"w": np.eye(2, dtype="f")}
    )
    assert candidates(model, "int8") == ("a",)
    assert candidates(model, "fp16") == ("a", "b")
    in_half = rounded(model, {"a": "fp16"}, {})  # a rung between: no range is needed
    assert {node.op_type for node in in_half.graph.node} == {"Cast", "MatMul", "Relu"}


def test_shapes_are_never_rounded():
    model = proto(
        "(float[1,1,2,2] x) => (float[1,1,N,M] y) { [double] s = Mul(scales, two) [r] y = Resize(x, , s) }",
        {"scales": np.array([0.5, 0.5, 1.00005, 1.5], np.float32), "two": np.float32(2)},
    )
    sample = {"x": np.array([[[[70000, 1], [2, 3]]]], np.float32)}
    assert candidates(model, "fp16") == ("r",)
    found = run(rounded(model, {"r": "fp16"}, {}), sample)
    assert found.shape == run(model, sample).shape
    assert np.isinf(found[0, 0, 0, 0])


def test_constants_by_node_are_weights():
    model = proto(
        "(float[1,2] x) => (float[1,1] y) { c = Constant<value = float[2,1] {1.0, 2.0}>() [a] y = MatMul(x, c) }"
    )
    found = run(rounded(model, {"a": "int8"}, {"x": 1.0}), {"x": np.array([[1, 1]], np.float32)})
    np.testing.assert_allclose(found, [[3]], rtol=5e-3)


def test_every_node_gets_a_name_of_its_own():
    model = proto("(float[1] x) => (float[1] y) { a = Abs(x) [twice] b = Neg(a) [twice] y = Abs(b) }")
    assert [node.name for node in named(model).graph.node] == ["node_of_a", "twice", "twice_1"]


def test_the_worst_output_counts():
    right = [np.array([3.0, 4.0], np.float32), np.array([1.0], np.float32)]
    seen = [np.array([3.0, 4.05], np.float32), np.array([0.9], np.float32)]
    assert compare([(right, seen)]).sqnr == pytest.approx(20, abs=0.01)
    nan_in_both = [np.array([np.nan, 1.0], np.float32)]
    assert compare([(nan_in_both, nan_in_both)]).nonfinite == 0


@pytest.mark.slow
def test_tools_do_not_see_what_the_judge_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "prepared" / "orient"
    (folder / "data").mkdir(parents=True)
    onnx.save(OVERFLOW, folder / "orient.onnx")
    for index in range(12):
        np.savez(folder / "data" / f"{index:02}.npz", x=np.full(2, index, np.float32))
    monkeypatch.setattr(pins, "PREPARED", tmp_path / "prepared")
    case = pins.prepare("orient", 4, tmp_path)
    seen = [float(np.load(file)["x"][0]) for file in sorted(case.data.iterdir())]
    assert [float(sample["x"][0]) for sample in case.held_out] == [3, 7, 11]
    assert seen == [0, 2, 5, 8]


def test_a_peer_without_an_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins, "environment", lambda name: Path(sys.executable))
    case = pins.Case("any", "fp16", tmp_path / "m.onnx", tmp_path / "data", 1, (), 1.0)
    assert pins.ask(pins.PEERS["autocast"], case, 0.001).failed == "not finished after 0 s"
