"""How large a layer's sums are on the way: the bound, what samples show, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, Array, examples, load, plan_for, proto

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.compare.judging import judging_of
from precisionlab.data import open_dataset
from precisionlab.data.dataset import Dataset
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.running_sums import RunningSum, running_sums
from precisionlab.model import Model, load_model
from precisionlab.plan.arithmetic import ONNXRUNTIME, TENSORRT, Arithmetic
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.search.causes import CauseKind, with_sums
from precisionlab.system.observer import Silent

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
END = 65504.0


class Heard(Silent):
    """Remembers the stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str, total: int, unit: str = "sample") -> None:
        self.stages.append(title)


class Work:
    """A model with its samples, ready to be looked at."""

    def __init__(
        self, model: Model, folder: Path, *inputs: Mapping[str, Array], arithmetic: Arithmetic = TENSORRT
    ) -> None:
        data = folder / "data"
        data.mkdir()
        for index, arrays in enumerate(inputs):
            np.savez(data / f"{index}.npz", **arrays)
        self.dataset: Dataset = open_dataset(data, model, None, 0).checked()
        self.backend = OnnxRuntimeBackend(model, next(iter(self.dataset)), 1)
        self.model, self.heard = self.backend.model, Heard()
        judging = judging_of(self.model)
        self.evaluator = Evaluator(self.backend, self.dataset, None, None, NoJournal(), self.heard, judging, arithmetic)
        self.largest: dict[str, float] = {}
        self.backend.look(self.dataset, self._note)

    def _note(self, name: str, value: Array) -> None:
        if value.size:
            finite = np.abs(value[np.isfinite(value)])
            self.largest[name] = max(self.largest.get(name, 0.0), float(finite.max(initial=0)))

    def found(self, plan: PrecisionPlan | None = None) -> dict[str, RunningSum]:
        return running_sums(self.evaluator, plan or plan_for(self.model, FP16), self.largest, self.backend.look)


def work(body: str, weights: Mapping[str, Array], folder: Path, *inputs: Mapping[str, Array]) -> Work:
    return Work(load(proto(body, weights), folder), folder, *inputs)


def toy(sign: float = -1.0) -> dict[str, Array]:
    """16 weights of +300 and 16 of `sign` · 300, in blocks of 16, among 64."""
    column = np.concatenate([np.full(16, 300), np.full(16, sign * 300), np.zeros(32)])
    return {"w": np.stack([column, np.ones(64)], axis=1).astype(np.float32)}


TOY = '(float[1,64] x) => (float[1,2] y) { ["sum"] y = MatMul(x, w) }'


def near_15() -> dict[str, Array]:
    return {"x": np.random.default_rng(0).uniform(14, 16, (1, 64)).astype(np.float32)}


# What is found


def test_a_sum_that_passes_half_on_the_way_to_a_small_result_is_found_with_all_its_figures(tmp_path: Path) -> None:
    x, w = near_15(), toy()["w"]
    one = work(TOY, toy(), tmp_path, x)
    found = one.found()["sum"]
    exact = x["x"][0].astype(np.float16).astype(np.float64)
    assert found.bound == pytest.approx(np.abs(x["x"]).max() * 9600)
    assert found.absolute == pytest.approx(exact[:32].sum() * 300, rel=1e-5)
    assert found.largest == pytest.approx(exact[:16].sum() * 300, rel=1e-5)
    assert found.result == pytest.approx(abs(exact @ w[:, 0]), rel=1e-3)
    assert found.largest is not None
    assert found.largest > END
    assert one.heard.stages == ["fp16, sums on their way"]


def test_of_several_samples_the_largest_sum_counts_with_its_own_result(tmp_path: Path) -> None:
    smaller, larger = near_15(), {"x": near_15()["x"] * 1.01}
    several = work(TOY, toy(), tmp_path, smaller, larger, smaller).found()["sum"]
    (tmp_path / "alone").mkdir()
    alone = work(TOY, toy(), tmp_path / "alone", larger).found()["sum"]
    assert several == alone


def test_its_cause_says_where_the_sum_ends_how_far_it_goes_and_what_it_comes_to(tmp_path: Path) -> None:
    one = work(TOY, toy(), tmp_path, near_15())
    plan = plan_for(one.model, FP16)
    running = one.found()
    cause = with_sums({}, running, one.model, plan)["sum"]
    assert cause.kinds == (CauseKind.SUM_OVERFLOWS,)
    assert str(cause) == (
        f"its sum passes 65504 on the way, at {running['sum'].largest:.6g}, although the result is "
        f"{running['sum'].result:.3g}: infinite where the kernel keeps its sums in fp16"
    )


