"""A plan for other tools: each export is read back by the tool itself, or by a reader written from its source."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bindings.versions import TensorRT, parameters
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DIGITS, Flows, calibrate, examples, load, proto, sample
from onnx import TensorProto, helper, numpy_helper
from rtx import drive, needs_rtx

from precisionlab.backends.onnxruntime import OnnxRuntimeBackend
from precisionlab.backends.tensorrt.constraints import apply_pins
from precisionlab.backends.tensorrt.jobs import Profile
from precisionlab.backends.tensorrt.matching import match_pins
from precisionlab.backends.tensorrt.network import NetworkLayer, NetworkTensor, describe
from precisionlab.backends.tensorrt.pins import pins_of
from precisionlab.calibration.cache import read_cache_file
from precisionlab.calibration.table import CalibrationTable, Range, weight_scales
from precisionlab.cli import cli
from precisionlab.cli.export import FORMATS
from precisionlab.data import Dataset
from precisionlab.errors import OptionError, PlanError
from precisionlab.export import Subject
from precisionlab.export.modelopt import modelopt_json
from precisionlab.export.onnxruntime import onnxruntime_model
from precisionlab.export.plain import plan_json
from precisionlab.export.polygraphy import check_file, polygraphy_script, polygraphy_words
from precisionlab.export.trtexec import trtexec_command, trtexec_script
from precisionlab.jobs.export import REPAIRED, TARGETS, TYPED, export_plan
from precisionlab.model import Model, load_model
from precisionlab.plan.plan import Pin, PrecisionPlan
from precisionlab.precision import Precision
from precisionlab.rewrite.observe import Flow

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
VERSION = "10.16.1"


def plan_of(
    model: Model, default: Precision, pins: Mapping[str, Precision] | Sequence[str] = (), around: Precision = FP32
) -> PrecisionPlan:
    """A plan with pins by layer name; to float32 where only names are given."""
    wanted = pins if isinstance(pins, Mapping) else dict.fromkeys(pins, FP32)
    found = tuple(Pin(name, model.layer[name].nodes, precision, "test") for name, precision in wanted.items())
    return PrecisionPlan(model.sha256, default, found, around)


def subject(
    model: Model,
    plan: PrecisionPlan,
    table: CalibrationTable | None = None,
    profiles: Mapping[str, Profile] | None = None,
) -> Subject:
    names = Counter(n.name for n in onnx.load_model(model.path, load_external_data=False).graph.node if n.name)
    return Subject(model, plan, table, profiles or {}, names, VERSION)


def handed_on(folder: Path) -> Model:
    """A model whose Identity hands a layer's result on: the emulation has no layer for it, TensorRT's parser has."""
    nodes = [
        helper.make_node("Exp", ["x"], ["grown"], "exp"),
        helper.make_node("Identity", ["grown"], ["same"], "same"),
        helper.make_node("Cast", ["same"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["cast"], ["y"], "tanh"),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    opset = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    return load(helper.make_model(graph, opset_imports=opset, ir_version=9), folder)


def chain(names: Sequence[str], folder: Path, name: str = "chain.onnx") -> Model:
    """A model of one unary node for each name."""
    kinds = ("Exp", "Tanh", "Sigmoid", "Softplus")
    nodes = [
        helper.make_node(kinds[i % 4], [f"t{i}" if i else "x"], [f"t{i + 1}"], name=given)
        for i, given in enumerate(names)
    ]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [2]) for end in ("x", f"t{len(names)}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder, name)


@pytest.fixture(scope="module")
def calibrated(bundled: tuple[Model, Dataset]) -> tuple[Model, CalibrationTable]:
    model, data = bundled
    samples = list(data)
    return model, calibrate(OnnxRuntimeBackend(model, samples[0], threads=1), samples)


# trtexec: what its option parser and its constraints make of a command


@dataclass(frozen=True)
class Row:
    """One layer of a network, for trtexec."""

    name: str
    outputs: int = 1
    constant: bool = False


class Trtexec:
    """Reads a command line as `sampleOptions.cpp` does, and constrains layers as `sampleEngines.cpp` does.

    Written from that source, not from ours: splitToStringVec, splitNameAndValue, removeSingleQuotationMarks,
    findPlausible, setLayerPrecisions, setLayerOutputTypes.
    """

    def __init__(self, words: Sequence[str]) -> None:
        assert words[0] == "trtexec"
        self.options = {}
        for word in words[1:]:
            option, _, value = word.partition("=")
            assert option not in self.options
            self.options[option] = value
        self.precisions = {self.name(key): value for key, value in self.pairs("--layerPrecisions")}
        self.types = {self.name(key): self.split(value, "+") for key, value in self.pairs("--layerOutputTypes")}
        assert set(self.precisions.values()) | {t for each in self.types.values() for t in each} <= {
            "fp32", "fp16", "bf16", "int8"
        }  # fmt: skip

    @staticmethod
    def split(text: str, separator: str) -> list[str]:
        parts, start = [], 0
        while start < len(text):
            end = text.find(separator, start)
            end = len(text) if end < 0 else end
            parts.append(text[start:end])
            start = end + 1
        return parts

    def pairs(self, option: str) -> Iterator[tuple[str, str]]:
        for part in self.split(self.options.get(option, ""), ","):
            quoted = self.split(part, "'")
            if len(quoted) != 1:
                assert len(quoted) == 3, f"trtexec ends: invalid number of ' in {part}"
                yield quoted[0] + quoted[1], quoted[2][1:]
            else:
                pieces = self.split(part, ":")
                yield ":".join(pieces[:-1]), pieces[-1]

    def name(self, text: str) -> str:
        return "".join(self.split(text, "'"))

    def shapes(self, option: str) -> dict[str, tuple[int, ...]]:
        return {self.name(k): tuple(int(d) for d in self.split(v, "x")) for k, v in self.pairs(option)}

    def constrain(self, network: Sequence[Row]) -> dict[str, tuple[str | None, tuple[str, ...] | None]]:
        """Layer → what it computes in, and what it stores; of layers that something was set for."""
        found: dict[str, tuple[str | None, tuple[str, ...] | None]] = {}
        for row in network:
            precision = self.plausible(self.precisions, row.name)
            types = self.plausible(self.types, row.name)
            stored = None
            if types is not None:
                exact = row.name in self.types
                one = len(types) == 1
                assert not exact or one or len(types) == row.outputs, f"trtexec ends: {row.name} has other outputs"
                # With a wildcard it sets its global type, float32 here, whatever was given.
                stored = tuple((types[0 if one else i] if exact else "fp32") for i in range(row.outputs))
            if precision is not None or stored is not None:
                assert not row.constant, f"{row.name} is a constant, and must be left alone"
                found[row.name] = (precision, stored)
        return found

    def plausible(self, table: Mapping[str, Any], target: str) -> Any:
        if target in table:
            return table[target]
        for pattern, value in table.items():
            before, star, after = pattern.partition("*")
            fits = len(target) >= len(before) + len(after) and target.startswith(before) and target.endswith(after)
            if star and fits:
                return value
        return None


def read(text: str) -> Trtexec:
    return Trtexec(shlex.split(text))


named = st.text(
    st.characters(codec="utf-8", exclude_characters=",'*\0"), min_size=1, max_size=12
).filter(lambda name: not name.startswith("node_of_"))  # fmt: skip


class TestTrtexec:
    @settings(max_examples=examples(40))
    @given(names=st.lists(named, min_size=2, max_size=5, unique=True), pinned=st.integers(1, 31))
    def test_names_of_all_kinds_come_back_out_of_the_command(
        self, names: list[str], pinned: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        model = chain(names, tmp_path_factory.mktemp("named"))
        chosen = [name for i, name in enumerate(names) if pinned >> i & 1]
        found = read(trtexec_command(subject(model, plan_of(model, FP16, chosen))).content)
        network = [Row(name) for name in names]
        assert found.constrain(network) == dict.fromkeys(chosen, ("fp32", ("fp32",)))
        exact = {key for key in found.precisions if "*" not in key}
        assert exact == set(chosen)
        assert ("--precisionConstraints" in found.options) == bool(chosen)

    @pytest.mark.parametrize("sign", [",", "'", "*"])
    def test_a_name_that_trtexec_would_misread_is_refused_by_name(self, sign: str, tmp_path: Path) -> None:
        model = chain(["a", f"bad{sign}name", "c"], tmp_path)
        bad = subject(model, plan_of(model, FP16, [f"bad{sign}name"]))
        with pytest.raises(PlanError, match=r"bad.name.*polygraphy") as caught:
            trtexec_command(bad)
        assert repr(f"bad{sign}name") in str(caught.value)
        # Where that node is not held, it does no harm.
        assert read(trtexec_command(subject(model, plan_of(model, FP16, ["a"]))).content).precisions["a"] == "fp32"

    def test_float_layers_beside_int8_are_held_where_that_is_asked(
        self, calibrated: tuple[Model, CalibrationTable]
    ) -> None:
        model, table = calibrated
        free = subject(model, plan_of(model, INT8, ["/stem/conv"], around=FP16), table)
        held = replace(free, hold_float=True)
        assert "/head/pool" not in read(trtexec_command(free).content).precisions
        assert read(trtexec_command(held).content).precisions["/head/pool"] == "fp16"
        assert "'/head/pool'" not in str(polygraphy_script(free, "pins.py").content)
        assert "'/head/pool'" in str(polygraphy_script(held, "pins.py").content)
        for export in (trtexec_command, lambda asked: polygraphy_script(asked, "pins.py")):
            assert any("--hold-float holds those" in note for note in export(free).notes)
            assert not any("--hold-float" in note for note in export(held).notes)

    def test_it_says_that_trtexec_cannot_keep_every_nan(self, tmp_path: Path) -> None:
        model = chain(["a", "b"], tmp_path)
        assert any("STRICT_NANS" in note for note in trtexec_command(subject(model, plan_of(model, FP16, []))).notes)

    def test_names_that_several_nodes_have_are_refused(self, tmp_path: Path) -> None:
        model = chain(["a", "twin", "twin"], tmp_path)
        for twin in ("twin", "twin_1"):
            with pytest.raises(PlanError, match="several nodes"):
                trtexec_command(subject(model, plan_of(model, FP16, [twin])))

    def test_a_node_without_a_name_is_called_as_the_parser_calls_it(self, tmp_path: Path) -> None:
        model = chain(["a", "", "c"], tmp_path)
        found = read(trtexec_command(subject(model, plan_of(model, FP16, ["node_of_t2"]))).content)
        assert found.precisions["node_of_t2"] == "fp32"

    def test_all_layers_of_a_gemm_are_held_and_its_constants_are_not(self, tmp_path: Path) -> None:
        weights = {"kernel": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
        body = "(float[1,4] x) => (float[1,4] y) { [fc] y = Gemm(x, kernel, b) }"
        model = load(proto(body, weights), tmp_path)
        found = read(trtexec_command(subject(model, plan_of(model, FP16, ["fc"]))).content)
        network = [Row("kernel", constant=True), Row("fc"), Row("b", constant=True), Row("fc_7"), Row("fcs")]
        assert found.constrain(network) == {"fc": ("fp32", ("fp32",)), "fc_7": ("fp32", ("fp32",))}

    def test_a_constant_or_another_node_whose_name_begins_alike_is_not_held(self, tmp_path: Path) -> None:
        weights = {"fc_w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32)}
        body = "(float[1,4] x) => (float[1,4] y) { [fc] h = Gemm(x, fc_w, b) [act] a = Exp(h) [act_2] y = Exp(a) }"
        model = load(proto(body, weights), tmp_path)
        export = trtexec_command(subject(model, plan_of(model, FP16, ["fc", "act"])))
        found = read(export.content)
        network = [Row("fc_w", constant=True), Row("b", constant=True), Row("fc"), Row("act"), Row("act_2")]
        assert sorted(found.constrain(network)) == ["act", "fc"]
        assert any("'fc'" in note and "polygraphy" in note for note in export.notes)

    def test_one_type_stands_for_all_outputs_as_a_split_is_several_layers(self, tmp_path: Path) -> None:
        model = load(proto("(float[4] x) => (float[2] y, float[2] z) { [cut] y, z = Split(x) }", opset=11), tmp_path)
        found = read(trtexec_command(subject(model, plan_of(model, FP16, ["cut"]))).content)
        assert found.constrain([Row("cut"), Row("cut_1")])["cut"] == ("fp32", ("fp32",))
        assert found.constrain([Row("cut", outputs=2)])["cut"] == ("fp32", ("fp32", "fp32"))

    def test_layers_with_outputs_that_are_no_floats_are_left_alone(self, tmp_path: Path) -> None:
        body = "(float[4] x) => (float[1] v, int64[1] i) { [top] v, i = TopK(x, k) }"
        model = load(proto(body, {"k": np.array([1], np.int64)}), tmp_path)
        export = trtexec_command(subject(model, plan_of(model, FP16, ["top"])))
        assert "top" not in read(export.content).precisions
        assert any("'top'" in note and "int64" in note for note in export.notes)

    def test_outputs_of_the_model_keep_the_type_that_they_are_declared_with(self, tmp_path: Path) -> None:
        model = chain(["a", "b"], tmp_path)
        found = read(trtexec_command(subject(model, plan_of(model, FP32, {"a": FP16, "b": FP16}))).content)
        assert found.precisions == {"a": "fp16", "b": "fp16"}
        assert found.types == {"a": ["fp16"]}
        assert "--fp16" in found.options

    def test_what_the_plan_needs_is_enabled_and_nothing_else(self, tmp_path: Path) -> None:
        model = chain(["a", "b"], tmp_path)
        flags = {"--fp16", "--bf16", "--int8"}

        def enabled(plan: PrecisionPlan) -> set[str]:
            options = read(trtexec_command(subject(model, plan)).content).options
            assert "--noTF32" in options
            return flags & options.keys()

        assert enabled(plan_of(model, FP32)) == set()
        assert enabled(plan_of(model, FP16)) == {"--fp16"}
        assert enabled(plan_of(model, FP16, {"a": BF16})) == {"--fp16", "--bf16"}

    def test_int8_names_the_cache_that_stands_beside(self, calibrated: tuple[Model, CalibrationTable]) -> None:
        model, table = calibrated
        plan = plan_of(model, INT8, ["/stem/conv"], around=FP16)
        export = trtexec_command(subject(model, plan, table))
        found = read(export.content)
        assert found.options["--int8"] == found.options["--fp16"] == ""
        assert list(export.beside) == [found.options["--calib"]]
        assert found.precisions["/stem/conv"] == "fp32"
        with pytest.raises(PlanError, match="--data"):
            trtexec_command(subject(model, plan))

    def test_shapes_of_dynamic_inputs_alone(self, tmp_path: Path) -> None:
        model = chain(["a"], tmp_path)
        profiles = {"a:b": Profile((1, 3), (2, 3), (8, 3)), "n": Profile((4,), (5,), (6,))}
        found = read(trtexec_command(subject(model, plan_of(model, FP16), profiles=profiles)).content)
        assert found.shapes("--minShapes") == {"a:b": (1, 3), "n": (4,)}
        assert found.shapes("--optShapes") == {"a:b": (2, 3), "n": (5,)}
        assert found.shapes("--maxShapes") == {"a:b": (8, 3), "n": (6,)}
        # trtexec refuses shapes for a model that needs none.
        assert "--minShapes" not in read(trtexec_command(subject(model, plan_of(model, FP16))).content).options
        with pytest.raises(PlanError, match="input 'a,b'"):
            trtexec_command(subject(model, plan_of(model, FP16), profiles={"a,b": profiles["n"]}))

    def test_a_command_too_long_for_the_system_is_refused(self, tmp_path: Path) -> None:
        names = [f"{'long' * 60}/{i}" for i in range(300)]
        model = chain(names, tmp_path)
        with pytest.raises(PlanError, match="128 KiB"):
            trtexec_command(subject(model, plan_of(model, FP16, names)))

    @pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")
    def test_the_script_gives_the_shell_the_same_words_as_the_command(self, tmp_path: Path) -> None:
        names = ["it is $HOME", 'say "no" `ls`', "back\\slash", "new\nline", "#", "~", "层/a:b", "!x", "a=b"]
        model = chain(names, tmp_path)
        asked = subject(model, plan_of(model, FP16, names))
        tool = tmp_path / "bin" / "trtexec"
        tool.parent.mkdir()
        tool.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n")
        tool.chmod(0o755)
        script = tmp_path / "a folder" / "build.sh"
        script.parent.mkdir()
        script.write_text(trtexec_script(asked).content, encoding="utf-8")
        done = subprocess.run(
            ["sh", str(script), "--verbose"],
            env={**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONUTF8": "1"},
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        where, *words = json.loads(done.stdout)
        assert where == str(script.parent.resolve())
        assert ["trtexec", *words] == [*shlex.split(trtexec_command(asked).content), "--verbose"]
        assert Trtexec(["trtexec", *words]).constrain([Row(name) for name in names]).keys() == set(names)

    @pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")
    @pytest.mark.parametrize(
        ("told", "header"),
        [
            ("&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --help", "TRT-8602-EntropyCalibration2"),
            ("&&&& RUNNING TensorRT.trtexec [TensorRT v100600] [b26] # trtexec", "TRT-100600-EntropyCalibration2"),
            ("trtexec: error while loading shared libraries", "TRT-101601-EntropyCalibration2"),
        ],
    )
    def test_the_script_gives_the_cache_the_first_line_of_the_trtexec_that_reads_it(
        self, told: str, header: str, calibrated: tuple[Model, CalibrationTable], tmp_path: Path
    ) -> None:
        model, table = calibrated
        export = trtexec_script(subject(model, plan_of(model, INT8), table))
        (tmp_path / "build.sh").write_text(str(export.content), encoding="utf-8")
        (tmp_path / "calibration.cache").write_bytes(export.beside["calibration.cache"])
        tool = tmp_path / "bin" / "trtexec"
        tool.parent.mkdir()
        tool.write_text(f"#!/bin/sh\nif [ \"$1\" = --help ]; then echo '{told}'; fi\n")
        tool.chmod(0o755)
        for _ in range(2):
            done = subprocess.run(
                ["sh", str(tmp_path / "build.sh")],
                env={**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"},
                capture_output=True, text=True, check=True, timeout=30,
            )  # fmt: skip
        first, rest = (tmp_path / "calibration.cache").read_bytes().split(b"\n", 1)
        assert first.decode() == header
        assert rest == export.beside["calibration.cache"].split(b"\n", 1)[1]
        assert ("does not tell its version" in done.stderr) is ("error" in told)
        assert not (tmp_path / "calibration.cache.new").exists()

    @needs_rtx
    def test_on_the_real_parsers_names_each_held_node_is_hit(self) -> None:
        model = load_model(DIGITS / "digits.onnx")
        (answer,) = drive("parse_models", model.path)
        rows = [Row(x["name"], len(x["outputs"]), x["kind"] == "CONSTANT") for x in answer["layers"]]
        wanted = [layer.name for layer in model.layers if layer.fixed is None]
        found = read(trtexec_command(subject(model, plan_of(model, FP16, wanted))).content).constrain(rows)
        assert {node for name in wanted for node in model.layer[name].nodes} <= found.keys()
        assert set(found.values()) == {("fp32", ("fp32",))}


# Polygraphy: the script goes by the rules of pins.py


class DataType(Enum):
    FLOAT = "FLOAT"
    HALF = "HALF"
    BF16 = "BF16"
    INT8 = "INT8"
    INT32 = "INT32"
    INT64 = "INT64"
    BOOL = "BOOL"


TRT: Any = SimpleNamespace(DataType=DataType, BuilderFlag=SimpleNamespace(OBEY_PRECISION_CONSTRAINTS=1))
_KINDS = {"fp32": DataType.FLOAT, "fp16": DataType.HALF}


class FakeLayer:
    """An ILayer, as far as pins go."""

    def __init__(self, layer: NetworkLayer) -> None:
        self.name = layer.name
        self.type = SimpleNamespace(name=layer.kind)
        inner, *around = layer.nodes or ("",)
        parts = [inner, *(f"g (then_branch) | {name} (If)" for name in around)]
        self.metadata = f"[ONNX Layer: {' | '.join(parts)}]" * bool(inner)
        self._inputs, self._outputs = ([fake_tensor(t) for t in side] for side in (layer.inputs, layer.outputs))
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)
        self.precision: Any = None
        self.types: dict[int, Any] = {}

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.types[index] = dtype


def fake_tensor(tensor: NetworkTensor) -> Any:
    dtype = _KINDS.get(tensor.dtype) or DataType[tensor.dtype.upper()]
    return SimpleNamespace(
        name=tensor.name,
        dtype=dtype,
        is_execution_tensor=tensor.is_execution,
        is_network_output=tensor.is_network_output,
    )


class FakeNetwork:
    """An INetworkDefinition of such layers."""

    def __init__(self, layers: Sequence[NetworkLayer]) -> None:
        self.layers = [FakeLayer(layer) for layer in layers]
        self.num_layers = len(layers)

    def get_layer(self, index: int) -> FakeLayer:
        return self.layers[index]

    @property
    def state(self) -> list[tuple[str, Any, dict[int, Any]]]:
        return [(layer.name, layer.precision, layer.types) for layer in self.layers]


def script_module(content: str | bytes, folder: Path) -> ModuleType:
    """The script as Polygraphy imports it."""
    assert isinstance(content, str)
    file = folder / "pins_of_test.py"
    file.write_text(content, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("pins_of_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both_ways(model: Model, plan: PrecisionPlan, layers: Sequence[NetworkLayer], folder: Path) -> list[Any]:
    """What pins.py and the exported script each make of a network; the same."""
    ours, theirs = FakeNetwork(layers), FakeNetwork(layers)
    assert describe(ours) == tuple(layers)
    pins = pins_of(model, plan)
    apply_pins(TRT, ours, match_pins(pins, describe(ours)))
    table = CalibrationTable({"x": Range(1.0)}, 1)  # for the cache alone
    module = script_module(polygraphy_script(subject(model, plan, table), "p.py").content, folder)
    module.hold(TRT, theirs, module.PINS)
    assert ours.state == theirs.state
    return theirs.state


def row(name: str, kind: str, nodes: Sequence[str], inputs: Sequence[str], *outputs: NetworkTensor, at: int = 0) -> Any:
    return NetworkLayer(at, name, kind, tuple(nodes), tuple(NetworkTensor(n, "fp32") for n in inputs), outputs)


class TestPolygraphy:
    @pytest.mark.slow
    @needs_rtx
    @pytest.mark.thorough
    def test_on_real_networks_the_script_does_what_the_backend_does(self, tmp_path: Path) -> None:
        prepared = Path(__file__).parents[2] / "examples" / "prepared"
        names = ("magika", "minilm_l3", "ppocr4_rec")
        paths = [DIGITS / "digits.onnx", *(p for n in names if (p := prepared / n / f"{n}.onnx").is_file())]
        for path, answer in zip(paths, drive("parse_models", *paths), strict=True):
            layers = [
                NetworkLayer(
                    x["index"], x["name"], x["kind"], tuple(x["nodes"]),
                    *(tuple(NetworkTensor(**t) for t in x[side]) for side in ("inputs", "outputs")),
                )
                for x in answer["layers"]
            ]  # fmt: skip
            model = load_model(path)
            every = [layer.name for layer in model.layers]
            for plan in (
                plan_of(model, FP16, every),
                plan_of(model, FP16, every[::3]),
                plan_of(model, FP16, {name: BF16 if i % 2 else FP32 for i, name in enumerate(every[::2])}),
                plan_of(model, INT8, every[::4], around=FP16),
                plan_of(model, FP32, {every[0]: FP16}),
            ):
                state = both_ways(model, plan, layers, tmp_path)
                assert any(precision is not None for _, precision, _ in state)

    def test_helpers_shapes_indices_outputs_and_names_of_others_are_judged_alike(self, tmp_path: Path) -> None:
        model = chain(["a", "b", "c", "d"], tmp_path)
        final = NetworkTensor("t4", "fp32", is_network_output=True)
        layers = [
            row("ONNXTRT_Broadcast", "SHUFFLE", (), ["k"], NetworkTensor("ONNXTRT_Broadcast_output", "fp32")),
            row("a", "UNARY", ("a",), ["x", "ONNXTRT_Broadcast_output"], NetworkTensor("t1", "fp32")),
            row("b", "CONSTANT", ("b",), [], NetworkTensor("k", "fp32")),
            row("a_7", "UNARY", ("b",), ["t1"], NetworkTensor("t2", "fp32")),
            row("b_1", "SHAPE", ("b",), ["t2"], NetworkTensor("s", "int64", is_execution=False)),
            row("c", "TOPK", ("c",), ["t2"], NetworkTensor("t3", "fp32"), NetworkTensor("i", "int32")),
            row("d", "UNARY", ("inner", "d"), ["t3"], NetworkTensor("u", "fp32")),
            row("d_3", "UNARY", (), ["u"], final),
        ]
        layers = [replace(layer, index=i) for i, layer in enumerate(layers)]
        state = both_ways(model, plan_of(model, FP16, ["a", "b", "c", "d"]), layers, tmp_path)
        held = {name: types for name, precision, types in state if precision is DataType.FLOAT}
        assert held == {name: {0: DataType.FLOAT} for name in ("ONNXTRT_Broadcast", "a", "a_7", "d", "d_3")}
        # An output of the network keeps its type.
        state = both_ways(model, plan_of(model, FP32, {"d": FP16}), layers, tmp_path)
        assert ("d_3", DataType.HALF, {}) in state

    @settings(max_examples=examples(25))
    @given(
        names=st.lists(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=4, unique=True
        )
    )
    def test_any_name_comes_back_out_of_the_script(
        self, names: list[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("script")
        model = chain(names, folder)
        asked = subject(model, plan_of(model, FP16, list(model.layer)))
        module = script_module(polygraphy_script(asked, "p.py").content, folder)
        assert tuple((p.layer, p.nodes, p.tensors, "FLOAT") for p in pins_of(model, asked.plan)) == module.PINS

    def test_it_stands_alone_and_is_called_as_polygraphy_calls_it(self, tmp_path: Path) -> None:
        model = chain(["it's", 'a "b"'], tmp_path)
        content = polygraphy_script(subject(model, plan_of(model, FP16, ["it's"])), "pins.py").content
        assert isinstance(content, str)
        assert "import precisionlab" not in content
        assert "from precisionlab" not in content
        (tmp_path / "pins.py").write_text(content, encoding="utf-8")
        (tmp_path / "tensorrt.py").write_text(
            "class BuilderFlag: OBEY_PRECISION_CONSTRAINTS = 1\nclass DataType: FLOAT = 'FLOAT'\n"
        )
        driver = (
            "import sys, types; sys.path.insert(0, '.'); import pins\n"
            "N = types.SimpleNamespace\n"
            "t = N(name='t1', dtype=N(name='FLOAT'), is_execution_tensor=True, is_network_output=False)\n"
            "class L: name = 'x'; type = N(name='UNARY'); metadata = ''; num_inputs = 0; num_outputs = 1\n"
            "L.get_output = lambda self, i: t; L.set_output_type = lambda self, i, d: print('stores', d)\n"
            "layer = L()\n"
            "pins.postprocess(network=N(num_layers=1, get_layer=lambda i: layer))\n"
            "print('computes', layer.precision)\n"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", driver], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.split("\n")[:2] == ["stores FLOAT", "computes FLOAT"], done.stderr

    def test_a_network_of_another_model_and_a_tensorrt_without_pins_end_the_build(self, tmp_path: Path) -> None:
        model = chain(["a"], tmp_path)
        module = script_module(polygraphy_script(subject(model, plan_of(model, FP16, ["a"])), "p.py").content, tmp_path)
        other = FakeNetwork([row("z", "UNARY", ("z",), ["q"], NetworkTensor("r", "fp32"))])
        with pytest.raises(RuntimeError, match="another model"):
            module.hold(TRT, other, module.PINS)
        with pytest.raises(RuntimeError, match="typed-onnx"):
            module.hold(SimpleNamespace(BuilderFlag=SimpleNamespace()), other, module.PINS)

    @pytest.mark.parametrize("version", parameters())
    def test_the_real_bindings_have_all_that_the_script_uses(self, version: TensorRT, tmp_path: Path) -> None:
        model = chain(["a"], tmp_path)
        (tmp_path / "pins.py").write_text(str(polygraphy_script(subject(model, plan_of(model, FP16)), "p.py").content))
        driver = (
            f"import inspect, json, re, sys; sys.path.insert(0, '.'); import pins, {version.module} as trt\n"
            "source = ''.join(map(inspect.getsource, (pins.describe, pins.describe_tensor, pins.constrain)))\n"
            "used = {c: set(re.findall(r'\\b%s\\.(\\w+)' % n, source)) for n, c in "
            "(('layer', trt.ILayer), ('tensor', trt.ITensor))}\n"
            "missing = [a for c, names in used.items() for a in names if not hasattr(c, a)]\n"
            "missing += [a for a in ('num_layers', 'get_layer') if not hasattr(trt.INetworkDefinition, a)]\n"
            "missing += [a for a in ('FLOAT', 'HALF', 'INT8') if not hasattr(trt.DataType, a)]\n"
            "missing += [a for a in pins.INT8_KINDS - {'FULLY_CONNECTED'} if not hasattr(trt.LayerType, a)]\n"
            "try: told = pins.hold(trt, type('N', (), {'num_layers': 0})(), ())\n"
            "except RuntimeError as error: told = str(error)\n"
            "print(json.dumps([missing, sum(map(len, used.values())), told]))\n"
        )
        missing, used, told = json.loads(version.run("-c", driver, cwd=tmp_path).splitlines()[-1])
        assert used >= 12
        if version.is_strong:
            assert "typed-onnx" in told
        else:
            assert (missing, told) == ([], [])

    @pytest.mark.parametrize("name", ["pins.txt", "plan.fp16.py", "build-pins.py", "re.py", "tensorrt.py"])
    def test_a_file_that_polygraphy_cannot_import_is_refused(self, name: str) -> None:
        with pytest.raises(OptionError, match="module"):
            check_file(Path("folder") / name)
        assert check_file(Path("folder/pins.py")) == "pins.py"

    @pytest.mark.skipif(importlib.util.find_spec("polygraphy") is None, reason="Polygraphy is not installed")
    def test_polygraphy_reads_the_command_and_the_script(
        self, calibrated: tuple[Model, CalibrationTable], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import argparse

        from polygraphy import mod
        from polygraphy.tools.args import ModelArgs, TrtConfigArgs, TrtLoadNetworkArgs, TrtSaveEngineBytesArgs
        from polygraphy.tools.convert.convert import Convert

        model, table = calibrated
        profiles = {"image": Profile((1, 1, 8, 8), (2, 1, 8, 8), (4, 1, 8, 8)), "a:b": Profile((1,), (2,), (3,))}
        asked = subject(model, plan_of(model, INT8, ["/stem/conv"], around=FP16), table, profiles)
        export = polygraphy_script(asked, "pins.py")
        assert isinstance(export.content, str)
        command = export.content.split("\n")[1].removeprefix("#   ")
        words = shlex.split(command)
        assert words == polygraphy_words(asked, "pins.py")
        for name, data in {"pins.py": export.content.encode(), **export.beside}.items():
            (tmp_path / name).write_bytes(data)
        monkeypatch.chdir(tmp_path)

        tool = Convert()
        parser = argparse.ArgumentParser()
        tool.setup_parser(parser.add_subparsers())
        tool.parse(parser.parse_args(words[1:]))
        config, network = tool.arg_groups[TrtConfigArgs], tool.arg_groups[TrtLoadNetworkArgs]
        assert tool.arg_groups[ModelArgs].path == str(asked.path)
        assert tool.arg_groups[ModelArgs].model_type == "onnx"
        assert tool.arg_groups[TrtSaveEngineBytesArgs] is not None
        assert (config.fp16, config.int8, config.bf16, config.tf32) == (True, True, None, None)
        assert config.precision_constraints == "obey"
        assert config.profile_dicts == [{n: (list(p.min), list(p.opt), list(p.max)) for n, p in profiles.items()}]
        cache = read_cache_file(tmp_path / config.calibration_cache)
        assert cache.scales.keys() == table.ranges.keys()
        flags: list[str] = []
        kinds = SimpleNamespace(EXPLICIT_BATCH=0)
        trt = SimpleNamespace(
            BuilderFlag=SimpleNamespace(STRICT_NANS="STRICT_NANS"), NetworkDefinitionCreationFlag=kinds
        )
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        configure = mod.import_from_script(
            config.trt_config_postprocess_script, config.trt_config_postprocess_func_name
        )
        configure(None, SimpleNamespace(num_layers=0), SimpleNamespace(set_flag=flags.append))
        assert flags == ["STRICT_NANS"]
        ((file, function),) = network.postprocess_scripts
        assert callable(mod.import_from_script(file, function))


# ModelOpt


class TestModelOpt:
    def content(self, asked: Subject) -> Any:
        export = modelopt_json(asked)
        return json.loads(export.content)

    def matched(self, model: Model, patterns: Sequence[str]) -> set[str]:
        """The nodes that ModelOpt finds, which it does by `re.match`."""
        return {name for name in model.node for pattern in patterns if re.match(pattern, name)}

    def test_the_patterns_match_the_nodes_of_the_fp32_layers_alone(self, tmp_path: Path) -> None:
        names = ["conv", "conv1", "a.b", "aXb", "x+(y)[0]", "end\n", "end"]
        model = chain(names, tmp_path)
        pinned = ["conv", "a.b", "x+(y)[0]", "end"]
        found = self.content(subject(model, plan_of(model, FP16, pinned)))
        assert found["quantization"] is None
        assert found["autocast"]["low_precision_type"] == "fp16"
        assert self.matched(model, found["autocast"]["nodes_to_exclude"]) == set(pinned)
        copy, cast = map(shlex.split, found["commands"])
        assert cast[cast.index("--nodes_to_exclude") + 1 :] == found["autocast"]["nodes_to_exclude"]
        # ModelOpt writes to the file that it is given: never the user's own.
        assert copy[3] == str(model.path.resolve())
        assert not any(str(model.path) in word for word in cast)
        assert f"--onnx_path={copy[4]}" in cast

    def test_the_copy_is_the_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = chain(["a"], tmp_path)
        _, *words = shlex.split(self.content(subject(model, plan_of(model, FP16)))["commands"][0])
        monkeypatch.chdir(tmp_path)
        subprocess.run([sys.executable, *words], check=True, timeout=60)
        assert onnx.load_model(words[-1]) == onnx.load_model(model.path)

    def test_int8_layers_go_first_with_our_scales_and_then_the_rest_is_cast(
        self, calibrated: tuple[Model, CalibrationTable]
    ) -> None:
        model, table = calibrated
        plan = plan_of(model, INT8, ["/stem/conv"], around=FP16)
        export = modelopt_json(subject(model, plan, table))
        found = json.loads(export.content)
        quantizable = {layer.nodes[0] for layer in model.layers if layer.quantizable}
        part = found["quantization"]
        assert self.matched(model, part["nodes_to_quantize"]) == quantizable - {"/stem/conv"}
        assert self.matched(model, part["nodes_to_exclude"]) == {"/stem/conv"}
        kept = self.matched(model, found["autocast"]["nodes_to_exclude"])
        assert kept == set(model.layer["/stem/conv"].nodes)
        copy, quantize, cast = map(shlex.split, found["commands"])
        assert f"--onnx_path={copy[-1]}" in quantize
        (between,) = (w.partition("=")[2] for w in quantize if w.startswith("--output_path="))
        assert f"--onnx_path={between}" in cast
        assert list(export.beside) == [part["calibration_cache_path"]]

    def test_what_modelopt_cannot_be_told_is_refused(self, tmp_path: Path) -> None:
        model = chain(["a", "", "twin", "twin"], tmp_path)
        with pytest.raises(PlanError, match="both"):
            modelopt_json(subject(model, plan_of(model, FP16, {"a": BF16})))
        with pytest.raises(PlanError, match="no name"):
            modelopt_json(subject(model, plan_of(model, FP16, ["node_of_t2"])))
        with pytest.raises(PlanError, match="several nodes"):
            modelopt_json(subject(model, plan_of(model, FP16, ["twin"])))
        with pytest.raises(PlanError, match="nothing to convert"):
            modelopt_json(subject(model, plan_of(model, FP32)))


# ONNX Runtime


def quantized(asked: Subject) -> onnx.ModelProto:
    content = onnxruntime_model(asked).content
    assert isinstance(content, bytes)
    found = onnx.load_model_from_string(content)
    onnx.checker.check_model(found, full_check=True)
    return found


def run(model: onnx.ModelProto, optimise: bool, **inputs: Any) -> list[Any]:
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(model.SerializeToString(), options).run(None, inputs))


class TestOnnxRuntime:
    def test_it_gives_what_the_emulation_gives(self, calibrated: tuple[Model, CalibrationTable], bundled: Any) -> None:
        model, table = calibrated
        plan = plan_of(model, INT8, ["/stem/conv"])
        found = quantized(subject(model, plan, table))
        flows = Flows(model, plan, table)
        for entry in bundled[1]:
            wanted = flows(**entry.inputs)[Flow.VARIANT, model.outputs[0].name]
            (plain,) = run(found, False, **entry.inputs)
            np.testing.assert_allclose(plain, wanted, rtol=1e-4, atol=1e-4)
            # With its integer kernels ONNX Runtime rounds a few values to the other side.
            (fused,) = run(found, True, **entry.inputs)
            assert np.abs(fused - wanted).max() <= 0.1 * np.abs(wanted).max()

    def test_scales_are_ours_and_pinned_layers_take_floats(self, calibrated: tuple[Model, CalibrationTable]) -> None:
        model, table = calibrated
        found = quantized(subject(model, plan_of(model, INT8, ["/stem/conv"], around=FP32), table))
        constants = {x.name: numpy_helper.to_array(x) for x in found.graph.initializer}
        giver = {name: node for node in found.graph.node for name in node.output}
        seen = 0
        for layer in model.layers:
            if not layer.quantizable:
                continue
            node = next(n for n in found.graph.node if n.name == layer.nodes[0])
            if layer.name == "/stem/conv":
                assert list(node.input) == [str(v.name) for v in model.node[node.name].inputs if v is not None]
                continue
            activation, weight = (giver[name] for name in node.input[:2])
            first = giver[activation.input[0]]
            assert (first.op_type, activation.op_type, weight.op_type) == (
                "QuantizeLinear", "DequantizeLinear", "DequantizeLinear",
            )  # fmt: skip
            assert constants[first.input[1]] == np.float32(table.scale(first.input[0], Precision.INT8))
            source = model.node[node.name].inputs[1]
            assert source is not None
            assert source.const_value is not None
            axis = 0 if node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute) else 1
            assert np.array_equal(
                constants[weight.input[1]],
                weight_scales(source.const_value.numpy(), axis, Precision.INT8.number_format),
            )
            for one in (first, activation, weight):
                assert constants[one.input[2]].dtype == np.int8
                assert not constants[one.input[2]].any()
            assert constants[weight.input[0]].dtype == np.int8
            # No quantised bias: TensorRT refuses it.
            assert all(name not in giver for name in node.input[2:])
            seen += 1
        assert seen >= 6
        unused = constants.keys() - {name for node in found.graph.node for name in node.input}
        assert unused == set()

    @pytest.mark.parametrize("opset", [11, 17])
    def test_a_tensor_and_a_weight_that_a_pinned_layer_takes_too_stay_floats_there(
        self, opset: int, tmp_path: Path
    ) -> None:
        weights = {"w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)}
        body = "(float[1,4] x) => (float[1,4] y, float[1,4] z) { [low] y = MatMul(x, w) [high] z = MatMul(x, w) }"
        model = load(proto(body, weights, opset=opset), tmp_path)
        entry = sample(x=[[0.1, 0.2, 0.33, 1.0]])
        backend = OnnxRuntimeBackend(model, entry, threads=1)
        table = calibrate(backend, [entry])
        export = onnxruntime_model(subject(model, plan_of(model, INT8, ["high"]), table))
        found = quantized(subject(model, plan_of(model, INT8, ["high"]), table)) if opset > 12 else None
        if found is None:
            assert isinstance(export.content, bytes)
            found = onnx.load_model_from_string(export.content)
            assert "opset 13" in export.notes[0]
        y, z = run(found, False, **entry.inputs)
        wanted = Flows(model, plan_of(model, INT8, ["high"]), table)(**entry.inputs)
        np.testing.assert_array_equal(z, entry.inputs["x"] @ weights["w"])
        np.testing.assert_allclose(y, wanted[Flow.VARIANT, "y"], rtol=1e-5)
        assert not np.array_equal(y, z)

    def test_a_new_tensor_hides_none_inside_a_body(self, tmp_path: Path) -> None:
        """The checker refuses a graph where a name stands for two tensors, one of them in a branch."""
        body = (
            "(float[1,4] x) => (float[1,4] y) { [low] m = MatMul(x, w) [sum] s = ReduceSum <keepdims = 0> (x) "
            "[test] c = Greater(s, zero) [if] y = If (c) <then_branch = one () => (float[1,4] t) "
            "{ x_scale = Tanh(m) t = Neg(x_scale) }, else_branch = two () => (float[1,4] e) { e = Sub(m, m) }> }"
        )
        model = load(proto(body, {"w": np.eye(4, dtype=np.float32), "zero": np.float32(0)}), tmp_path)
        entry = sample(x=[[0.1, 0.2, 0.33, 1.0]])
        table = calibrate(OnnxRuntimeBackend(model, entry, threads=1), [entry])
        found = quantized(subject(model, plan_of(model, INT8), table))
        names = {value.name for value in found.graph.initializer}
        assert ("x_scale" in names, "x_scale_1" in names) == (False, True)

    def test_two_layers_with_one_operand_share_its_quantisation(self, tmp_path: Path) -> None:
        weights = {"w": np.eye(4, dtype=np.float32), "v": np.ones((4, 4), np.float32)}
        body = "(float[1,4] x) => (float[1,4] y, float[1,4] z) { [a] y = MatMul(x, w) [b] z = MatMul(x, v) }"
        model = load(proto(body, weights), tmp_path)
        entry = sample(x=[[0.1, 0.2, 0.33, 1.0]])
        table = calibrate(OnnxRuntimeBackend(model, entry, threads=1), [entry])
        found = quantized(subject(model, plan_of(model, INT8), table))
        assert Counter(n.op_type for n in found.graph.node)["QuantizeLinear"] == 1

    def test_a_plan_without_int8_is_refused(self, tmp_path: Path) -> None:
        model = chain(["a"], tmp_path)
        with pytest.raises(PlanError, match="no quantized layer"):
            onnxruntime_model(subject(model, plan_of(model, FP16)))

    def test_the_model_in_memory_is_left_as_it_was(self, calibrated: tuple[Model, CalibrationTable]) -> None:
        model, table = calibrated
        before = [(n.name, [v.name for v in n.inputs if v is not None]) for n in model.onnx.graph]
        quantized(subject(model, plan_of(model, INT8), table))
        assert before == [(n.name, [v.name for v in n.inputs if v is not None]) for n in model.onnx.graph]


# The command


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plans of the bundled model, and the run.json that says where model and data are."""
    folder = tmp_path_factory.mktemp("run")
    model = load_model(DIGITS / "digits.onnx")
    plans = {
        "fp16": plan_of(model, FP16, ["/norm/square"]),
        "int8": replace(plan_of(model, INT8, ["/stem/conv"], around=FP16), calibration="max"),
    }
    for name, plan in plans.items():
        (folder / f"plan.{name}.json").write_text(json.dumps(plan.to_dict()))
    data = {"folder": str(DIGITS), "shapes": {}, "limit": 8, "seed": 0, "holdout": 0, "skip_bad": False, "metric": None}
    (folder / "run.json").write_text(json.dumps({"model": {"path": str(DIGITS / "digits.onnx")}, "data": data}))
    return folder


