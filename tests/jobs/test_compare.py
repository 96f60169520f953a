"""A second model beside the first: right figures of each layer, a verdict, and files that say the same."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import DIGITS, Array, proto
from onnx import helper, numpy_helper

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.second import SecondRun
from precisionlab.cli import cli
from precisionlab.compare.judging import judging_of
from precisionlab.data import open_dataset
from precisionlab.errors import ModelError, OptionError
from precisionlab.jobs.compare import compare
from precisionlab.model import load_model
from precisionlab.model.other import load_other
from precisionlab.model.twins import twins_of
from precisionlab.search.verdict import State

RNG = np.random.default_rng(1)
WEIGHTS = {"w": RNG.standard_normal((4, 4)).astype(np.float32), "v": RNG.standard_normal((4, 4)).astype(np.float32)}
BODY = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) b = Exp(a) c = MatMul(b, v) y = Tanh(c) }"
HALF = BODY.replace("float[", "float16[")


def made(folder: Path, theirs: onnx.ModelProto, ours: onnx.ModelProto | None = None) -> tuple[Path, Path, Path]:
    onnx.save_model(ours or proto(BODY, WEIGHTS), folder / "model.onnx")
    onnx.save_model(theirs, folder / "other.onnx")
    (folder / "data").mkdir()
    for i in range(9):
        np.savez(folder / "data" / f"{i}.npz", x=RNG.standard_normal((2, 4)).astype(np.float32))
    return folder / "model.onnx", folder / "other.onnx", folder / "data"


def in_half(weights: Mapping[str, Array] = WEIGHTS) -> onnx.ModelProto:
    return proto(HALF, {name: value.astype(np.float16) for name, value in weights.items()})


def sqnr(pairs: Sequence[tuple[Array, Array]]) -> float:
    true, low = (np.concatenate([p[i].astype(np.float64).ravel() for p in pairs]) for i in (0, 1))
    return float(10 * np.log10(np.square(true).sum() / np.square(low - true).sum()))


def half(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float32)


def test_a_model_in_half_has_the_errors_that_numpy_has_so_far_and_of_each_layer_alone(tmp_path: Path) -> None:
    found = compare(*made(tmp_path, in_half()), out=tmp_path / "out", threads=1)
    far: dict[str, list[tuple[Array, Array]]] = {name: [] for name in "aby"}
    own: dict[str, list[tuple[Array, Array]]] = {name: [] for name in "aby"}
    w, v = (half(WEIGHTS[name]) for name in "wv")
    for file in sorted((tmp_path / "data").glob("*.npz")):
        x = np.load(file)["x"]
        a = x @ WEIGHTS["w"]
        b = np.exp(a)
        y = np.tanh(b @ WEIGHTS["v"])
        a_low = half(half(x) @ w)
        b_low = half(np.exp(a_low))
        y_low = half(np.tanh(half(b_low @ v)))
        for name, pair in zip("aby", ((a, a_low), (b, b_low), (y, y_low)), strict=True):
            far[name].append(pair)
        own["a"].append((a, a_low))
        own["b"].append((b, half(np.exp(half(a)))))
        own["y"].append((y, half(np.tanh(half(half(b) @ v)))))
    rows = {row.tensor: row for row in found.rows}
    for name, row in rows.items():
        assert row.inherited is not None
        assert row.introduced is not None
        if name in far:
            assert row.inherited.sqnr == pytest.approx(sqnr(far[name]), abs=0.1)
            assert row.introduced.sqnr == pytest.approx(sqnr(own[name]), abs=0.1)
    assert {"a", "b", "y"} <= rows.keys()
    assert found.met
    assert found.verdict.state is State.MET
    assert "Input x is FLOAT16 there and FLOAT here: values are converted." in found.notes


def test_the_same_model_has_no_error_anywhere(tmp_path: Path) -> None:
    found = compare(*made(tmp_path, proto(BODY, WEIGHTS)), out=tmp_path / "out")
    assert {row.inherited.sqnr for row in found.rows if row.inherited} == {np.inf}
    assert found.notes[0] == "both files hold the same bytes"


def test_a_wrong_weight_is_introduced_by_its_layer_and_inherited_by_those_behind(tmp_path: Path) -> None:
    wrong = {**WEIGHTS, "v": -WEIGHTS["v"]}
    found = compare(*made(tmp_path, proto(BODY, wrong)), out=tmp_path / "out")
    own = {row.tensor: row.introduced.sqnr for row in found.rows if row.introduced}
    assert own["a"] == own["b"] == np.inf
    worst = found.worst_rows(1)[0]
    assert "MatMul" in worst.kind
    assert worst.layer == next(row.layer for row in found.rows if row.tensor in ("c", "y"))
    assert not found.met


def test_inf_that_half_cannot_hold_is_judged_at_the_output_and_a_nan_is_broken(tmp_path: Path) -> None:
    body = "(float[N,4] x) => (float[N,4] y) { a = Mul(x, big) b = Mul(a, small) y = Clip(b, low, high) }"
    ends = {"low": np.float32(-1), "high": np.float32(1), "big": np.float32(3e4), "small": np.float32(1e-4)}
    ours = proto(body, ends)
    theirs = proto(body.replace("float[", "float16["), {k: v.astype(np.float16) for k, v in ends.items()})
    found = compare(*made(tmp_path, theirs, ours), out=tmp_path / "out")
    assert found.comparison.nonfinite[0] == "a"
    assert found.comparison.broken == ()


@pytest.mark.parametrize("bound", ["top1>=0.5", "sqnr[nosuch]>=3"])
def test_a_bound_that_cannot_be_judged_is_refused(bound: str, tmp_path: Path) -> None:
    body = "(float[4] x) => (float[4] y) { y = Relu(x) }"
    ours, theirs, data = made(tmp_path, proto(body), proto(body))
    for file in data.iterdir():
        np.savez(file, x=np.ones(4, np.float32))
    with pytest.raises(OptionError, match=r"cannot be judged|no such output"):
        compare(ours, theirs, data, tolerance=bound, out=tmp_path / "out")
    assert compare(ours, theirs, data, tolerance="sqnr>=3", out=tmp_path / "out").met


def test_a_bound_of_a_tensor_without_a_twin_is_refused_and_one_with_a_twin_is_judged(tmp_path: Path) -> None:
    body = BODY.replace("b = Exp(a)", "t = Exp(a) u = Neg(t) z = Neg(u)").replace("(b, v)", "(z, v)")
    paths = made(tmp_path, proto(body, WEIGHTS))
    assert [row.tensor for row in compare(*paths, out=tmp_path / "out").unmatched] == ["b"]
    with pytest.raises(OptionError, match="--match b=THEIRS"):
        compare(*paths, tolerance="sqnr[b]>=3", out=tmp_path / "out")
    assert compare(*paths, tolerance="sqnr[b]>=100", match={"b": "t"}, out=tmp_path / "out").met


def test_a_second_model_that_cannot_run_on_the_samples_is_named(tmp_path: Path) -> None:
    theirs = proto("(float[5,4] x) => (float[5,4] y) { y = Tanh(x) }")
    with pytest.raises(ModelError, match=r"other\.onnx: on sample 0\.npz, ONNX Runtime cannot run the model"):
        compare(*made(tmp_path, theirs), out=tmp_path / "out")


def test_parts_that_fit_little_memory_give_the_same_bits(tmp_path: Path) -> None:
    ours, theirs, data = made(tmp_path, in_half())
    model, other = load_model(ours), load_other(theirs)
    dataset = open_dataset(data, model, None, 0).checked()
    model = OnnxRuntimeBackend(model, next(iter(dataset)), 1).model
    run = SecondRun(model, other, twins_of(model, other, {}), judging_of(model), 1)
    parts: list[int] = []
    whole, small = (
        run.compare(dataset, None, budget, lambda number, of: parts.append(of), lambda done: None)
        for budget in (1 << 30, 1)
    )
    assert (parts[0], parts[-1]) == (1, len(run.twins))
    assert (whole.inherited, whole.introduced, whole.outputs) == (small.inherited, small.introduced, small.outputs)


def test_half_in_branches_is_rounded_too(tmp_path: Path) -> None:
    body = """(float{h}[4] x) => (float{h}[4] y) {{
        s = ReduceSum <keepdims = 0> (x) z = Cast <to = {t}> (zero) g = Greater(s, z)
        y = If (g) <
            then_branch = a () => (float{h}[4] p) {{ q = Mul(x, k) p = Mul(q, j) }},
            else_branch = b () => (float{h}[4] r) {{ r = Neg(x) }} > }}"""
    ours = proto(body.format(h="", t=1), {"zero": np.float32(0), "k": np.float32(3e-6), "j": np.float32(1e5)})
    theirs = proto(
        body.format(h="16", t=10),
        {"zero": np.float32(0), "k": np.float16(3e-6), "j": np.float16(6e4)},
    )
    paths = made(tmp_path, theirs, ours)
    for file in paths[2].iterdir():
        np.savez(file, x=np.full(4, 1e-3, np.float32))
    found = compare(*paths, out=tmp_path / "out")
    assert found.comparison.worst("sqnr") == 0.0  # the product is below half's smallest number, and 0 there


@pytest.mark.slow
def test_quantised_models_of_onnx_runtime_are_compared_by_what_comes_behind_takes(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._items = iter([{"image": np.load(DIGITS / f"{i:04}.npz")["image"]} for i in range(4)])

        def get_next(self) -> Any:
            return next(self._items, None)

    quantize_static(
        str(DIGITS / "digits.onnx"), str(tmp_path / "qdq.onnx"), Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    found = compare(DIGITS / "digits.onnx", tmp_path / "qdq.onnx", DIGITS, samples=8, out=tmp_path / "out")
    assert not found.unmatched
    assert str(found.tolerance[0]) == "sqnr>=20"
    # Its Relu is gone into the quantiser's range: the float tensor of that name is another thing.
    assert all(row.introduced is not None and row.introduced.sqnr > 10 for row in found.rows)


def test_rows_that_are_picked_by_value_have_no_figure_place_by_place(tmp_path: Path) -> None:
    body = """(float[16,4] x) => (float[3,4] y) {
        s = ReduceSum <keepdims = 0> (x, axes) v, i = TopK(s, k) r = Gather(x, i) y = Mul(r, two) }"""
    weights = {"axes": np.array([1]), "k": np.array([3]), "two": np.float32(2)}
    ours = proto(body, weights)
    theirs = proto(body.replace("float[", "float16["), {**weights, "two": np.float16(2)})
    paths = made(tmp_path, theirs, ours)
    for file in paths[2].iterdir():
        np.savez(file, x=RNG.standard_normal((16, 4)).astype(np.float32))
    found = compare(*paths, out=tmp_path / "out")
    (picked,) = (row for row in found.rows if row.tensor == "r")
    assert picked.inherited is None
    assert "picked by value" in picked.why
    assert picked.introduced is not None
    assert picked.introduced.sqnr > 60  # it is given the first model's indices
    assert found.met


# The command line


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, args)], catch_exceptions=False)


def test_the_command_prints_the_verdict_and_writes_three_files_that_say_the_same(tmp_path: Path) -> None:
    ours, theirs, data = made(tmp_path, in_half())
    found = run(ours, theirs, "--data", data, "--out", tmp_path / "out", "--threads", "1")
    assert found.exit_code == 0
    assert "right: the second model is within sqnr>=30" in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines() if "out/compare.html" not in line)
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    with (tmp_path / "out" / "compare.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["tensor"] for row in rows] == [layer["tensor"] for layer in content["layers"]]
    assert float(rows[0]["inherited_sqnr_db"]) == content["layers"][0]["inherited_sqnr_db"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert content["verdict"]["sentence"].replace(">", "&gt;") in page


@pytest.mark.thorough
def test_the_commands_of_the_page_run_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, data = made(tmp_path, proto(BODY, {**WEIGHTS, "v": -WEIGHTS["v"]}))
    run(ours, theirs, "--data", data, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shown = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page, re.S)]
    assert len(shown) == 2
    for text in shown:
        assert CliRunner().invoke(cli, shlex.split(text)[1:], catch_exceptions=False).exit_code in (0, 1)


def test_a_second_model_that_is_not_right_exits_with_1_and_one_that_does_not_fit_with_2(tmp_path: Path) -> None:
    ours, theirs, data = made(tmp_path, proto(BODY, {**WEIGHTS, "v": -WEIGHTS["v"]}))
    assert run(ours, theirs, "--data", data, "--out", tmp_path / "out", "--json").exit_code == 1
    assert run(ours, theirs, "--data", data, "--match", "a").exit_code == 2
    assert run(ours, tmp_path / "nosuch.onnx", "--data", data).exit_code == 2


def test_json_is_strict_with_figures_that_are_none(tmp_path: Path) -> None:
    ours, theirs, data = made(tmp_path, proto(BODY, WEIGHTS))
    found = run(ours, theirs, "--data", data, "--out", tmp_path / "out", "--json")
    content = json.loads(found.stdout, parse_constant=lambda word: pytest.fail(word))
    assert content["outputs"]["y"]["sqnr"] == "inf"
    assert content["bounds"][0]["interval"] == ["inf", "inf"]


def test_names_of_strangers_are_escaped_in_the_page_the_table_and_the_terminal(tmp_path: Path) -> None:
    bad = '=<script>alert("x")</script>\x1b[31m'
    model = proto(BODY, WEIGHTS)
    for node in model.graph.node:
        node.name = bad + node.name
        for values in (node.input, node.output):
            values[:] = [bad if value == "a" else value for value in values]
    ours, theirs, data = made(tmp_path, model, model)
    found = run(ours, theirs, "--data", data, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<script>alert" not in page
    assert "\x1b" not in found.stdout + page
    assert "\n=" not in (tmp_path / "out" / "compare.csv").read_text()


def test_integers_of_another_size_are_converted_and_those_that_cannot_be_are_refused(tmp_path: Path) -> None:
    ours = proto("(int64[N] i) => (float[N,4] y) { y = Gather(w, i) }", WEIGHTS)
    theirs = proto("(int32[N] i) => (float[N,4] y) { y = Gather(w, i) }", WEIGHTS)
    paths = made(tmp_path, theirs, ours)
    for file in paths[2].iterdir():
        np.savez(file, i=np.array([0, 3]))
    assert compare(*paths, out=tmp_path / "out").met
    small = proto("(int8[N] i) => (float[N,4] y) { j = Cast <to = 7> (i) y = Gather(w, j) }", WEIGHTS)
    onnx.save_model(small, paths[1])
    long = {"w": np.ones((300, 4), np.float32)}
    onnx.save_model(proto("(int64[N] i) => (float[N,4] y) { y = Gather(w, i) }", long), paths[0])
    for file in paths[2].iterdir():
        np.savez(file, i=np.array([0, 299]))
    with pytest.raises(ModelError, match=r"input 'i' takes INT8, of sample 0.npz"):
        compare(*paths, out=tmp_path / "out")


def test_operators_of_onnx_runtime_in_half_are_known_by_its_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("FastGelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Mul", ["g", "k"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT16, ["N", 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [numpy_helper.from_array(np.float16(3), "k")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    theirs = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save_model(theirs, tmp_path / "half.onnx")
    other = load_other(tmp_path / "half.onnx")
    assert set(other.halves) >= {"x", "g", "y"}