def test_a_result_that_is_itself_beyond_half_is_no_matter_of_its_sum(tmp_path: Path) -> None:
    one = work(TOY, toy(sign=1.0), tmp_path, near_15())
    running = one.found()
    assert running["sum"].largest == running["sum"].result
    assert with_sums({}, running, one.model, plan_for(one.model, FP16)) == {}


def test_a_sum_below_the_end_has_no_cause(tmp_path: Path) -> None:
    one = work(TOY, toy(), tmp_path, {"x": near_15()["x"] * 0.8})
    running = one.found()
    assert running["sum"].bound > END > (running["sum"].largest or END)
    assert with_sums({}, running, one.model, plan_for(one.model, FP16)) == {}


# What is not looked at


def test_where_the_bound_fits_no_sample_is_looked_at(tmp_path: Path) -> None:
    one = work(TOY, toy(), tmp_path, {"x": near_15()["x"] * 0.3})
    (found,) = one.found().values()
    assert found == RunningSum(found.bound)
    assert found.bound <= END
    assert one.heard.stages == []


@pytest.mark.parametrize("precision", [BF16, FP32])
def test_what_never_keeps_sums_in_itself_is_not_looked_at(tmp_path: Path, precision: Precision) -> None:
    one = work(TOY, toy(), tmp_path, near_15())
    assert one.found(plan_for(one.model, precision)) == {}
    assert one.found(plan_for(one.model, FP16, pinned=["sum"])) == {}
    assert one.heard.stages == []


def test_onnx_runtimes_kernels_add_up_in_float32_and_are_not_looked_at(tmp_path: Path) -> None:
    model = load(proto(TOY, toy()), tmp_path)
    one = Work(model, tmp_path, near_15(), arithmetic=ONNXRUNTIME)
    assert one.found() == {}


def test_an_operand_beyond_half_is_not_said_to_be_a_sums_fault(tmp_path: Path) -> None:
    one = work(TOY, toy(), tmp_path, {"x": near_15()["x"] * 5000})
    running = one.found()
    assert running["sum"].bound > END
    assert running["sum"].largest is None
    assert with_sums({}, running, one.model, plan_for(one.model, FP16)) == {}
    assert one.heard.stages == []


def test_a_weight_beyond_half_is_what_the_kernel_is_handed_of_it(tmp_path: Path) -> None:
    weights = {"w": np.concatenate([np.full((1, 1), 1e6), np.zeros((63, 1))]).astype(np.float32)}
    one = work(TOY.replace("float[1,2] y", "float[1,1] y"), weights, tmp_path, {"x": np.full((1, 64), 1.5, np.float32)})
    found = one.found()["sum"]
    assert found.bound == found.largest == found.result == 1.5 * END


def test_an_int8_plans_layers_in_half_are_held_to_the_end_of_half(tmp_path: Path) -> None:
    """127, where int8 ends, is no end of theirs."""
    one = work(TOY, toy(), tmp_path, near_15())
    pin = Pin("sum", one.model.layer["sum"].nodes, FP16, "test")
    plan = PrecisionPlan(one.model.sha256, INT8, (pin,))
    running = one.found(plan)
    assert running["sum"].largest is not None
    assert "keeps its sums in fp16" in str(with_sums({}, running, one.model, plan)["sum"])
    (tmp_path / "small").mkdir()
    small = work(TOY, toy(), tmp_path / "small", {"x": near_15()["x"] * 0.3})
    assert small.found(plan)["sum"].largest is None
    assert small.heard.stages == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("op_type", "bad", "good"), [("Sqrt", -1.0, 225.0), ("Reciprocal", 0.0, 1 / 15)])
def test_samples_where_the_reference_is_nan_or_inf_have_no_cause_and_those_beside_them_have_theirs(
    tmp_path: Path, op_type: str, bad: float, good: float
) -> None:
    body = f'(float[1,64] x) => (float[1,2] y) {{ ["made"] a = {op_type}(x) ["sum"] y = MatMul(a, w) }}'
    broken, fine = ({"x": np.full((1, 64), value, np.float32)} for value in (bad, good))
    for name, inputs, is_told in (("alone", [broken], False), ("beside", [broken, fine, broken], True)):
        (tmp_path / name).mkdir()
        one = work(body, toy(), tmp_path / name, *inputs)
        one.largest["a"] = 16.0  # a histogram has the largest of what is finite
        found = with_sums({}, one.found(), one.model, plan_for(one.model, FP16))
        assert found.keys() == ({"sum"} if is_told else set()), name


