"""Exports of a plan with repairs: each is of the repaired model, which gives what the original gives."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from models import proto
from onnx import TensorProto, helper, numpy_helper
from repairing import BREAKING, NORM, breaking, plan_file, repair_of, samples_in, weights

from precisionlab.cli import cli
from precisionlab.errors import ModelError, OptionError, PlanError
from precisionlab.jobs.export import REPAIRED, TARGETS, TYPED, export_plan
from precisionlab.model import Model
from precisionlab.model.load import load_model
from precisionlab.model.save import save_model
from precisionlab.precision import Precision

FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "local": 1]>
agraph (float[4, 32] x) => (float[4, 8] y) <float[32, 32] w, float[32, 8] w2> {
    h = MatMul(x, w) hn = local.rms(h) y = MatMul(hn, w2)
}
<domain: "local", opset_import: ["" : 17]>
rms (h) => (hn) {
    eps = Constant <value_float: float = 0.00001> ()
    sq = Mul(h, h) ms = ReduceMean <axes = [-1]> (sq) me = Add(ms, eps) rt = Sqrt(me) hn = Div(h, rt)
}"""


def handed_over(model: Model, plan: Path, data: Path | None, **how: Any) -> Path:
    out = model.path.parent / "out" / "fixed.onnx"
    export_plan(plan, REPAIRED, out=out, model=model.path, data=data, **how)
    return out


def run(path: Path, x: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options).run(None, {"x": x})[0]


def is_same(one: Path, other: Path, data: Path) -> bool:
    return all(np.array_equal(run(one, x), run(other, x)) for x in map(np.load, sorted(data.iterdir())))


def called(values: Any) -> list[str]:
    return [value.name for value in values]


