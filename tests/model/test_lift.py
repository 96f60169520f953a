"""Parts of a model that are float16 or bfloat16: lifted to float32, and rounded where the file's own types round.

What is right is known from an emulation of its own: each node in float64 NumPy, rounded to float16 or bfloat16 where
the file says so.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from precisionlab.backends.tensorrt.pins import enabled_in
from precisionlab.cli.summary import print_summary
from precisionlab.errors import OptionError
from precisionlab.jobs.export import export_plan
from precisionlab.jobs.result import SweepResult
from precisionlab.jobs.sweep import sweep
from precisionlab.jobs.verify import verify
from precisionlab.model import load_model
from precisionlab.plan.assign import precision_of
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.typed import typed_model
from tests.models import load, proto

RNG = np.random.default_rng(18)
W = (RNG.standard_normal((32, 32)) * 0.3).astype(np.float32)
V = (RNG.standard_normal((32, 8)) * 0.3).astype(np.float32)
SAMPLES = [(RNG.standard_normal((4, 32)) * 300).astype(np.float32) for _ in range(8)]
HALF_SAMPLES = [x.astype(np.float16) for x in SAMPLES]

# A square that float16 cannot hold, in a part of the model that is float16 in the file itself.
ISLAND = """(float[N,32] x) => (float[N,8] y) {
    a = MatMul(x, W) ah = Cast<to = 10>(a) b = Mul(ah, ah) m = ReduceMean<axes = [-1]>(b) s = Sqrt(m) n = Div(ah, s)
    w = Cast<to = 1>(n) y = MatMul(w, V)
}"""
THROUGHOUT = """(float16[N,32] x) => (float16[N,8] y) {
    a = MatMul(x, W) b = Mul(a, a) m = ReduceMean<axes = [-1]>(b) s = Sqrt(m) n = Div(a, s) y = MatMul(n, V)
}"""


def swept(model: onnx.ModelProto, folder: Path, samples: list[NDArray[np.generic]], **options: str) -> SweepResult:
    """A sweep by way of files, as users have it."""
    (folder / "data").mkdir(parents=True)
    for index, array in enumerate(samples):
        np.save(folder / "data" / f"{index}.npy", array)
    onnx.save_model(model, folder / "model.onnx")
    found = {"precisions": "fp16", "holdout": "0", **options}
    return sweep(folder / "model.onnx", folder / "data", out=folder / "out", threads=1, **found)  # type: ignore[arg-type]


def sqnr(reference: NDArray[np.float64], output: NDArray[np.generic]) -> float:
    """In dB, over all values."""
    noise = np.sum((output.astype(np.float64) - reference) ** 2)
    return float(10 * np.log10(np.sum(reference**2) / noise))


def half(array: NDArray[np.generic]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float64)


def bf16(array: NDArray[np.float64]) -> NDArray[np.float64]:
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_island_that_overflows_in_its_own_float16_is_not_right_whatever_is_swept(
    precision: str, tmp_path: Path
) -> None:
    model = proto(ISLAND, {"W": W, "V": V})
    overflows = sum(np.isinf(half(half(x @ W) ** 2)).sum() for x in SAMPLES)
    assert overflows > 100  # by NumPy: the square in true half

    (found,) = swept(model, tmp_path, SAMPLES, precisions=precision).precisions

    assert not found.low.met
    assert found.low.comparison.inherited["b"].inf == pytest.approx(overflows, rel=0.02)
    assert found.mixed.met
    assert "node_of_b" in found.mixed.plan.pinned()


def test_without_an_overflow_the_island_rounds_as_float16_does(tmp_path: Path) -> None:
    samples = [x / 100 for x in SAMPLES]
    (found,) = swept(proto(ISLAND, {"W": W, "V": V}), tmp_path, samples, tolerance="sqnr>=60").precisions

    def run(rounded: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        w, v = rounded(W.astype(np.float64)), rounded(V.astype(np.float64))
        outputs = []
        for x in samples:
            a = rounded(rounded(x.astype(np.float64)) @ w)
            s = rounded(np.sqrt(rounded(np.mean(rounded(a * a), -1, keepdims=True))))
            outputs.append(rounded(rounded(a / s) @ v))
        return np.concatenate(outputs)

    assert found.low.comparison.worst("sqnr") == pytest.approx(sqnr(run(lambda x: x), run(half)), abs=0.3)
    assert found.low.met


@pytest.mark.parametrize(("precision", "met"), [("fp16", False), ("bf16", True), ("int8", False)])
def test_a_model_in_float16_throughout_can_be_swept(precision: str, met: bool, tmp_path: Path) -> None:
    model = proto(THROUGHOUT, {"W": W.astype(np.float16), "V": V.astype(np.float16)})
    samples = [x.astype(np.float16) for x in SAMPLES]

    result = swept(model, tmp_path, samples, precisions=precision, tolerance="sqnr>=15")

    (found,) = result.precisions
    assert found.low.met is met  # bf16 has the range, and under int8 what is not quantised stays float16
    assert found.mixed.met
    assert result.reference.comparison.outputs["y"].errors is not None


def test_the_reference_of_a_model_in_float16_reads_its_weights_in_float32(tmp_path: Path) -> None:
    w, v = W.astype(np.float16), V.astype(np.float16)
    samples = [(x / 100).astype(np.float16) for x in SAMPLES]
    (found,) = swept(proto(THROUGHOUT, {"W": w, "V": v}), tmp_path, samples, tolerance="sqnr>=50").precisions

    def run(rounded: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        outputs = []
        for x in samples:
            a = rounded(x.astype(np.float64) @ w.astype(np.float64))
            s = rounded(np.sqrt(rounded(np.mean(rounded(a * a), -1, keepdims=True))))
            outputs.append(rounded(rounded(a / s) @ v.astype(np.float64)))
        return np.concatenate(outputs)

    assert found.low.comparison.worst("sqnr") == pytest.approx(sqnr(run(lambda x: x), run(half)), abs=0.3)


def test_a_float16_output_that_is_infinite_is_never_right(tmp_path: Path) -> None:
    model = proto(
        """(float[N,32] x) => (float16[N,32] main, float[N,32] aux) {
        a = MatMul(x, W) b = Mul(a, a) v = ReduceMean<axes = [-1]>(b) d = Div(v, c) h = Add(d, a)
        main = Cast<to = 10>(h) aux = Mul(x, two)
    }""",
        {"W": W, "c": np.float32(1e4), "two": np.float32(2)},
    )
    (found,) = swept(model, tmp_path, SAMPLES, tolerance="sqnr[main]>=30").precisions
    assert found.low.comparison.worst("sqnr", "main") == -np.inf
    assert found.low.comparison.worst("sqnr", "aux") > 70
    assert not found.low.met
    assert found.mixed.met


def test_an_output_that_float16_cannot_hold_cannot_be_pinned_right(tmp_path: Path) -> None:
    model = proto(
        "(float[N,32] x) => (float16[N,32] y) { a = MatMul(x, W) b = Mul(a, a) y = Cast<to = 10>(b) }", {"W": W}
    )
    (found,) = swept(model, tmp_path, SAMPLES).precisions
    assert not found.low.met
    assert not found.mixed.met  # the file gives it in float16, whatever computes it


def test_a_bfloat16_island_keeps_its_own_precision(tmp_path: Path) -> None:
    body = (
        """(float[N,32] x) => (float[N,32] y) { h = Cast<to = 16>(x) b = Mul(h, h) w = Cast<to = 1>(b) y = Sqrt(w) }"""
    )
    (found,) = swept(proto(body), tmp_path, [x / 100 for x in SAMPLES], tolerance="sqnr>=20").precisions

    x = np.concatenate(SAMPLES).astype(np.float64) / 100
    low = half(np.sqrt(half(bf16(bf16(half(x)) ** 2))))
    assert found.low.comparison.worst("sqnr") == pytest.approx(sqnr(np.abs(x), low), abs=0.3)


@pytest.mark.parametrize("saved", ["bfloat16", "float32"])
def test_a_bfloat16_input_takes_bfloat16_samples_and_rounds_float32_ones(saved: str, tmp_path: Path) -> None:
    body = "(bfloat16[N,32] x) => (bfloat16[N,32] y) { a = Mul(x, x) y = Add(a, x) }"
    small = [x / 100 for x in SAMPLES]
    result = swept(proto(body), tmp_path, [x.astype(saved) for x in small], precisions="bf16", tolerance="sqnr>=20")
    x = np.concatenate(small).astype(ml_dtypes.bfloat16).astype(np.float64)
    right = sqnr(x * x + x, bf16(bf16(x * x) + x))
    assert result.precisions[0].low.comparison.worst("sqnr") == pytest.approx(right, abs=0.3)


def test_a_plan_says_which_precision_an_island_has(tmp_path: Path) -> None:
    model = load(proto(ISLAND, {"W": W, "V": V}), tmp_path)
    assert model.layer["node_of_b"].own is Precision.FP16
    assert model.layer["node_of_b"].is_island
    assert model.layer["node_of_a"].own is None
    layer = model.layer["node_of_b"]
    for default in (Precision.FP16, Precision.BF16, Precision.INT8):
        plan = PrecisionPlan(model.sha256, default)
        assert precision_of(layer, plan) is Precision.FP16
        assert precision_of(layer, plan.with_pins([Pin(layer.name, layer.nodes, Precision.FP32, "")])) is Precision.FP32
    assert precision_of(layer, PrecisionPlan(model.sha256, Precision.FP32)) is Precision.FP32
    assert {info.dtype for info in model.tensors.values()} == {ir.DataType.FLOAT}


def test_a_constant_that_the_file_casts_to_float16_is_rounded(tmp_path: Path) -> None:
    body = "(float[N,32] x) => (float[N,32] y) { wh = Cast<to = 10>(W) w = Cast<to = 1>(wh) y = MatMul(x, w) }"
    large = W.copy()
    large[0, 0] = 7e4  # beyond float16, and within bfloat16
    (found,) = swept(proto(body, {"W": large}), tmp_path, SAMPLES, precisions="bf16").precisions
    assert found.low.comparison.worst("sqnr") == -np.inf


@pytest.mark.parametrize("pinned", [False, True])
def test_the_typed_model_has_an_island_as_the_plan_says(pinned: bool, tmp_path: Path) -> None:
    model = load(proto(ISLAND, {"W": W, "V": V}), tmp_path)
    layers = [model.layer[name] for name in ("node_of_b", "node_of_m", "node_of_s")]
    pins = [Pin(layer.name, layer.nodes, Precision.FP32, "") for layer in layers] if pinned else []
    typed = typed_model(model, PrecisionPlan(model.sha256, Precision.FP16, tuple(pins)), None)
    types = {v.name: v.dtype for node in typed.onnx.graph for v in node.outputs}
    assert (types["b"] is ir.DataType.FLOAT16) is not pinned
    assert types["ah"] is ir.DataType.FLOAT16


@pytest.mark.parametrize("default", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_the_typed_model_keeps_float16_inputs_and_outputs(default: Precision, tmp_path: Path) -> None:
    model = load(proto(THROUGHOUT, {"W": W.astype(np.float16), "V": V.astype(np.float16)}), tmp_path)
    assert [info.dtype.name for info in (*model.inputs, *model.outputs) if info.dtype] == ["FLOAT16", "FLOAT16"]
    typed = typed_model(model, PrecisionPlan(model.sha256, default), None)
    graph = typed.onnx.graph
    assert [str(v.dtype) for v in (*graph.inputs, *graph.outputs)] == ["FLOAT16", "FLOAT16"]
    assert [v.name for v in graph.outputs] == ["y"]
    assert load_model(tmp_path / "model.onnx").sha256 == model.sha256


def test_a_small_difference_of_large_numbers_in_a_float16_output_is_lost(tmp_path: Path) -> None:
    body = """(float[N,32] x) => (float16[N,32] main, float[N,32] aux) {
        a = MatMul(x, W) b = Add(a, k) h = Sub(b, k) main = Cast<to = 10>(h) aux = Mul(x, two)
    }"""
    samples = [x / 300 for x in SAMPLES]
    weights = {"W": W, "k": np.float32(3e4), "two": np.float32(2)}
    (found,) = swept(proto(body, weights), tmp_path, samples).precisions
    x = np.concatenate(samples).astype(np.float64)
    right = sqnr(x @ W, half(half(half(half(x) @ half(W)) + 3e4) - 3e4))
    assert right < 1
    assert found.low.comparison.worst("sqnr", "main") == pytest.approx(right, abs=0.3)
    assert not found.low.met


def test_a_metric_of_the_users_is_given_the_types_that_the_model_has(tmp_path: Path) -> None:
    (tmp_path / "metrics_of_half.py").write_text(
        "class Metric:\n"
        "    name, higher_is_better = 'halves', True\n"
        "    def __init__(self):\n        self.count = 0\n"
        "    def update(self, outputs, label):\n        self.count += outputs['y'].dtype == 'float16'\n"
        "    def compute(self):\n        return self.count\n"
    )
    (tmp_path / "data").mkdir()
    for index, x in enumerate(HALF_SAMPLES):
        np.save(tmp_path / "data" / f"{index}.npy", x / np.float16(100))
    (tmp_path / "data" / "labels.csv").write_text("sample,label\n" + "".join(f"{i}.npy,0\n" for i in range(8)))
    (tmp_path / "data" / "dataset.toml").write_text("[labels]\nfile = 'labels.csv'\n")
    onnx.save_model(proto(THROUGHOUT, {"W": W.astype(np.float16), "V": V.astype(np.float16)}), tmp_path / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found = sweep(
            tmp_path / "m.onnx", tmp_path / "data", precisions="fp16", holdout="0", threads=1, out=tmp_path / "out",
            metric="metrics_of_half:Metric",
        )  # fmt: skip
    assert found.reference.comparison.metric == 8
    assert found.precisions[0].low.comparison.metric == 8


# Doubles


def single(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.astype(np.float32).astype(np.float64)


DIFFERENCE = "(double[N,32] x) => (double[N,32] y) { a = Mul(x, x) b = Add(a, k) y = Sub(b, k) }"


def test_doubles_are_rounded_to_float32_by_every_plan_but_the_reference(tmp_path: Path) -> None:
    samples = [x.astype(np.float64) / 300 for x in SAMPLES]
    result = swept(proto(DIFFERENCE, {"k": np.float64(1e6)}), tmp_path, samples, precisions="bf16")
    x = np.concatenate(samples)
    right = sqnr(x * x, single(single(single(single(x) ** 2) + 1e6) - 1e6))
    assert 20 < right < 45
    assert result.reference.comparison.worst("sqnr") == np.inf
    (found,) = result.precisions
    layers = [layer for layer in result.model.layers if layer.fixed is None]
    pins = tuple(Pin(layer.name, layer.nodes, Precision.FP32, "") for layer in layers)
    plan = PrecisionPlan(result.model.sha256, Precision.BF16, pins)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    asked = sweep(
        tmp_path / "model.onnx",
        tmp_path / "data",
        plan=tmp_path / "plan.json",
        out=tmp_path / "p",
        threads=1,
        holdout="0",
    )
    assert asked.precisions[0].mixed.comparison.worst("sqnr") == pytest.approx(right, abs=0.3)
    assert not found.low.met


def test_a_double_island_that_overflows_in_half_is_not_right(tmp_path: Path) -> None:
    body = """(float[N,32] x) => (float[N,8] y) {
        a = MatMul(x, W) d = Cast<to = 11>(a) b = Mul(d, d) m = ReduceMean<axes = [-1]>(b) s = Sqrt(m) n = Div(d, s)
        w = Cast<to = 1>(n) y = MatMul(w, V)
    }"""
    (found,) = swept(proto(body, {"W": W, "V": V}), tmp_path, SAMPLES).precisions
    assert not found.low.met
    assert found.low.comparison.inherited["b"].inf > 100
    assert found.mixed.met
    assert "node_of_b" in found.mixed.plan.pinned()


def test_a_double_output_counts(tmp_path: Path) -> None:
    body = "(float[N,32] x) => (double[N,32] y, float[N,32] z) { a = MatMul(x, W) y = Cast<to = 11>(a) z = Abs(x) }"
    samples = [x / 300 for x in SAMPLES]
    (found,) = swept(proto(body, {"W": W}), tmp_path, samples, tolerance="sqnr[y]>=50").precisions
    x = np.concatenate(samples).astype(np.float64)
    right = sqnr(x @ W.astype(np.float64), half(half(x) @ half(W)))
    assert found.low.comparison.worst("sqnr", "y") == pytest.approx(right, abs=0.3)


# What other tools are given


def halves(folder: Path) -> Path:
    """The plan that a sweep of a model in float16 throughout has found."""
    swept(
        proto(THROUGHOUT, {"W": W.astype(np.float16), "V": V.astype(np.float16)}), folder, HALF_SAMPLES, ladder="fp32"
    )
    return folder / "out" / "plan.json"


def in_double(x: NDArray[np.generic]) -> NDArray[np.float64]:
    a = x.astype(np.float64) @ W.astype(np.float16).astype(np.float64)
    return (a / np.sqrt(np.mean(a * a, -1, keepdims=True))) @ V.astype(np.float16).astype(np.float64)


@pytest.mark.parametrize("target", ["trtexec", "polygraphy", "modelopt"])
def test_tools_that_build_from_the_file_are_given_one_that_their_pins_can_change(target: str, tmp_path: Path) -> None:
    plan, out = halves(tmp_path), tmp_path / "exported.py"
    exported = export_plan(plan, target, out=out, shapes=("x:4x32,4x32,4x32",))
    lifted = tmp_path / "model.prepared.onnx"
    assert exported.files == (out, lifted)
    assert str(lifted) in out.read_text()
    session = ort.InferenceSession(lifted, providers=["CPUExecutionProvider"])
    assert [i.type for i in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float16)"] * 2
    (given,) = session.run(["y"], {"x": HALF_SAMPLES[0]})
    assert sqnr(in_double(HALF_SAMPLES[0]), given) > 70  # in float16 the square would overflow
    assert {tensor.data_type for tensor in onnx.load(lifted).graph.initializer} == {onnx.TensorProto.FLOAT}


def test_without_a_place_for_it_the_export_of_a_model_in_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--out is needed: the model holds float16"):
        export_plan(halves(tmp_path), "trtexec", shapes=("x:4x32,4x32,4x32",))


def test_a_quantised_export_takes_and_gives_half_as_the_model_does(tmp_path: Path) -> None:
    model = proto(THROUGHOUT, {"W": W.astype(np.float16), "V": V.astype(np.float16)})
    swept(model, tmp_path, HALF_SAMPLES, precisions="int8", tolerance="sqnr>=15")
    out = tmp_path / "qdq.onnx"
    export_plan(tmp_path / "out" / "plan.json", "onnxruntime", out=out)
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    (given,) = session.run(["y"], {"x": HALF_SAMPLES[0]})
    assert given.dtype == np.float16
    assert sqnr(in_double(HALF_SAMPLES[0]), given) > 15


def test_an_island_under_another_precision_has_its_own_enabled_too(tmp_path: Path) -> None:
    model = load(proto(ISLAND, {"W": W, "V": V}), tmp_path)
    assert enabled_in(model, PrecisionPlan(model.sha256, Precision.BF16)) == {Precision.BF16, Precision.FP16}
    assert enabled_in(model, PrecisionPlan(model.sha256, Precision.FP32)) == frozenset()


# A part in float16 inside an If, whose square float16 cannot hold.
INSIDE = """(float[4,32] x, bool flag) => (float[4,8] y) {
    a = MatMul(x, W)
    r = If (flag) <then_branch = t () => (float[4,32] p) { ah = Cast<to = 10>(a) BODY p = Cast<to = 1>(n) },
                   else_branch = e () => (float[4,32] q) { q = Neg(a) }>
    y = MatMul(r, V)
}"""
NORM = "b = Mul(ah, ah) m = ReduceMean<axes = [-1]>(b) s = Sqrt(m) n = Div(ah, s)"
SIGMOID = "c = Mul(ah, less) b = Exp(c) s = Add(b, one) n = Div(one, s)"


def swept_inside(body: str, precision: str, folder: Path) -> SweepResult:
    """A sweep of `INSIDE` with the branch taken in every sample."""
    (folder / "data").mkdir()
    for index, x in enumerate(SAMPLES):
        np.savez(folder / "data" / f"{index}.npz", x=x, flag=np.array(True))
    weights = {"W": W, "V": V, **({"one": np.float16(1), "less": np.float16(0.02)} if "one" in body else {})}
    onnx.save_model(proto(INSIDE.replace("BODY", body), weights), folder / "model.onnx")
    data, out = folder / "data", folder / "out"
    return sweep(folder / "model.onnx", data, out=out, threads=1, holdout="0", precisions=precision)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_overflow_in_half_inside_a_body_is_fixed_by_a_pin_whatever_is_swept(precision: str, tmp_path: Path) -> None:
    overflows = sum(np.isinf(half(half(x @ W) ** 2)).sum() for x in SAMPLES)
    assert overflows > 100  # by NumPy

    (found,) = swept_inside(NORM, precision, tmp_path).precisions

    assert not found.low.met
    assert found.verdict.met
    (pin,) = found.plan.pins
    assert pin.layer == "node_of_r"
    assert "overflow inside then_branch of node_of_r: node_of_b" in pin.reason
    assert "fp16 ends at 65504" in pin.reason
    assert found.certificate is not None
    assert found.certificate.proven
    (release,) = found.certificate.releases
    assert release.precision is (Precision.BF16 if precision == "bf16" else Precision.FP16)
    again = verify(tmp_path / "out" / "plan.json", threads=1)
    assert [one.layer for one in again.certificate.releases] == ["node_of_r"]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_inf_that_the_files_own_half_gives_inside_a_body_is_no_fault_where_the_rest_goes_on_from_it(
    precision: str, tmp_path: Path
) -> None:
    """1 / (1 + e^x) is 0 for e^x = Inf, as it should be: that bf16 and float32 could hold e^x changes nothing."""
    with np.errstate(over="ignore"):
        assert np.isinf(half(np.exp(half(SAMPLES[0] @ W) * 0.02))).any()

    (found,) = swept_inside(SIGMOID, precision, tmp_path).precisions

    assert any(name.startswith("b in then_branch") for name in found.low.comparison.nonfinite)
    assert found.low.comparison.broken == ()


@pytest.mark.parametrize(("shift", "is_inf_alone"), [(20, True), (600, False)])
def test_a_proof_that_rests_on_an_inf_says_so(shift: float, is_inf_alone: bool, tmp_path: Path) -> None:
    """x + c − c is 0 in half where x is small, 1 / 0 is Inf, and 1 / Inf is 0 again, as near to x as the rest is."""
    body = """(float[N,32] x) => (float[N,32] y) {
        a = Add(x, c) d = Sub(a, c) i = Div(one, d) j = Div(one, i) y = Tanh(j) }"""
    samples = [x / 300 for x in SAMPLES]
    constants = {"c": np.float32(shift), "one": np.float32(1)}
    result = swept(proto(body, constants), tmp_path, samples)
    (found,) = result.precisions
    assert not found.low.met
    assert (found.low.comparison.worst("sqnr") >= 30) is is_inf_alone

    stream = io.StringIO()
    print_summary(result, stream)

    assert ("or a NaN or Inf appears" in " ".join(stream.getvalue().split())) is is_inf_alone