# Any operator


@st.composite
def layers(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One layer of any kind whose bound is beyond half, and what it takes."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "MatMul of two", "left", "itself"]))
    m, k, n = (draw(st.integers(1, 40)) for _ in range(3))
    attributes: dict[str, int | list[int]] = {}
    if kind in ("Conv", "ConvTranspose"):
        group, c, rows = draw(st.sampled_from([1, 2])), draw(st.integers(1, 9)), draw(st.integers(1, 4))
        strides, pads = draw(st.integers(1, 3)), draw(st.integers(0, 1))
        attributes = {"group": group, "strides": [strides] * 2, "pads": [pads] * 4}
        shapes = [(1, group * c, 6, 5), (group * rows, c, 3, 2) if kind == "Conv" else (group * c, rows, 3, 2)]
    elif kind == "Gemm":
        turned = draw(st.integers(0, 1)), draw(st.integers(0, 1))
        attributes = {"transA": turned[0], "transB": turned[1]}
        shapes = [(k, m) if turned[0] else (m, k), (n, k) if turned[1] else (k, n)]
    elif kind == "itself":
        shapes = [(m, m)]
    else:
        shapes = [(2, m, k), (k, n)]
    values = [(rng.standard_normal(shape) * 700).astype(np.float32) for shape in shapes]
    is_constant = kind in ("Conv", "ConvTranspose", "MatMul") or (kind == "Gemm" and draw(st.booleans()))
    names = ["x", "x"] if kind == "itself" else ["x", "w"]
    if kind == "left":
        values = [values[1].T.copy(), np.swapaxes(values[0], 1, 2).copy()]
        names, is_constant = ["w", "x"], True
    arrays = dict(zip(names, values, strict=False))
    constants = {"w": arrays.pop("w")} if is_constant else {}
    node = onnx.helper.make_node(kind.split()[0] if kind[0].isupper() else "MatMul", names, ["y"], "sum", **attributes)
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in arrays.items()]
    rank = max(value.ndim for value in values)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph([node], "g", info, [out], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), arrays


@settings(max_examples=examples(60))
@given(layers())
def test_the_largest_sum_is_at_most_that_without_signs_and_that_at_most_the_bound(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[onnx.ModelProto, dict[str, Array]]
) -> None:
    folder = tmp_path_factory.mktemp("layer")
    one = Work(load(case[0], folder), folder, case[1])
    (found,) = one.found().values()
    if found.bound <= END:
        assert found.largest is None
        return
    assert found.largest is not None
    assert found.absolute is not None
    assert found.result is not None
    # Operands are rounded to half on the way, the bound is of the reference's; sums are float32's.
    assert found.result <= found.largest <= found.absolute * (1 + 2.0**-18)
    assert found.absolute <= found.bound * (1 + 2.0**-10)
    assert found.absolute > 0


def test_on_a_real_model_it_is_the_largest_layer_by_layer(tmp_path: Path) -> None:
    model = load_model(DIGITS / "digits.onnx")
    dataset = open_dataset(DIGITS, model, 4, seed=0).checked()
    one = Work(model, tmp_path, *[sample.inputs for sample in dataset])
    found = one.found()
    assert found.keys() == {layer.name for layer in one.model.layers if layer.quantizable}
    for running in found.values():
        assert running.largest is None or running.largest <= running.bound * (1 + 2.0**-10)


def test_a_sample_that_is_fetched_ahead_takes_no_operand_away(tmp_path: Path) -> None:
    """Another thread fetches it, while this one has been shown one of two operands."""
    body = '(float[1,64] x, float[64,2] z) => (float[1,2] y) { ["sum"] y = MatMul(x, z) }'
    sizes = ((1, 100), (100, 1))
    given = [{"x": np.full((1, 64), x, np.float32), "z": np.full((64, 2), z, np.float32)} for x, z in sizes]
    found = work(body, {}, tmp_path, *given)

    def look(samples: Any, see: Any) -> None:
        waiting = iter(samples)
        sample = next(waiting)
        while sample is not None:
            see("x", sample.inputs["x"])
            ahead = next(waiting, None)
            see("z", sample.inputs["z"])
            sample = ahead

    plan = plan_for(found.model, FP16)
    assert running_sums(found.evaluator, plan, {"x": 1e3, "z": 1e3}, look)["sum"].largest == 6400.0