def command(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, args)], catch_exceptions=False)


class TestCommand:
    def test_the_formats_of_the_command_are_those_that_there_are(self) -> None:
        assert set(FORMATS) == {*TARGETS, TYPED, REPAIRED}

    @pytest.mark.parametrize("name", ["trtexec", "polygraphy", "modelopt", "json"])
    def test_text_goes_to_standard_output_and_is_the_same_in_a_file(
        self, name: str, found: Path, tmp_path: Path
    ) -> None:
        printed = command(found / "plan.fp16.json", "--format", name)
        assert printed.exit_code == 0, printed.output
        out = tmp_path / "new" / "precision_pins.py"
        written = command(found / "plan.fp16.json", "--format", name, "--out", out)
        assert written.exit_code == 0, written.output
        assert written.stdout == ""
        if name == "trtexec":  # a script there
            assert out.stat().st_mode & 0o777 == 0o755
            assert read(printed.stdout).precisions["/norm/square"] == "fp32"
        else:
            assert out.read_text(encoding="utf-8") == printed.stdout

    @pytest.mark.parametrize("name", ["trtexec", "polygraphy", "modelopt", "onnxruntime"])
    def test_int8_writes_all_its_files_and_wants_to_know_where(self, name: str, found: Path, tmp_path: Path) -> None:
        refused = command(found / "plan.int8.json", "--format", name)
        assert refused.exit_code == 2
        assert "--out is needed" in refused.stderr
        done = command(
            found / "plan.int8.json", "--format", name, "--out", tmp_path / "built.py", "--tensorrt", "8.6.1"
        )
        assert done.exit_code == 0, done.output
        if name != "onnxruntime":
            cache = read_cache_file(tmp_path / "calibration.cache")
            assert cache.tensorrt == "8.6.1"
            assert "/norm/div_out" in cache.scales
        assert {p.name for p in tmp_path.iterdir()} == {"built.py", *(["calibration.cache"] * (name != "onnxruntime"))}

    def test_json_has_each_layers_precision_and_the_scales(self, found: Path) -> None:
        content = json.loads(command(found / "plan.int8.json", "--format", "json").stdout)
        precisions = {layer["name"]: layer["precision"] for layer in content["layers"]}
        assert precisions["/stem/conv"] == "fp32"
        assert precisions["/block1/pointwise/conv"] == "int8"
        assert content["tensorrt"]["enabled"] == ["fp16", "int8"]
        assert content["scales"]["/norm/div_out"] > 0
        assert {node["node"] for node in content["tensorrt"]["nodes"]} >= {"/stem/conv", "/stem/bn", "/stem/relu"}
        model = load_model(DIGITS / "digits.onnx")
        plan = plan_of(model, FP16)
        assert json.loads(plan_json(subject(model, plan)).content)["scales"] is None

    def test_without_data_the_shapes_can_be_given(self, found: Path, tmp_path: Path) -> None:
        alone = tmp_path / "plan.json"
        alone.write_text((found / "plan.fp16.json").read_text())
        model = DIGITS / "digits.onnx"
        refused = command(alone, "--format", "trtexec")
        assert refused.exit_code == 2
        assert "--model" in refused.stderr
        refused = command(alone, "--format", "trtexec", "--model", model)
        assert refused.exit_code == 2
        assert "--shapes" in refused.stderr
        shapes = "image:1x1x8x8,2x1x8x8,4x1x8x8"
        done = command(alone, "--format", "trtexec", "--model", model, "--shapes", shapes)
        assert done.exit_code == 0, done.output
        assert read(done.stdout).shapes("--maxShapes") == {"image": (4, 1, 8, 8)}
        assert command(alone, "--format", "json", "--model", model).exit_code == 0

    def test_what_cannot_be_used_ends_with_2_and_a_sentence(self, found: Path, tmp_path: Path) -> None:
        other = chain(["a"], tmp_path)
        plan = found / "plan.fp16.json"
        for args, said in (
            ((plan, "--model", other.path, "--format", "json"), "another model"),
            ((tmp_path / "none.json", "--format", "json"), "none.json"),
            ((plan, "--format", "onnxruntime", "--out", tmp_path / "q.onnx"), "no quantized layer"),
            ((plan, "--format", "json", "--out", tmp_path), "is a folder"),
            ((plan, "--format", "json", "--out", other.path / "x.json"), "cannot be written"),
            ((plan, "--format", "json", "--out", plan), "is what the export is made from"),
            (
                (plan, "--format", "typed-onnx", "--out", DIGITS / "." / "digits.onnx"),
                "is what the export is made from",
            ),
            ((plan, "--format", "trtexec", "--tensorrt", "11.4.0.106"), "TensorRT 11.4.0 has no precision flags"),
            ((plan, "--format", "polygraphy", "--tensorrt", "1.7.1.116"), "TensorRT-RTX 1.7.1 has no precision flags"),
            ((plan, "--format", "json", "--tensorrt", "new"), "'new' is no TensorRT version"),
            ((plan, "--format", "polygraphy", "--out", tmp_path / "a-b.py"), "module"),
            ((plan, "--format", "modelopt", "--hold-float"), "--hold-float is for json, polygraphy or trtexec"),
        ):
            done = command(*args)
            assert done.exit_code == 2, done.output
            assert said in done.stderr

    def test_an_unknown_target_is_refused(self, found: Path) -> None:
        with pytest.raises(OptionError, match="use one of trtexec"):
            export_plan(found / "plan.fp16.json", "openvino")

    def test_typed_onnx_is_written(self, found: Path, tmp_path: Path) -> None:
        args = ("--format", "typed-onnx", "--tensorrt", "11.4.0.106", "--out", tmp_path / "typed.onnx")
        done = command(found / "plan.fp16.json", *args)
        assert done.exit_code == 0, done.output
        onnx.checker.check_model(onnx.load_model(tmp_path / "typed.onnx"), full_check=True)


