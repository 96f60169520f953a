"""The nodes inside If, Loop and Scan are rounded as those of the main graph are, and what breaks in them is told.

Every figure is held against the same arithmetic in float64, rounded to half by hand where the emulation has to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from models import Array, compared, load, plan_for, proto, sample
from numpy.typing import NDArray

from precisionlab.compare.comparison import Comparison
from precisionlab.model import Model
from precisionlab.precision import Precision
from precisionlab.search.causes import causes
from precisionlab.search.nonfinite_origins import nonfinite_starts
from precisionlab.search.rank import rank

Wide = NDArray[np.float64]
Round = Callable[[Wide], Wide]
rng = np.random.default_rng(5)


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def half(values: Wide) -> Wide:
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float16).astype(np.float64)


def brain(values: Wide) -> Wide:
    return np.asarray(values).astype(ml_dtypes.bfloat16).astype(np.float64)


def exact(values: Wide) -> Wide:
    return np.asarray(values, np.float64)


ROUNDS = {"fp16": half, "bf16": brain}
W = {name: normal(8, 8, scale=0.4) for name in ("w", "u")}
K = normal(8)


@dataclass(frozen=True)
class Case:
    """A graph, its constants, its inputs, and what it gives where every tensor is rounded by `r`."""

    body: str
    weights: dict[str, Array]
    inputs: dict[str, Array]
    by_hand: Callable[[Round, dict[str, Wide]], Wide]


def _branch(r: Round, x: dict[str, Wide]) -> Wide:
    h = r(r(x["x"]) @ r(exact(W["w"])))
    inner = r(np.exp(r(h * r(exact(K))))) if x["flag"] else r(h @ r(exact(W["u"])))
    return r(np.tanh(inner))


BRANCH = """(float[4,8] x, bool flag) => (float[4,8] y) {
    h = MatMul(x, w)
    c = If (flag) <then_branch = t () => (float[4,8] p) { s = Mul(h, k) p = Exp(s) },
                  else_branch = e () => (float[4,8] q) { q = MatMul(h, u) }>
    y = Tanh(c) }"""


def _sum(r: Round, x: dict[str, Wide]) -> Wide:
    total = r(x["x"])
    for _ in range(4000):
        total = r(total + r(exact(np.float32(1))))
    return r(-total)


SUM = """(float[4] x, bool go) => (float[4] y) {
    l = Loop (n, go, x) <body = b (int64 i, bool c, float[4] v) => (bool o, float[4] a) {
        o = Identity(c) a = Add(v, one) }>
    y = Neg(l) }"""


def _scan_outputs(r: Round, x: dict[str, Wide]) -> Wide:
    state, rows = r(x["x"]), []
    for _ in range(5):
        state = r(np.tanh(state @ r(exact(W["w"]))))  # one kernel
        rows.append(r(np.sin(state)))
    return r(np.exp(r(np.stack(rows) + r(state))))


SCAN_OUTPUTS = """(float[4,8] x, bool go) => (float[5,4,8] y) {
    l, rows = Loop (n, go, x) <body = b (int64 i, bool c, float[4,8] v) => (bool o, float[4,8] a, float[4,8] s) {
        o = Identity(c) m = MatMul(v, w) a = Tanh(m) s = Sin(a) }>
    z = Add(rows, l) y = Exp(z) }"""


def _scan(r: Round, x: dict[str, Wide]) -> Wide:
    state, rows = r(np.zeros(8)), []
    for row in r(x["x"]):
        state = r(r(state * r(exact(K))) + row)
        rows.append(r(np.tanh(state)))
    return r(np.stack(rows) * r(state))


SCAN = """(float[6,8] x) => (float[6,8] y) {
    l, rows = Scan <num_scan_inputs = 1, body = b (float[8] v, float[8] row) => (float[8] a, float[8] s) {
        d = Mul(v, k) a = Add(d, row) s = Tanh(a) }> (zero, x)
    y = Mul(rows, l) }"""


def _nested(r: Round, x: dict[str, Wide]) -> Wide:
    state, h = r(x["x"]), r(np.sin(r(x["x"])))
    for i in range(6):
        state = r(state * h) if i < 3 else r(state + r(exact(K)))
    return r(np.cos(state))


NESTED = """(float[8] x, bool go) => (float[8] y) {
    h = Sin(x)
    l = Loop (n, go, x) <body = b (int64 i, bool c, float[8] v) => (bool o, float[8] a) {
        o = Identity(c) early = Less(i, three)
        a = If (early) <then_branch = t () => (float[8] p) { p = Mul(v, h) },
                        else_branch = e () => (float[8] q) { q = Add(v, k) }> }>
    y = Cos(l) }"""


def _constant(r: Round, x: dict[str, Wide]) -> Wide:
    return r(r(x["x"]) * (r(exact(K)) if x["flag"] else r(-r(x["x"]))))


CONSTANT = """(float[8] x, bool flag) => (float[8] y) {
    c = If (flag) <then_branch = t () => (float[8] k2) <float[8] k2 = {KS}> { },
                   else_branch = e () => (float[8] q) { q = Neg(x) }>
    y = Mul(x, c) }""".replace("KS", ", ".join(repr(float(v)) for v in K))


def _fused(r: Round, x: dict[str, Wide]) -> Wide:
    h = r(np.exp(r(x["x"])))
    inner = np.maximum(r(h) @ r(exact(W["w"])) + exact(K), 0)  # one kernel: neither product nor sum is rounded
    return r(np.sqrt(r(inner))) if x["flag"] else r(h)


FUSED = """(float[4,8] x, bool flag) => (float[4,8] y) {
    h = Exp(x)
    y = If (flag) <then_branch = t () => (float[4,8] p) { m = MatMul(h, w) a = Add(m, k) b = Relu(a) p = Sqrt(b) },
                   else_branch = e () => (float[4,8] q) { q = Identity(h) }> }"""

YES, NO = np.array(True), np.array(False)
CASES = {
    "then": Case(BRANCH, {**W, "k": K}, {"x": normal(4, 8), "flag": YES}, _branch),
    "else": Case(BRANCH, {**W, "k": K}, {"x": normal(4, 8), "flag": NO}, _branch),
    "growing state": Case(SUM, {"n": np.array(4000), "one": np.float32(1)}, {"x": normal(4), "go": YES}, _sum),
    "scan outputs": Case(SCAN_OUTPUTS, {**W, "n": np.array(5)}, {"x": normal(4, 8), "go": YES}, _scan_outputs),
    "scan": Case(SCAN, {"k": K, "zero": np.zeros(8, np.float32)}, {"x": normal(6, 8)}, _scan),
    "nested": Case(NESTED, {"n": np.array(6), "three": np.array(3), "k": K}, {"x": normal(8), "go": YES}, _nested),
    "constant branch": Case(CONSTANT, {}, {"x": normal(8), "flag": YES}, _constant),
    "other branch": Case(CONSTANT, {}, {"x": normal(8), "flag": NO}, _constant),
    "fused": Case(FUSED, {**W, "k": K}, {"x": normal(4, 8), "flag": YES}, _fused),
}


def _loaded(case: Case, folder: Path) -> Model:
    weights = {name: value for name, value in case.weights.items() if f"{name}" in case.body}
    return load(proto(case.body, weights), folder)


def _sqnr(reference: Wide, output: Wide) -> float:
    return float(10 * np.log10((reference**2).sum() / ((output - reference) ** 2).sum()))


@pytest.mark.parametrize("precision", ROUNDS)
@pytest.mark.parametrize("name", CASES)
def test_bodies_are_rounded_as_float64_arithmetic_is_by_hand(name: str, precision: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = _loaded(case, tmp_path)
    inputs = {key: np.asarray(value, np.float64) for key, value in case.inputs.items()}
    wanted = _sqnr(case.by_hand(exact, inputs), case.by_hand(ROUNDS[precision], inputs))
    for budget in (1, 1 << 20):
        found = compared(model, [sample(**case.inputs)], Precision(precision), budget=budget)
        assert found.outputs["y"].errors is not None
        assert found.outputs["y"].errors.sqnr == pytest.approx(wanted, abs=0.05)


def test_a_sum_carried_through_a_loop_sticks_where_half_does(tmp_path: Path) -> None:
    """2048 + 1 is 2048 in float16, whatever the sum should be."""
    model = _loaded(CASES["growing state"], tmp_path)
    found = compared(model, [sample(x=np.zeros(4, np.float32), go=YES)])
    assert found.inherited["l"].max_ref == 4000
    assert found.inherited["l"].max_error == 4000 - 2048


# What breaks inside


SQUARE = """(float[4,8] x, bool flag) => (float[4,8] y) {
    h = MatMul(x, w)
    y = If (flag) <then_branch = t () => (float[4,8] p) {
        s = Mul(h, h) m = ReduceMean<axes = [-1]>(s) q = Sqrt(m) d = Div(h, q) p = Clip(d, lo, hi) },
                   else_branch = e () => (float[4,8] o) { o = Mul(h, k) }> }"""
LARGE = {"w": W["w"] * 1000, "lo": np.float32(-3), "hi": np.float32(3), "k": K}


def _told(model: Model, found: Comparison, precision: Precision = Precision.FP16) -> dict[str, str]:
    told = causes(model, plan_for(model, precision), found.inherited, found.introduced)
    return {name: cause.text for name, cause in told.items()}


@pytest.mark.newest
def test_an_overflow_inside_is_told_with_the_inner_node(tmp_path: Path) -> None:
    """(1e3)² is beyond float16; what comes of it is 0 where ±1 should be."""
    model = load(proto(SQUARE, LARGE), tmp_path)
    found = compared(model, [sample(x=normal(4, 8), flag=YES)])
    (iff,) = (layer for layer in model.layers if layer.kind == "If")
    assert "overflow inside then_branch of node_of_y: node_of_s, values up to" in _told(model, found)[iff.name]
    assert iff.name in rank(model.layers, found.introduced).required
    assert nonfinite_starts(model, found, {layer.name for layer in model.layers}) == (iff.name,)
    assert found.outputs["y"].errors is not None
    assert found.outputs["y"].errors.sqnr < 10
    # The branch that is not taken does not overflow, and bf16 has the range.
    for flag, precision in ((NO, Precision.FP16), (YES, Precision.BF16)):
        other = compared(model, [sample(x=normal(4, 8), flag=flag)], precision)
        assert other.nonfinite == ()
        assert _told(model, other, precision) == {}


def test_a_nan_that_a_kernel_in_the_body_swallows_is_seen(tmp_path: Path) -> None:
    """Inf − Inf is NaN, and ReduceMax on a CPU loses it, where a GPU's does not: the output says nothing of it."""
    body = """(float[4] x, bool flag) => (float[4] y) {
        e = If (flag) <then_branch = t () => (float[4] p) {
            s = Mul(x, x) d = Sub(s, s) c = ReduceMax(d) p = Add(c, x) },
                       else_branch = f () => (float[4] q) { q = Neg(x) }>
        y = Neg(e) }"""
    model = load(proto(body), tmp_path)
    found = compared(model, [sample(x=np.float32([1, 2, 300, 3]), flag=YES)])
    assert found.inherited["e"].nonfinite == 0
    assert "d in then_branch of node_of_e" in found.broken
    assert found.inherited["d in then_branch of node_of_e"].nan == 2  # its largest value, and its least
    assert compared(model, [sample(x=np.float32([1, 2, 30, 3]), flag=YES)]).broken == ()


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_one_turn_that_overflows_is_seen_among_many(kind: str, opset: int, tmp_path: Path) -> None:
    inner = "a = Mul(v, row) s = Clip(a, lo, hi)"
    bodies = {
        "Loop": """l, rows = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) =>
            (bool o, float[2] z, float[2] s) { o = Identity(c) row = Gather(f, i) INNER z = Identity(v) }>""",
        "Scan": """l, rows = Scan <num_scan_inputs = 1, body = b (float[2] v, float row) => (float[2] z, float[2] s) {
            INNER z = Identity(v) }> (x, f)""",
    }
    body = f"(float[2] x, bool go) => (float[5,2] y) {{ {bodies[kind].replace('INNER', inner)} y = Neg(rows) }}"
    weights = {"n": np.array(5), "f": np.float32([1, 2, 3000, 4, 5]), "lo": np.float32(-1), "hi": np.float32(1)}
    if kind == "Scan":
        del weights["n"]
    model = load(proto(body, weights, opset=opset), tmp_path)
    for x, broken in ((100, True), (10, False)):
        found = compared(model, [sample(x=np.float32([x, -0.5]), go=YES)])
        errors = found.inherited[f"a in body of {model.layers[0].name}"]
        assert (errors.inf, errors.max_ref) == (int(broken), 3000 * x)
        assert found.outputs["y"].errors is not None
        assert found.outputs["y"].errors.max_error < 1e-3  # swallowed


def test_a_loop_of_no_turns_and_tensors_without_elements_hold_nothing(tmp_path: Path) -> None:
    body = """(float[2] x, int64 n, bool go) => (float[?] y) {
        l = Loop (n, go, none) <body = b (int64 i, bool c, float[?] v) => (bool o, float[?] a) {
            o = Identity(c) w = Exp(v) a = Concat<axis = 0>(w, x) }>
        y = Neg(l) }"""
    model = load(proto(body, {"none": np.zeros(0, np.float32)}), tmp_path)
    for turns, most in ((0, 0.0), (1, 0.0), (2, np.exp(2))):
        found = compared(model, [sample(x=np.float32([1, 2]), n=np.array(turns), go=YES)])
        assert found.inherited["w in body of node_of_l"].max_ref == pytest.approx(most, rel=1e-6)
        assert found.nonfinite == ()


def test_what_is_rounded_inside_is_left_alone_by_a_pin(tmp_path: Path) -> None:
    case = CASES["growing state"]
    model = _loaded(case, tmp_path)
    found = compared(model, [sample(**case.inputs)], pinned=["node_of_l", "node_of_y"])
    assert found.outputs["y"].errors is not None
    assert found.outputs["y"].errors.err2 == 0