class TestRepairedOnnx:
    def test_gives_the_original_bits_under_the_original_names(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        out = handed_over(model, plan_file(model, repair_of()), data)

        assert is_same(model.path, out, data)
        was, now = onnx.load_model(model.path).graph, onnx.load_model(out).graph
        assert (called(was.input), called(was.output)) == (called(now.input), called(now.output))
        assert {node.name for node in load_model(model.path).onnx.graph} < {node.name for node in now.node}
        assert {tensor.data_type for tensor in now.initializer} == {TensorProto.FLOAT}

    def test_the_command_says_what_it_wrote_and_that_its_float32_was_seen_to_be_the_same(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        plan, out = plan_file(model, repair_of()), tmp_path / "fixed.onnx"
        done = command(plan, "--format", REPAIRED, "--model", model.path, "--data", data, "--out", out)
        assert done.exit_code == 0
        assert f"written: {out}" in done.stderr
        told = "note: 1 repair (scale_sum_of_squares at node_of_sq); in float32 it gives what "
        assert f"{told}{model.path} gives, bit for bit, on 8 samples" in done.stderr

    def test_a_plan_without_repairs_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        with pytest.raises(PlanError, match=r"has no repairs.*use that, or sweep it anew"):
            handed_over(model, plan_file(model), data)
        assert not (tmp_path / "out" / "fixed.onnx").exists()

    def test_a_plan_that_stands_alone_needs_samples_to_be_seen_on(self, tmp_path: Path) -> None:
        model = breaking(tmp_path)
        with pytest.raises(OptionError, match=r"run beside the original before it is handed over; give --data"):
            handed_over(model, plan_file(model, repair_of()), None)

    def test_what_does_not_give_the_same_bits_is_not_handed_over(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        with pytest.raises(ModelError, match=r"scale_sum_of_squares at node_of_sq its float32 outputs differ"):
            handed_over(model, plan_file(model, repair_of(scale=-84)), data)
        assert not (tmp_path / "out" / "fixed.onnx").exists()

    def test_functions_are_inlined_where_they_were(self, tmp_path: Path) -> None:
        made = onnx.parser.parse_model(FUNCTION)
        del made.graph.initializer[:]
        made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights().items() if n != "eps")
        model, data = breaking(tmp_path, made), samples_in(tmp_path)
        out = handed_over(model, plan_file(model, repair_of("node_of_hn/")), data)
        assert is_same(model.path, out, data)
        assert not onnx.load_model(out).functions

    def test_weights_of_another_file_are_inside(self, tmp_path: Path) -> None:
        how = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        model, data = breaking(tmp_path, **how), samples_in(tmp_path)
        out = handed_over(model, plan_file(model, repair_of()), data)
        assert is_same(model.path, out, data)
        assert [path.name for path in out.parent.iterdir()] == ["fixed.onnx"]

    def test_what_one_file_cannot_hold_goes_to_another_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = partial(save_model, embedded_limit=1000)
        monkeypatch.setattr("precisionlab.jobs.repaired_file.save_model", small)
        model, data = breaking(tmp_path), samples_in(tmp_path)
        out = handed_over(model, plan_file(model, repair_of()), data)
        assert sorted(path.name for path in out.parent.iterdir()) == ["fixed.onnx", "fixed.onnx.data"]
        assert is_same(model.path, out, data)

    def test_the_end_that_was_cut_off_is_there(self, tmp_path: Path) -> None:
        made = proto(BREAKING, weights())
        made.graph.node.append(helper.make_node("EfficientNMS_TRT", ["y"], ["boxes"], name="nms"))
        made.graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [4, 8]))
        del made.graph.output[0]
        model, data = breaking(tmp_path, made), samples_in(tmp_path)
        now = onnx.load_model(handed_over(model, plan_file(model, repair_of()), data)).graph
        assert (now.node[-1].op_type, called(now.output)) == ("EfficientNMS_TRT", ["boxes"])

    @pytest.mark.parametrize("captured", ["hn", "h"])
    def test_what_a_body_takes_from_around_it_is_what_it_was(self, tmp_path: Path, captured: str) -> None:
        made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
            agraph (float[4, 32] x) => (float[4, 32] z, float[4, 8] y) {{
                {NORM}
                s = ReduceSum <keepdims = 0> (x) zero = Constant <value_float: float = 0.0> () c = Greater(s, zero)
                z = If (c) <
                    then_branch = b () => (float[4, 32] t) {{ t = Mul({captured}, eps) }},
                    else_branch = d () => (float[4, 32] e) {{ e = Neg({captured}) }}
                >
                y = MatMul(hn, w2)
            }}""")
        made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights().items())
        model, data = breaking(tmp_path, made), samples_in(tmp_path)
        assert is_same(model.path, handed_over(model, plan_file(model, repair_of()), data), data)

    def test_the_model_itself_is_not_overwritten(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        with pytest.raises(OptionError, match="is what the export is made from"):
            export_plan(plan_file(model, repair_of()), REPAIRED, out=model.path, model=model.path, data=data)

    def test_a_model_that_computes_in_half_itself_is_not_repaired(self, tmp_path: Path) -> None:
        body = BREAKING.replace("sq = Mul(h, h)", "f = Cast <to = 10> (h) g = Cast <to = 1> (f) sq = Mul(g, g)")
        model, data = breaking(tmp_path, proto(body, weights())), samples_in(tmp_path)
        plan = plan_file(model)
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "repairs": [repair_of().to_dict()]}))
        with pytest.raises(PlanError, match="computes in half itself, and is not repaired"):
            handed_over(model, plan, data)


class TestOtherFormats:
    @pytest.mark.parametrize("target", ["trtexec", "polygraphy", "modelopt", "json"])
    def test_name_the_repaired_model_which_stands_beside_and_say_so(self, tmp_path: Path, target: str) -> None:
        model = breaking(tmp_path)
        out = tmp_path / "out" / "plan_of.py"
        done = export_plan(plan_file(model, repair_of()), target, out=out, model=model.path)
        (beside,) = (path for path in done.files if path.suffix == ".onnx")
        assert beside.name.startswith("model.repaired-")
        assert str(beside) in out.read_text()
        assert str(model.path) not in out.read_text()
        assert {"node_of_sq", "node_of_hn"} < {node.name for node in onnx.load_model(beside).graph.node}
        told = f"{beside.name} is model.onnx with 1 repair (scale_sum_of_squares at node_of_sq)"
        assert any(note.startswith(told) for note in done.notes)
        assert is_same(model.path, beside, samples_in(tmp_path))

    @pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"onnxruntime"}))
    def test_need_a_place_for_the_repaired_model(self, tmp_path: Path, target: str) -> None:
        model = breaking(tmp_path)
        with pytest.raises(OptionError, match="--out is needed: the plan has repairs, and the model with them stands"):
            export_plan(plan_file(model, repair_of()), target, model=model.path)
        assert export_plan(plan_file(model), target, model=model.path).text

    def test_the_typed_model_is_the_repaired_one_and_right_in_half(self, tmp_path: Path) -> None:
        model, data, out = breaking(tmp_path), samples_in(tmp_path), tmp_path / "typed.onnx"
        export_plan(plan_file(model, repair_of()), TYPED, out=out, model=model.path)
        x = np.load(data / "0.npy")
        true, low = run(model.path, x), run(out, x)
        assert 10 * np.log10((true**2).sum() / ((true - low) ** 2).sum()) > 50
        repaired = {node.name for node in onnx.load_model(out).graph.node}
        export_plan(plan_file(model), TYPED, out=out, model=model.path)
        assert {node.name for node in onnx.load_model(out).graph.node} < repaired

    @pytest.mark.parametrize("target", ["trtexec", "polygraphy", "onnxruntime"])
    def test_int8_scales_are_those_of_the_repaired_model(self, tmp_path: Path, target: str) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        out = tmp_path / "out" / ("plan_of.py" if target != "onnxruntime" else "int8.onnx")
        plan = plan_file(model, repair_of(), default=Precision.INT8, calibration="max")
        export_plan(plan, target, out=out, model=model.path, data=data)
        if target == "onnxruntime":
            names = {node.name for node in onnx.load_model(out).graph.node}
            assert {"node_of_sq", "node_of_hn"} < names
        else:
            cached = (out.parent / "calibration.cache").read_text()
            tensors = {line.rpartition(": ")[0] for line in cached.splitlines()[1:]}
            (beside,) = out.parent.glob("model.repaired-*.onnx")
            graph = onnx.load_model(beside).graph
            assert tensors <= {*called(graph.input), *(name for node in graph.node for name in node.output)}

    def test_a_plan_that_does_not_say_which_model_its_repairs_give_is_tried_first(self, tmp_path: Path) -> None:
        model, data = breaking(tmp_path), samples_in(tmp_path)
        plan = plan_file(model, repair_of(scale=-84))
        content = json.loads(plan.read_text())
        content.pop("repaired")
        plan.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="its float32 outputs differ"):
            export_plan(plan, "trtexec", out=tmp_path / "build.sh", model=model.path, data=data)
        assert not (tmp_path / "build.sh").exists()


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, args)], catch_exceptions=False)
