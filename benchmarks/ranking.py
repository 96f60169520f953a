"""What layers are best ranked by: pins, plans evaluated and proof of the same search under each measure.

    python -m benchmarks.ranking examples/prepared/*/ --samples 8

Each line is one search for pins, in emulation, on random encoders with outlier channels and on the models given
(folders with ID.onnx and data/). `alone` is the error that a layer alone leaves in the worst output, `gain` the error
that should go with it if errors added up (2 Σ D·d − Σ d², D the whole variant's error), `sum` both. The searches of a
model share their comparisons: times are those of what is new.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from precisionlab.calibration.table import CalibrationTable
from precisionlab.compare.sensitivity import Sensitivity
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Source, prepare
from precisionlab.evaluate.ranges import chosen_ranges, ranges_by_method
from precisionlab.model import Model, load_model
from precisionlab.precision import Precision
from precisionlab.rewrite.plans import plan_for
from precisionlab.search.cost import CostModel
from precisionlab.search.devices import find_device
from precisionlab.search.options import Options
from precisionlab.search.pinning import PinSearch, Task
from precisionlab.search.rank import Measure, relative_error, relative_gain
from precisionlab.system.observer import Silent


def both(outputs: Mapping[str, Sensitivity]) -> float:
    """Alone and gain together."""
    return relative_error(outputs) + max(0.0, relative_gain(outputs))


MEASURES: Mapping[str, Measure] = {"alone": relative_error, "gain": relative_gain, "sum": both}


def encoder(folder: Path, layers: int, width: int, seed: int) -> Path:
    """An encoder of `layers` blocks: attention without heads, and a perceptron, with outlier channels in its norms."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        weight = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(math.sqrt(rows))
        return node("MatMul", [x, constant(f"{name}.w", weight)], name)

    def norm(x: str, name: str) -> str:
        scale = np.ones(width, np.float32)
        scale[rng.integers(0, width, 3)] = 12
        return node("LayerNormalization", [x, constant(f"{name}.g", scale)], name, axis=-1)

    x = norm("x", "n")
    for i in range(layers):
        q, k, v = (linear(x, f"{i}.{part}", width, width) for part in "qkv")
        scores = node("MatMul", [q, node("Transpose", [k], f"{i}.kt", perm=[0, 2, 1])], f"{i}.qk")
        scaled = node("Mul", [scores, constant(f"{i}.s", np.float32(1 / math.sqrt(width)))], f"{i}.scaled")
        mixed = node("MatMul", [node("Softmax", [scaled], f"{i}.p", axis=-1), v], f"{i}.pv")
        x = norm(node("Add", [linear(mixed, f"{i}.o", width, width), x], f"{i}.r1"), f"{i}.n1")
        inner = node("Relu", [linear(x, f"{i}.f1", width, 4 * width)], f"{i}.relu")
        x = norm(node("Add", [linear(inner, f"{i}.f2", 4 * width, width), x], f"{i}.r2"), f"{i}.n2")
    node("MatMul", [x, constant("head", rng.standard_normal((width, 64), dtype=np.float32))], "y")
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", floats, [1, 16, width])],
        [helper.make_tensor_value_info("y", floats, [1, 16, 64])],
        constants,
    )
    (folder / "data").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    for i in range(16):
        np.save(folder / "data" / f"{i:02d}.npy", rng.standard_normal((1, 16, width), dtype=np.float32))
    return folder / "model.onnx"


def opened(path: Path, samples: int | None, options: Options) -> tuple[Model, Evaluator, CostModel]:
    """The model with an evaluator on its samples, of which a quarter is held out, and what its plans cost."""
    model = load_model(path)
    ready = prepare(model, Source(path.parent / "data", {}, samples, 0, 0.25, False), None, None, None, Silent())
    judging = ready.judging(*map(options.tolerance_of, options.precisions))
    judging = ready.with_groups(judging, NoJournal(), Silent())
    return model, ready.evaluator(NoJournal(), Silent(), judging), CostModel(ready.backend.model, find_device("a100"))


def ranges_of(evaluator: Evaluator, precision: Precision) -> CalibrationTable | None:
    """INT8's ranges by entropy; None of floats."""
    if precision is not Precision.INT8:
        return None
    return chosen_ranges(evaluator, ranges_by_method(evaluator, precision), "entropy").table


def measured(path: Path, samples: int, precisions: list[Precision]) -> None:
    """A line for each precision and measure."""
    options = Options(precisions=tuple(precisions))
    model, evaluator, cost = opened(path, samples, options)
    for precision in precisions:
        table = ranges_of(evaluator, precision)
        for name, measure in MEASURES.items():
            for minimum in [20.0, 30.0] if precision is Precision.INT8 else [30.0, 60.0]:
                asked = replace(
                    options, tolerance=tuple(replace(b, value=minimum) for b in options.tolerance_of(precision))
                )
                started = time.perf_counter()
                low = plan_for(model, precision, table)
                found = PinSearch(Task(evaluator, asked, cost, low, table, measure=measure)).run()
                if found.mixed is found.low and found.low.met:
                    continue
                proven = found.certificate is not None and found.certificate.proven
                print(
                    f"{path.parent.name:16} {precision.value:5} {minimum:3.0f} dB  {name:6} "
                    f"{len(found.plan.pins):4} pins {found.evaluations:4} plans  "
                    f"{'met' if found.mixed.met else 'NOT met':8} {'proven' if proven else '':7}"
                    f"{time.perf_counter() - started:6.0f} s",
                    flush=True,
                )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--precisions", default="fp16,int8")
    asked = parser.parse_args()
    precisions = [Precision.parse(text) for text in asked.precisions.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        for seed, (layers, width) in enumerate([(3, 64), (4, 96), (6, 48)]):
            measured(encoder(Path(scratch) / f"encoder{layers}x{width}", layers, width, seed), 16, precisions)
        for folder in asked.folders:
            measured(folder / f"{folder.name}.onnx", asked.samples, precisions)


if __name__ == "__main__":
    main()
