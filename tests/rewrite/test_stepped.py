"""What half kernels round inside of layers: BatchNormalization's parameters everywhere, steps in ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.session import Session
from precisionlab.calibration.table import CalibrationTable, Range
from precisionlab.model import Model
from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT
from precisionlab.precision import Precision
from precisionlab.rewrite.flow import LayerCopier
from precisionlab.rewrite.observe import Flow, segments
from precisionlab.rewrite.real import one_node_layers
from precisionlab.rewrite.stepped import SteppedCopier
from tests.models import Array, digits, load, plan_for, proto, sample

FP16, BF16 = Precision.FP16, Precision.BF16
LOW = {FP16: np.float16, BF16: ml_dtypes.bfloat16}


def low(values: Any, precision: Precision = FP16) -> Array:
    """Rounded to the precision by numpy, as float32."""
    with np.errstate(all="ignore"):
        return np.asarray(values, np.float32).astype(LOW[precision]).astype(np.float32)


def drawn(*shape: int, seed: int = 0, step: float = 1 / 64, most: int = 300) -> Array:
    """Multiples of a step: more digits than half has, but products and sums are exact in float32."""
    return (np.random.default_rng(seed).integers(-most, most + 1, shape) * step).astype(np.float32)


class Emulated:
    """The outputs of a model with every layer in one precision."""

    def __init__(
        self,
        model: Model,
        precision: Precision = FP16,
        copier: type[LayerCopier] = SteppedCopier,
        table: CalibrationTable | None = None,
    ) -> None:
        plan = plan_for(model, precision)
        (self._segment,) = segments(model, plan, table, [list(model.layers)], Flow, Flow, copier)
        self.proto = ir.to_proto(self._segment.graph)
        self._session = Session(self._segment.graph, 1)

    def __call__(self, **inputs: Any) -> Array:
        arrays = sample(**inputs).inputs
        found = self._session.run({name: arrays[key[1]] for name, key in self._segment.feeds.items()})
        values = {self._segment.fetches[name]: np.array(value) for name, value in found.items()}
        return values[Flow.VARIANT, "y"]


def every(precision: Precision, most: float) -> Array:
    """All values of the precision within ±most."""
    values = np.arange(1 << 16, dtype=np.uint16).view(LOW[precision]).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return values[np.abs(values) <= most]


# Every kernel


NORM = "{ y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }"


@pytest.mark.parametrize("copier", [LayerCopier, SteppedCopier])
@pytest.mark.parametrize("precision", [FP16, BF16])
def test_a_lone_batch_normalization_has_its_folded_parameters_in_half(
    tmp_path: Path, precision: Precision, copier: type[LayerCopier]
) -> None:
    rng = np.random.default_rng(0)
    stats = {name: rng.uniform(0.1, 3, 4).astype(np.float32) for name in "sbmv"}
    model = load(proto(f"(float[1,4,8,8] x) => (float[1,4,8,8] y) {NORM}", stats), tmp_path)
    x = low(drawn(1, 4, 8, 8), precision)
    scale = stats["s"].astype(np.float64) / np.sqrt(stats["v"].astype(np.float64) + np.float32(0.001))
    shift = stats["b"] - stats["m"] * scale
    s, b = (low(a, precision).astype(np.float64).reshape(4, 1, 1) for a in (scale, shift))
    y = Emulated(model, precision, copier)(x=x)
    assert np.array_equal(y, low(x * s + b, precision))
    assert not np.array_equal(y, low(x * scale.reshape(4, 1, 1) + shift.reshape(4, 1, 1), precision))


def test_a_batch_normalization_behind_a_convolution_stays_in_float32_as_tensorrt_folds_it(tmp_path: Path) -> None:
    stats = {name: np.full(4, value, np.float32) for name, value in zip("sbmv", (1, 0.1, 0.3, 0.7), strict=True)}
    norm = NORM.replace("0.001", "0.0").replace("(x,", "(c,").replace("{", "{ c = Conv(x, w)")
    body = f"(float[1,4,6,6] x) => (float[1,4,6,6] y) {norm}"
    model = load(proto(body, {**stats, "w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}), tmp_path)
    x = low(drawn(1, 4, 6, 6))
    exact = (x - np.float32(0.3)).astype(np.float64) / np.sqrt(np.float64(np.float32(0.7))) + np.float32(0.1)
    folded = [low(v) for v in (1 / np.sqrt(0.7), 0.1 - 0.3 / np.sqrt(0.7))]
    assert np.abs(Emulated(model, FP16, LayerCopier)(x=x) - low(exact)).max() <= 2.0**-9
    assert np.array_equal(Emulated(model)(x=x), low(x * folded[0].astype(np.float64) + folded[1]))


# ONNX Runtime's


@pytest.mark.parametrize("precision", [FP16, BF16])
@pytest.mark.parametrize(
    ("op", "rank", "shape"), [("Conv", 2, "5,8,8"), ("ConvTranspose", 2, "5,8,8"), ("Conv", 1, "5,8")]
)
def test_a_convolution_is_rounded_before_its_bias_is_added(
    tmp_path: Path, op: str, rank: int, shape: str, precision: Precision
) -> None:
    weight, bias = drawn(5, 5, *[1] * rank), drawn(5, seed=1)
    of = shape.replace("5,", "", 1)
    model = load(proto(f"(float[1,5,{of}] x) => (float[1,5,{of}] y) {{ y = {op}(x, w, b) }}",
                       {"w": weight, "b": bias}), tmp_path)  # fmt: skip
    x = drawn(1, *map(int, shape.split(",")), seed=2)
    order = "oi" if op == "Conv" else "io"
    kernel = low(weight, precision).reshape(5, 5).astype(np.float64)
    sums = np.einsum(f"{order},bi...->bo...", kernel, low(x, precision))
    add = low(bias, precision).reshape(5, *[1] * rank)
    y = Emulated(model, precision)(x=x)
    assert np.array_equal(y, low(low(sums, precision) + add, precision))
    assert np.array_equal(Emulated(model, precision, LayerCopier)(x=x), low(sums + add, precision))
    assert not np.array_equal(y, low(sums + add, precision))


@pytest.mark.parametrize("precision", [FP16, BF16])
def test_hard_swish_is_steps_in_half_for_all_its_values(tmp_path: Path, precision: Precision) -> None:
    x = every(precision, 60000)
    model = load(proto(f"(float[{x.size}] x) => (float[{x.size}] y) {{ y = HardSwish(x) }}"), tmp_path)
    sixth = low(x * np.float32(1 / 6), precision)
    wanted = low(x * np.clip(low(sixth + np.float32(0.5), precision), 0, 1), precision)
    assert np.array_equal(Emulated(model, precision)(x=x), wanted)


def test_sigmoid_in_bf16_loses_what_is_far_below_zero(tmp_path: Path) -> None:
    x = every(BF16, 30)
    model = load(proto(f"(float[{x.size}] x) => (float[{x.size}] y) {{ y = Sigmoid(x) }}"), tmp_path)
    raised = low(np.exp(-np.abs(x.astype(np.float64))), BF16)
    upper = low(1 / low(1 + raised, BF16).astype(np.float64), BF16)
    y = Emulated(model, BF16)(x=x)
    assert np.array_equal(y, np.where(x > 0, upper, low(1 - upper, BF16)))
    is_far = (x < -7) & (x > -15)
    assert (y[is_far] == 0).all()
    assert (Emulated(model, BF16, LayerCopier)(x=x)[is_far] > 0).all()


def test_sigmoid_in_fp16_is_rounded_once(tmp_path: Path) -> None:
    x = every(FP16, 9)
    model = load(proto(f"(float[{x.size}] x) => (float[{x.size}] y) {{ y = Sigmoid(x) }}"), tmp_path)
    assert np.array_equal(Emulated(model)(x=x), Emulated(model, FP16, LayerCopier)(x=x))


def reduction(
    axes: str, opset: int, *, op: str = "ReduceMean", keep: int = 0, sizes: str = "6,40,50"
) -> onnx.ModelProto:
    """One reduction, with its axes as this opset has them; no axes: all."""
    is_input = opset >= (13 if op == "ReduceSum" else 18)
    weights = {"a": np.array([int(a) for a in axes.split(",")], np.int64)} if axes and is_input else {}
    given = f"axes = [{axes}], " if axes and not is_input else ""
    node = f"y = {op}<{given}keepdims = {keep}>(x{', a' if weights else ''})"
    model = proto(f"(float[{sizes}] x) => (float[P,Q,R] y) {{ {node} }}", weights, opset=opset)
    if not keep:
        del model.graph.output[0].type.tensor_type.shape.dim[-len(axes.split(",")) if axes else 0 :]
    return model


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", ["2", "-1", "1,2", ""])
def test_a_mean_is_a_sum_in_half_and_a_division(tmp_path: Path, axes: str, keep: int, opset: int) -> None:
    x = low(drawn(6, 40, 50))
    taken = tuple(int(a) for a in axes.split(",")) if axes else (0, 1, 2)
    length = np.prod([x.shape[a] for a in taken])
    model = load(reduction(axes, opset, keep=keep), tmp_path)
    y = Emulated(model)(x=x)
    sums = x.sum(axis=taken, dtype=np.float64, keepdims=bool(keep))
    assert np.array_equal(y, low(low(sums) / low(length)))
    if length == 50:
        assert not np.array_equal(y, low(sums / length))


def test_a_mean_overflows_where_its_sum_does(tmp_path: Path) -> None:
    model = load(reduction("2", 17, sizes="1,2,2000"), tmp_path)
    x = np.stack([np.full(2000, 40), np.full(2000, 30)])[None].astype(np.float32)
    assert Emulated(model)(x=x).tolist() == [[np.inf, 30.0]]
    assert Emulated(model, FP16, LayerCopier)(x=x).tolist() == [[40.0, 30.0]]


def test_a_mean_over_axes_in_the_middle_is_rounded_once(tmp_path: Path) -> None:
    model = load(reduction("1", 17), tmp_path)
    x = low(drawn(6, 40, 50))
    assert np.array_equal(Emulated(model)(x=x), low(x.sum(axis=1, dtype=np.float64) / 40))


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("keep", [0, 1])
def test_rows_are_summed_by_blocks_that_add_in_half(tmp_path: Path, opset: int, keep: int) -> None:
    model = load(reduction("1", opset, op="ReduceSum", keep=keep, sizes="1,512,256"), tmp_path)
    x = low(drawn(1, 512, 256))
    # 8 blocks of 512 threads, 32 beside each other, so that each block has 16 rows in turn.
    total = np.zeros(256, np.float32)
    for block in range(8):
        rows = [row for row in range(512) if row // 16 % 8 == block]
        total = low(total + low(x[0, rows].sum(axis=0, dtype=np.float64)))
    y = Emulated(model)(x=x)
    assert y.shape == ((1, 1, 256) if keep else (1, 256))
    assert np.array_equal(y.ravel(), total)
    assert not np.array_equal(total, low(x[0].sum(axis=0, dtype=np.float64)))


def test_other_sums_are_rounded_once(tmp_path: Path) -> None:
    for number, axes in enumerate(("2", "1", "")):
        model = load(reduction(axes, 13, op="ReduceSum"), tmp_path, f"{number}.onnx")
        x = low(drawn(6, 40, 50))
        taken = int(axes) if axes else None
        assert np.array_equal(Emulated(model)(x=x), low(x.sum(axis=taken, dtype=np.float64)))


def test_samples_of_other_sizes_than_the_first_have_their_own_lengths(tmp_path: Path) -> None:
    body = "(float[N,M,K] x) => (float[N,M] y) { y = ReduceMean<axes = [2], keepdims = 0>(x) }"
    first, second = low(drawn(1, 3, 40)), low(drawn(2, 5, 7, seed=1))
    model = OnnxRuntimeBackend(load(proto(body), tmp_path), sample(x=first), threads=1).model
    emulated = Emulated(model)
    for x in (first, second):
        assert np.array_equal(emulated(x=x), low(low(x.sum(axis=2, dtype=np.float64)) / x.shape[2]))
    rows = "(float[N,M,K] x) => (float[N,K] y) { a = Constant<value_ints = [1]>() y = ReduceSum<keepdims = 0>(x, a) }"
    first, second = low(drawn(1, 600, 64)), low(drawn(1, 37, 20, seed=1))
    model = OnnxRuntimeBackend(load(proto(rows), tmp_path, "rows.onnx"), sample(x=first), threads=1).model
    assert np.abs(Emulated(model)(x=second) - second.sum(axis=1)).max() < 0.1


@pytest.mark.newest
def test_a_reduction_that_does_nothing_is_left_alone(tmp_path: Path) -> None:
    body = "(float[2,3] x) => (float[2,3] y) { y = ReduceSum<noop_with_empty_axes = 1>(x) }"
    x = drawn(2, 3)
    assert np.array_equal(Emulated(load(proto(body), tmp_path))(x=x), low(x))


def test_every_node_of_a_fused_layer_gives_half(tmp_path: Path) -> None:
    body = "(float[1,4,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w, b) m = Mul(c, k) y = Relu(m) }"
    weights = {"w": drawn(4, 4, 1, 1), "b": drawn(4, seed=1), "k": np.float32(1 / 3)}
    model = load(proto(body, weights), tmp_path)
    assert len(model.layers) == 1
    x = low(drawn(1, 4, 6, 6, seed=2))
    sums = np.einsum("oi,bihw->bohw", low(weights["w"]).reshape(4, 4).astype(np.float64), x)
    biased = low(low(sums) + low(weights["b"]).reshape(4, 1, 1))
    wanted = low(np.maximum(low(biased * low(weights["k"])), 0))
    assert np.array_equal(Emulated(model)(x=x), wanted)
    assert np.array_equal(Emulated(one_node_layers(model))(x=x), wanted)
    assert not np.array_equal(Emulated(model, FP16, LayerCopier)(x=x), wanted)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_other_precisions_are_as_they_always_are(tmp_path: Path, precision: Precision) -> None:
    body = """(float[1,4,6,6] x) => (float[1,4,1,1] y) {
        c = Conv(x, w, b) h = HardSwish(c) s = Sigmoid(h) y = ReduceMean<axes = [2, 3]>(s)
    }"""
    model = load(proto(body, {"w": drawn(4, 4, 1, 1), "b": drawn(4)}), tmp_path)
    table = CalibrationTable({name: Range(5.0) for name in "xchs"}, 1)
    graphs = [Emulated(model, precision, copier, table).proto for copier in (SteppedCopier, LayerCopier)]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("precision", [FP16, BF16])
def test_graphs_with_steps_are_valid_and_their_types_agree(precision: Precision) -> None:
    model, dataset = digits()
    at_sizes = OnnxRuntimeBackend(model, next(iter(dataset)), threads=1).model
    plan = plan_for(at_sizes, precision)
    (segment,) = segments(at_sizes, plan, None, [list(at_sizes.layers)], Flow, Flow, SteppedCopier)
    onnx.shape_inference.infer_shapes(ir.to_proto(segment.graph), check_type=True, strict_mode=True)


def test_the_emulation_of_onnx_runtimes_kernels_differs_where_they_round_more() -> None:
    model, dataset = digits()
    samples = list(dataset)
    plan = plan_for(model, FP16)
    found = [
        OnnxRuntimeBackend(model, samples[0], threads=1).compare(
            plan, None, samples, lambda done: None, metric=None, introduced=True, arithmetic=arithmetic
        )
        for arithmetic in (ONNXRUNTIME, TENSORRT)
    ]
    stepped, plain = (comparison.introduced for comparison in found)
    convolutions = [layer.outputs[0] for layer in model.layers if layer.quantizable]
    assert all(stepped[name].sqnr < plain[name].sqnr + 0.1 for name in convolutions)
    assert any(stepped[name].sqnr < plain[name].sqnr - 1 for name in convolutions)
