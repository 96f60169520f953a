"""The export for ModelOpt says which of the plan's int8 layers really become int8 there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import load, plan_for, proto

from precisionlab.export.modelopt_rules import left_alone
from precisionlab.jobs.export import export_plan
from precisionlab.model import Model
from precisionlab.precision import Precision

RNG = np.random.default_rng(0)
# What ModelOpt 0.47.0 made of these when it was run: node → whether its two operands came out of a DequantizeLinear.
NET = """(float[{batch},3,16,16] x) => (float[{batch},10] y) {{
    a = Conv<pads=[1,1,1,1]>(x, w0) b = Conv<pads=[1,1,1,1]>(a, w1) g = GlobalAveragePool(b) f = Flatten(g)
    h = Gemm<transB=1>(f, wg, bg) y = MatMul(h, wm) }}"""
SHAPES = {"w0": (16, 3, 3, 3), "w1": (32, 16, 3, 3), "wg": (32, 32), "bg": (32,), "wm": (32, 10)}
ODD = """(float[N,3,16,16] x) => (float[N,32] y, float[N,8,32] z) {
    a = Conv<pads=[1,1,1,1]>(x, w0) b = Conv<pads=[1,1,1,1]>(a, w1) c = Conv<pads=[1,1,1,1]>(b, w2)
    d = Conv<pads=[1,1,1,1], group=16>(c, w3) e = Conv<pads=[0,1,0,1], group=16>(d, w4) k = Conv<pads=[0,1,0,1]>(e, w5)
    l = Conv(k, w6) p = GlobalAveragePool(l) f = Flatten(p) y = MatMul(f, wm) r = Reshape(f, s) z = MatMul(r, wk) }"""
ODD_SHAPES = {
    **{"w0": (6, 3, 3, 3), "w1": (8, 6, 3, 3), "w2": (16, 8, 3, 3), "w3": (16, 1, 3, 3), "w4": (16, 1, 1, 3)},
    **{"w5": (8, 16, 1, 3), "w6": (32, 8, 1, 1), "wm": (32, 32), "wk": (4, 32)},
}
DOUBLE = """
import sys
import onnx
from onnx import helper, numpy_helper
import numpy as np
words = dict(w.split("=", 1) for w in sys.argv[1:] if "=" in w)
model = onnx.load(words["--onnx_path"])
graph = model.graph
graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
for node in list(graph.node):
    if node.op_type == "Gemm":  # the others it leaves alone
        for place in (0, 1):
            name = f"{node.name}_{place}"
            at = list(graph.node).index(node)
            graph.node.insert(at, helper.make_node("DequantizeLinear", [name + "_q", "one"], [name]))
            graph.node.insert(at, helper.make_node("QuantizeLinear", [node.input[place], "one"], [name + "_q"]))
            node.input[place] = name
onnx.save(model, words["--output_path"])
"""


def made(body: str, shapes: dict[str, tuple[int, ...]], folder: Path) -> Model:
    weights = {name: RNG.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    model = proto(body, {**weights, **({"s": np.array([-1, 8, 4])} if body is ODD else {})})
    for node in model.graph.node:
        node.name = f"node_of_{node.output[0]}"
    return load(model, folder)


@pytest.mark.parametrize(
    ("batch", "alone"),
    [(1, {"node_of_h": "one row", "node_of_y": "one row"}), (8, {"node_of_y": "10 columns"})],
)
def test_products_of_one_row_or_few_columns_are_left_alone(batch: int, alone: dict[str, str], tmp_path: Path) -> None:
    model = made(NET.format(batch=batch), SHAPES, tmp_path)
    found = left_alone(model, [layer.nodes[0] for layer in model.layers if layer.quantizable])
    assert found.keys() == alone.keys()
    assert all(alone[node] in reason for node, reason in found.items())


def test_convolutions_of_few_channels_are_left_alone(tmp_path: Path) -> None:
    model = made(ODD, ODD_SHAPES, tmp_path)
    nodes = [layer.nodes[0] for layer in model.layers if layer.quantizable]
    found = left_alone(model, nodes)
    assert [node for node in nodes if node not in found] == ["node_of_c", "node_of_k", "node_of_l"]
    assert "sums of 4 products" in found["node_of_z"]


def exported(folder: Path, batch: int = 8) -> tuple[dict[str, object], str]:
    """What the export says was made, and its last note."""
    model = made(NET.format(batch=batch), SHAPES, folder)
    (folder / "plan.json").write_text(json.dumps(replace(plan_for(model, Precision.INT8), calibration="max").to_dict()))
    (folder / "data").mkdir()
    np.save(folder / "data" / "0.npy", RNG.standard_normal((batch, 3, 16, 16)).astype(np.float32))
    out = folder / "out" / "modelopt.json"
    done = export_plan(folder / "plan.json", "modelopt", out=out, model=model.path, data=folder / "data")
    said: dict[str, object] = json.loads(out.read_text())["made"]
    return said, done.notes[-1]


def test_without_modelopt_it_is_said_by_its_source(tmp_path: Path) -> None:
    said, note = exported(tmp_path)
    assert said["quantized"] == ["node_of_a", "node_of_b", "node_of_h"]
    assert note.startswith(
        "ModelOpt is not installed here to try; by the source of 0.47 it quantises 3 of 4 layers that"
    )
    assert note.endswith("and leaves alone node_of_y (a product with 10 columns, fewer than 16)")


def installed(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of ModelOpt that this Python finds."""
    room = folder / "site"
    package = room / "modelopt" / "onnx" / "quantization"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(code)
    info = room / "nvidia_modelopt-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-modelopt\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(room))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(room), *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_where_it_is_installed_its_result_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(DOUBLE, tmp_path, monkeypatch)
    said, note = exported(tmp_path)
    assert (said["how"], said["quantized"]) == ("ModelOpt 9.9, run", ["node_of_h"])
    assert note == (
        "ModelOpt 9.9, run here, quantises 1 of 4 layers that the plan has in int8, and leaves alone node_of_a; "
        "node_of_b; node_of_y (a product with 10 columns, fewer than 16)"
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["calibration.cache", "modelopt.json"]


def test_where_it_fails_its_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("raise SystemExit('no such thing')", tmp_path, monkeypatch)
    said, note = exported(tmp_path)
    assert said["how"] == "by the source of 0.47"
    assert note.startswith("ModelOpt 9.9 fails here (no such thing); by the source of 0.47 it quantises 3 of 4 layers")
