"""How true the emulation is: the numbers that say so, and the real layers that it is held against."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.real import RealBackend, RealDevice, check_real, real_device
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.cli import cli
from precisionlab.compare.fidelity import agreements, lowest, ranks, spearman
from precisionlab.errors import OptionError
from precisionlab.model import Model
from precisionlab.plan.assign import precision_of
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow, segments
from precisionlab.rewrite.real import RealCopier, one_node_layers
from precisionlab.rewrite.real_refusals import unsupported
from precisionlab.rewrite.typed.constants import quantised
from tests.models import DIGITS, Array, calibrate, digits, load, plan_for, proto, sample

figures = st.one_of(st.floats(-200, 200), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 30.0]))
pairs = st.lists(st.tuples(figures, figures), max_size=40)


# Figures


@given(pairs)
def test_ranks_are_those_of_the_definition(found: list[tuple[float, float]]) -> None:
    keys = [-math.inf if math.isnan(x) else x for x, _ in found]
    wanted = [1 + sum(y < x for y in keys) + (sum(y == x for y in keys) - 1) / 2 for x in keys]
    assert ranks([x for x, _ in found]).tolist() == wanted


@given(pairs)
def test_spearman_lies_between_its_ends_and_takes_both_sides_alike(found: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in found], [y for _, y in found]
    value = spearman(a, b)
    assert math.isnan(value) or -1 <= value <= 1
    assert value == spearman(b, a) or math.isnan(value)


@given(st.lists(figures, min_size=2, max_size=40))
def test_spearman_is_one_for_the_same_order_and_minus_one_for_the_opposite(values: list[float]) -> None:
    if len(set(ranks(values).tolist())) == 1:
        assert math.isnan(spearman(values, values))
        return
    order = ranks(values).tolist()
    assert spearman(values, order) == pytest.approx(1)
    assert spearman(values, [-x for x in order]) == pytest.approx(-1)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_spearman_with_ties_is_pearson_of_average_ranks(found: list[tuple[int, int]]) -> None:
    a, b = ranks([float(x) for x, _ in found]), ranks([float(y) for _, y in found])
    covariance = math.fsum((x - a.mean()) * (y - b.mean()) for x, y in zip(a, b, strict=True))
    spread = math.fsum((x - a.mean()) ** 2 for x in a) * math.fsum((y - b.mean()) ** 2 for y in b)
    value = spearman([float(x) for x, _ in found], [float(y) for _, y in found])
    assert math.isnan(value) if spread == 0 else value == pytest.approx(covariance / math.sqrt(spread))


def test_spearman_of_a_case_worked_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, squares 4.5 and 5.
    assert spearman([1, 5, 5, 9], [0, 7, 3, 8]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_broken_figures_are_the_lowest_and_exact_ones_the_highest() -> None:
    values = [20.0, math.inf, math.nan, -math.inf, -5.0]
    assert ranks(values).tolist() == [4, 5, 1.5, 1.5, 3]
    assert lowest(values, 3) == [2, 3, 4]


def test_agreements_count_what_is_no_number_and_leave_it_out_of_differences() -> None:
    a = {"a": 10.0, "b": math.nan, "c": math.inf, "d": 30.0, "only": 1.0}
    b = {"a": 12.0, "b": -math.inf, "c": 50.0, "d": 30.5}
    found = agreements(a, b)
    assert (found.tensors, found.finite, found.broken, found.exact) == (4, 2, (1, 1), (1, 0))
    assert found.median_db == 1.25
    assert (found.shared, found.worst) == (4, 4)
    assert found.spearman == 1.0


def test_the_worst_ten_are_counted_where_they_are_shared() -> None:
    a = {str(i): float(i) for i in range(30)}
    b = {str(i): float(i if i not in (0, 1) else 100 + i) for i in range(30)}
    assert agreements(a, b).shared == 8


# Real layers


class _Real:
    """The values of all flows of one plan with real layers, on the CPU."""

    def __init__(self, model: Model, precision: Precision, table: CalibrationTable | None = None) -> None:
        plan = plan_for(model, precision)
        (self.segment,) = segments(model, plan, table, [list(model.layers)], Flow, Flow, RealCopier)
        self.proto = ir.to_proto(self.segment.graph)

    def __call__(self, **inputs: Any) -> dict[tuple[Flow, str], Array]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(self.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = sample(**inputs).inputs
        found = session.run(
            list(self.segment.fetches), {name: arrays[key[1]] for name, key in self.segment.feeds.items()}
        )
        return dict(zip(self.segment.fetches.values(), found, strict=True))


def _table(**amax: float) -> CalibrationTable:
    return CalibrationTable({name: Range(value) for name, value in amax.items()}, 1)


def _levels(values: Array, amax: float) -> Array:
    scale = np.float32(Range(amax).scale(STEPS))
    return np.clip(np.rint(values / scale), -128, 127).astype(np.int64)


def _drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_int8_convolution_is_numpys_integers_exactly(tmp_path: Path) -> None:
    weight, bias, x = _drawn(4, 2, 3, 3), _drawn(4, seed=1), 2 * _drawn(1, 4, 6, 5, seed=2)
    model = load(
        proto(
            "(float[1,4,6,5] x) => (float[1,4,6,5] y) { [conv] y = Conv <group=2, pads=[1,1,1,1]> (x, w, b) }",
            {"w": weight, "b": bias},
        ),
        tmp_path,
    )
    found = _Real(model, Precision.INT8, _table(x=3.0))(x=x)[Flow.VARIANT, "y"]
    scales = weight_scales(weight, 0, STEPS)
    q, w = (
        np.pad(_levels(x, 3.0), ((0, 0), (0, 0), (1, 1), (1, 1))),
        quantised(weight, scales, 0, Precision.INT8).astype(np.int64),
    )
    sums = np.zeros((1, 4, 6, 5), np.int64)
    for channel in range(4):
        first = 2 * (channel // 2)
        for i in range(6):
            for j in range(5):
                sums[0, channel, i, j] = (q[0, first : first + 2, i : i + 3, j : j + 3] * w[channel]).sum()
    factor = (np.float32(Range(3.0).scale(STEPS)) * scales).reshape(4, 1, 1)
    assert np.array_equal(found, sums.astype(np.float32) * factor + bias.reshape(4, 1, 1))


def test_int8_products_of_activations_are_numpys_integers_exactly(tmp_path: Path) -> None:
    a, b = _drawn(2, 3, 4), 5 * _drawn(2, 4, 6, seed=1)
    model = load(proto("(float[2,3,4] a, float[2,4,6] b) => (float[2,3,6] y) { [m] y = MatMul(a, b) }"), tmp_path)
    found = _Real(model, Precision.INT8, _table(a=2.0, b=9.0))(a=a, b=b)[Flow.VARIANT, "y"]
    factor = np.float32(Range(2.0).scale(STEPS)) * np.float32(Range(9.0).scale(STEPS))
    assert np.array_equal(found, (_levels(a, 2.0) @ _levels(b, 9.0)).astype(np.float32) * factor)


def test_an_int8_gemm_has_its_factors_and_turned_operands(tmp_path: Path) -> None:
    x, weight, c = _drawn(4, 3), _drawn(5, 4, seed=1), _drawn(5, seed=2)
    body = """(float[4,3] x) => (float[3,5] y) {
        [fc] y = Gemm <alpha=0.5, beta=2.0, transA=1, transB=1> (x, w, c)
    }"""
    model = load(proto(body, {"w": weight, "c": c}), tmp_path)
    found = _Real(model, Precision.INT8, _table(x=2.0))(x=x)[Flow.VARIANT, "y"]
    scales = weight_scales(weight, 0, STEPS)
    sums = _levels(x, 2.0).T @ quantised(weight, scales, 0, Precision.INT8).astype(np.int64).T
    factor = np.float32(0.5) * np.float32(Range(2.0).scale(STEPS)) * scales
    assert np.array_equal(found, sums.astype(np.float32) * factor + c * np.float32(2))


def test_an_int8_transposed_convolution_is_numpys_integers_exactly(tmp_path: Path) -> None:
    weight, x = _drawn(2, 3, 2, 2), _drawn(1, 2, 3, 3, seed=1)
    model = load(
        proto(
            "(float[1,2,3,3] x) => (float[1,3,6,6] y) { [up] y = ConvTranspose <strides=[2,2]> (x, w) }", {"w": weight}
        ),
        tmp_path,
    )
    assert unsupported(model, plan_for(model, Precision.INT8)) == {}
    found = _Real(model, Precision.INT8, _table(x=2.0))(x=x)[Flow.VARIANT, "y"]
    scales = weight_scales(weight, 1, STEPS)
    q, w = _levels(x, 2.0), quantised(weight, scales, 1, Precision.INT8).astype(np.int64)
    sums = np.einsum("nchw,cmij->nmhiwj", q, w).reshape(1, 3, 6, 6)
    factor = (np.float32(Range(2.0).scale(STEPS)) * scales).reshape(3, 1, 1)
    assert np.array_equal(found, sums.astype(np.float32) * factor)


def test_sums_that_float32_cannot_hold_are_no_real_integers(tmp_path: Path) -> None:
    weight = np.ones((600, 1, 2, 2), np.float32)
    model = load(
        proto("(float[1,600,2,2] x) => (float[1,1,4,4] y) { [up] y = ConvTranspose <strides=[2,2]> (x, w) }",
              {"w": weight}),
        tmp_path,
    )  # fmt: skip
    assert "float32 does not hold" in unsupported(model, plan_for(model, Precision.INT8))["up"]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_graphs_of_real_layers_are_valid_and_their_types_agree(precision: Precision) -> None:
    model, dataset = digits()
    backend = OnnxRuntimeBackend(model, next(iter(dataset)), threads=1)
    table = calibrate(backend, list(dataset)) if precision is Precision.INT8 else None
    graph = _Real(backend.model, precision, table).proto
    onnx.checker.check_model(graph)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)


def test_every_node_of_a_half_layer_is_one_in_half() -> None:
    model, _ = digits()
    real = _Real(model, Precision.FP16)
    low = [layer for layer in model.layers if precision_of(layer, plan_for(model, Precision.FP16)) is Precision.FP16]
    nodes = {node.name: node for node in real.segment.graph.graph}
    for layer in low:
        for name in layer.nodes:
            for prefix in ("variant/", "alone/"):
                node = nodes[prefix + name]
                assert all(v.dtype != ir.DataType.FLOAT for v in node.inputs if v is not None), node
                assert all(v.dtype == ir.DataType.FLOAT16 for v in node.outputs), node


def test_half_layers_are_close_to_the_emulation_where_nothing_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precisionlab.backends.real.IntegerCopier", RealCopier)  # half as the CPU's provider has it
    model, dataset = digits()
    emulation = OnnxRuntimeBackend(model, next(iter(dataset)), threads=1)
    plan = plan_for(emulation.model, Precision.FP16)
    found = [
        backend.compare(plan, None, list(dataset), lambda done: None, metric=None, introduced=True)
        for backend in (emulation, RealBackend(emulation, RealDevice(None)))
    ]
    emulated, real = (comparison.introduced for comparison in found)
    finite = [n for n in emulated if not (emulated[n].new_nonfinite or emulated[n].overflow) and emulated[n].err2]
    assert len(finite) > 8
    # ONNX Runtime's CPU provider rounds where it likes, so that it may be better, and not much worse.
    assert all(real[n].sqnr > emulated[n].sqnr - 6 for n in finite)
    assert sum(abs(real[n].sqnr - emulated[n].sqnr) < 6 for n in finite) > len(finite) / 2


STEPS = Precision.INT8.number_format
ISLAND = """(float[4,16] x) => (float[4,16] y) { [first] a = MatMul(x, V) [low] h = Cast<to = 10>(a)
    [square] s = Mul(h, h) [root] r = Sqrt(s) [high] f = Cast<to = 1>(r) [last] y = MatMul(f, W) }"""


def _with_island(folder: Path) -> Model:
    """A square in half between products of float32."""
    return load(proto(ISLAND, {"V": _drawn(16, 16), "W": _drawn(16, 16, seed=1)}), folder)


def test_the_models_own_half_is_half_in_real_layers_too(tmp_path: Path) -> None:
    model = _with_island(tmp_path)
    graph = _Real(model, Precision.FP16).proto
    onnx.checker.check_model(graph)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True)
    casts = [node.attribute[0].i for node in graph.graph.node if node.name == "variant/low"]
    assert casts == [onnx.TensorProto.FLOAT16]


def test_on_a_cpu_the_models_own_half_is_rounded_as_emulated_and_told_as_not_real(tmp_path: Path) -> None:
    """What its kernels make of it goes by the processor: they square 300 in float32, or to Inf."""
    model = _with_island(tmp_path)
    given = sample(x=_drawn(4, 16) * 100)
    emulation = OnnxRuntimeBackend(model, given, threads=1)
    backend, table = RealBackend(emulation, RealDevice(None)), _table(x=400, f=2000)
    assert set(backend.unsupported(plan_for(model, Precision.INT8))) == {"low", "square", "root"}
    for pinned, overflows in (([], True), (["low", "square", "root"], False)):
        plan = plan_for(model, Precision.INT8, pinned)
        emulated, real = (
            which.compare(plan, table, [given], lambda done: None, metric=None, introduced=True)
            for which in (emulation, backend)
        )
        assert set(emulated.nonfinite) == set(real.nonfinite)
        assert ("s" in emulated.nonfinite) == overflows


def test_int8_is_held_against_integers_in_a_model_with_half_inside(tmp_path: Path) -> None:
    _with_island(tmp_path)
    (tmp_path / "data").mkdir()
    for index in range(4):
        np.save(tmp_path / "data" / f"{index}.npy", _drawn(4, 16, seed=index))
    arguments = ["fidelity", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data"), "--precisions", "int8"]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code in (0, 1), done.output
    (found,) = json.loads((tmp_path / "out" / "fidelity.json").read_text())["precisions"]
    assert set(found["unsupported"]) == {"low", "square", "root"}
    assert all("as the processor goes" in why for why in found["unsupported"].values())
    assert found["final_sqnr_db"]["emulated"] == pytest.approx(found["final_sqnr_db"]["real"], abs=0.01)


def test_parameters_that_half_cannot_hold_are_folded(tmp_path: Path) -> None:
    ones = np.ones(2, np.float32)
    body = """(float[1,2,3,3] x) => (float[1,2,3,3] y) {
        [bn] y = BatchNormalization(x, scale, shift, mean, variance)
    }"""
    weights = {"scale": 1e3 * ones, "shift": ones, "mean": ones, "variance": 1e6 * ones}
    model = load(proto(body, weights), tmp_path)
    x = _drawn(1, 2, 3, 3)
    found = _Real(model, Precision.FP16)(x=x)[Flow.VARIANT, "y"]
    assert np.abs(found - x).max() < 0.01


def test_what_onnx_does_not_define_in_the_type_is_told(tmp_path: Path) -> None:
    model = load(
        proto("(float[1,2,4,4] x) => (float[1,2,4,4] y) { [conv] y = Conv <pads=[1,1,1,1]> (x, w) }",
              {"w": _drawn(2, 2, 3, 3)}),
        tmp_path,
    )  # fmt: skip
    assert unsupported(model, plan_for(model, Precision.BF16)) == {
        "conv": "ONNX does not define Conv in bf16 at opset 17"
    }
    assert unsupported(model, plan_for(model, Precision.FP16)) == {}


def test_unfused_layers_hold_every_node_once_and_keep_what_is_fixed() -> None:
    model, _ = digits()
    found = one_node_layers(model)
    assert sorted(name for layer in found.layers for name in layer.nodes) == sorted(model.node)
    assert all(len(layer.nodes) == 1 for layer in found.layers)
    fixed = {layer.nodes for layer in model.layers if layer.fixed is not None}
    assert {layer.nodes for layer in found.layers if layer.fixed is not None} == fixed


# The command


@pytest.mark.slow
def test_the_command_holds_int8_against_integers_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["fidelity", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--precisions", "int8"]
    done = CliRunner().invoke(cli, [*arguments, "--samples", "8", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "MISSED" not in done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(out) not in line)
    said = json.loads((out / "fidelity.json").read_text())
    assert (said["layers"], said["kernels"]) == ("nodes", "onnxruntime")
    (found,) = said["precisions"]
    assert found["unsupported"] == {}
    assert max(abs(kind["median_db"]) for kind in found["kinds"].values()) < 0.01
    assert found["introduced"]["spearman"] > 0.999
    assert found["final_sqnr_db"]["emulated"] == pytest.approx(found["final_sqnr_db"]["real"], abs=0.01)
    assert found["final_sqnr_db"]["emulated"] == pytest.approx(found["final_sqnr_db"]["optimised"], abs=0.5)
    assert len((out / "fidelity.csv").read_text().splitlines()) > found["inherited"]["tensors"]
    page = (out / "fidelity.html").read_text()
    assert page.count("<svg") == 2
    assert "http:" not in page.replace("http://www.w3.org", "")


def test_the_command_refuses_half_where_no_gpu_computes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["fidelity", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--out", str(out)])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA provider" in done.stderr
    assert "--precisions int8" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "option", [["--against", "nobody"], ["--layers", "some"], ["--kernels", "own"], ["--device", "tpu"]]
)
def test_the_command_refuses_what_it_does_not_know(option: list[str]) -> None:
    arguments = ["fidelity", str(DIGITS / "digits.onnx"), "--data", str(DIGITS), "--precisions", "int8"]
    done = CliRunner().invoke(cli, [*arguments, *option])
    assert done.exit_code == 2
    assert option[1] in done.stderr


def test_half_on_the_cpu_is_not_real() -> None:
    with pytest.raises(OptionError, match="not real on the cpu"):
        check_real(Precision.FP16, real_device("cpu"))
    check_real(Precision.INT8, real_device("cpu"))
    assert real_device("CUDA:1") == RealDevice(1)
    assert real_device("cuda") == RealDevice(0)