# Nodes that only hand on


def test_what_hands_on_a_pinned_result_is_held_as_well(tmp_path: Path) -> None:
    model = handed_on(tmp_path)
    assert [layer.name for layer in model.layers] == ["exp", "tanh"]
    plan = plan_of(model, FP16, ["exp"])
    (pin,) = pins_of(model, plan)
    assert pin.tensors == ("grown", "same", "cast")
    said = str(trtexec_command(subject(model, plan)).content)
    assert "--layerPrecisions='exp:fp32,exp_*:fp32,same:fp32,same_*:fp32'" in said  # a Cast cannot be constrained


def test_what_hands_on_an_int8_result_is_left_alone(tmp_path: Path) -> None:
    conv = proto(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) { a = Conv(x, w) b = Identity(a) y = Tanh(b) }",
        {"w": np.ones((1, 1, 1, 1), np.float32)},
    )
    model = load(conv, tmp_path)
    name = model.layers[0].name
    said = trtexec_command(subject(model, plan_of(model, FP16, {name: INT8}), CalibrationTable({}, 1))).content
    assert isinstance(said, str)
    assert f"--layerPrecisions={name}:int8" in said
    assert "same" not in said


@pytest.mark.slow
@needs_rtx
def test_the_parser_has_a_layer_for_what_hands_on_and_it_belongs_to_the_pin(tmp_path: Path) -> None:
    model = handed_on(tmp_path)
    (answer,) = drive("parse_models", model.path)
    layers = [
        NetworkLayer(
            row["index"],
            row["name"],
            row["kind"],
            tuple(row["nodes"]),
            *(tuple(NetworkTensor(**entry) for entry in row[key]) for key in ("inputs", "outputs")),
        )
        for row in answer["layers"]
    ]
    (found,) = match_pins(pins_of(model, plan_of(model, FP16, ["exp"])), layers)
    assert {"exp", "same"} <= {layer.name for layer in found.layers}
