"""What sums in half change, and what emulating them costs: `python -m benchmarks.sums [MODELS] [--samples 16]`.

For each model in FP16 without pins, with sums in float32, in half, and in half without tensor cores ("half-single"):
the SQNR of the worst final output and of the typical sample, the layers whose running sum passes 65504 on its way, and
whether the default tolerance still holds; and of the layers that add up most products (the largest K) what the law for
their like says, an estimate, beside their own error as emulated. `--only plans` sweeps the models with all of their
samples instead, and tells what the plan that was found is with sums in half.

Then the cost: one comparison of all layers, both kinds of error, with half sums over that with float32 sums, taken
alternately in one process, the first of each not counted (it loads the compiled loops).

The floor: a loop of our own is no MLAS. So, for single convolutions and products on one thread, in processor time: our
loop, and the same sums by nodes of ONNX (a Scan over blocks, behind what unfolds a convolution; of a depthwise one a
chain of taps), over ONNX Runtime's own operator in float32.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.comparison import plain_passes
from benchmarks.processes import in_process
from benchmarks.typed_models import files_of
from precisionlab.backends.sums.operands import product_of
from precisionlab.compare.comparison import Comparison
from precisionlab.compare.half_sums import half_sums_sqnr
from precisionlab.compare.tolerance import meets
from precisionlab.evaluate.evaluator import Evaluator
from precisionlab.evaluate.journal import NoJournal
from precisionlab.evaluate.prepare import Prepared, Source, prepare
from precisionlab.evaluate.ranges import typical_sqnr
from precisionlab.evaluate.running_sums import running_sums
from precisionlab.evaluate.values import observed_values
from precisionlab.model import Layer, Model, load_model
from precisionlab.model.contraction import BLOCK, blocks_of, products_of
from precisionlab.plan.arithmetic import TENSORRT, Sums
from precisionlab.precision import Precision
from precisionlab.report.layer_rows import layer_errors
from precisionlab.rewrite.plans import plan_for
from precisionlab.rewrite.sums import adds_up
from precisionlab.search.options import Options
from precisionlab.system.observer import Silent

MODELS = ("magika", "minilm_l3", "ppocr4_rec", "ppocr4_det", "orient", "layout", "vit_focus")
PARTS = ("figures", "cost", "loops")
_WORST = 10

Array = NDArray[Any]


@click.command()
@click.argument("models", nargs=-1)
@click.option("--samples", default=16, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", type=click.Choice([*PARTS, "plans"]), multiple=True, help="By default all but plans.")
def main(models: tuple[str, ...], samples: int, repeats: int, threads: int, only: tuple[str, ...]) -> None:
    """Print tables of MODELS (all if none is named)."""
    models, parts = models or MODELS, only or PARTS
    click.echo(f"{samples} samples, {threads} threads, medians of {repeats}")
    if "figures" in parts:
        _print_figures((name, in_process(_figures, name, samples, threads)) for name in models)
    if "cost" in parts:
        _print_costs((name, in_process(_cost, name, samples, repeats, threads)) for name in models)
    if "loops" in parts:
        _print_loops(in_process(_loops, repeats)["rows"])
    if "plans" in parts:
        for name in models:
            click.echo(in_process(_plan, name, threads)["said"])


def _opened(name: str, samples: int, threads: int) -> tuple[Prepared, Evaluator]:
    model_path, data = files_of(name)
    source = Source(data, {}, samples, 0, 0.25, False)
    ready = prepare(load_model(model_path), source, None, threads, None, Silent())
    judging = ready.judging(Options(precisions=(Precision.FP16,)).tolerance_of(Precision.FP16))
    judging = ready.with_groups(judging, NoJournal(), Silent())
    return ready, ready.evaluator(NoJournal(), Silent(), judging)


# Figures


def _figures(name: str, samples: int, threads: int) -> dict[str, Any]:
    ready, evaluator = _opened(name, samples, threads)
    model, tolerance = evaluator.model, Options().tolerance_of(Precision.FP16)
    plan = plan_for(model, Precision.FP16)
    found = {
        sums: replace(evaluator, arithmetic=replace(TENSORRT, sums=sums)).compare(
            sums.value, plan, None, introduced=True
        )
        for sums in Sums
    }
    largest = {tensor: h.amax for tensor, h in observed_values(evaluator, False, ready.local.look).histograms.items()}
    running = running_sums(evaluator, plan, largest, ready.local.look)
    end = Precision.FP16.number_format.largest
    return {
        "final": {sums.value: comparison.worst("sqnr") for sums, comparison in found.items()},
        "typical": {sums.value: typical_sqnr(comparison) for sums, comparison in found.items()},
        "met": {sums.value: meets(comparison, tolerance) for sums, comparison in found.items()},
        "summing": len(running),
        "looked_at": sum(r.largest is not None for r in running.values()),
        "passing": sum(r.largest is not None and r.largest > end for r in running.values()),
        "largest": max((r.largest for r in running.values() if r.largest is not None), default=None),
        "layers": _summing_layers(model, found),
    }


def _summing_layers(model: Model, found: dict[Sums, Comparison]) -> list[dict[str, Any]]:
    """K, blocks, law and emulated own SQNR of all layers that add up products, the largest K first."""
    rows = []
    for layer in model.layers:
        node = model.node[layer.nodes[0]]
        products, blocks = products_of(node, model.tensors), blocks_of(node, model.tensors)
        if not adds_up(node) or products is None or blocks is None:
            continue
        own = {sums.value: _own(layer, comparison) for sums, comparison in found.items()}
        rows.append({"layer": layer.name, "kind": node.op_type, "products": products, "blocks": blocks, "own": own})
    return sorted(rows, key=lambda row: -row["products"])


def _own(layer: Layer, comparison: Comparison) -> float:
    errors = layer_errors(layer, comparison.introduced)
    return math.nan if errors is None else errors.sqnr


def _print_figures(rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """A row a model as it is there, then the tables of layers."""
    click.echo("\nFP16 without pins: SQNR of the worst output, of the typical sample behind the comma, in dB\n")
    click.echo("| model | float32 sums | half | half-single | beyond 65504 / bound beyond / summing layers | turns |")
    click.echo("|---|---|---|---|---|---|")
    layers_of = {}
    for name, row in rows:
        layers_of[name] = row["layers"]
        cells = [f"{_db(row['final'][sums.value])}, {_db(row['typical'][sums.value])}" for sums in Sums]
        turns = [s.value for s in Sums if row["met"][s.value] != row["met"][Sums.FLOAT32.value]]
        largest = f" (largest {row['largest']:.3g})" if row["largest"] is not None else ""
        counts = f"{row['passing']} / {row['looked_at']} / {row['summing']}{largest}"
        click.echo(f"| {name} | {' | '.join(cells)} | {counts} | {', '.join(turns) or 'no'} |")
    for name, layers in layers_of.items():
        off = [abs(half_sums_sqnr(r["blocks"]) - r["own"]["half"]) for r in layers if math.isfinite(r["own"]["half"])]
        near = sum(distance <= 2 for distance in off)
        click.echo(f"\n{name}: {near} of {len(off)} layers within 2 dB of the law; the largest K:\n")
        click.echo("| layer | operator | K | blocks | law, dB | own, float32 sums | own, half | own, half-single |")
        click.echo("|---|---|---|---|---|---|---|---|")
        for r in layers[:_WORST]:
            own = " | ".join(_db(r["own"][sums.value]) for sums in Sums)
            law = _db(half_sums_sqnr(r["blocks"]))
            click.echo(f"| {r['layer']} | {r['kind']} | {r['products']} | {r['blocks']} | {law} | {own} |")


def _db(value: float) -> str:
    return f"{value:.1f}"


# Cost


def _cost(name: str, samples: int, repeats: int, threads: int) -> dict[str, Any]:
    _, evaluator = _opened(name, samples, threads)
    plan, every = plan_for(evaluator.model, Precision.FP16), list(evaluator.chosen)
    model_path, _ = files_of(name)
    plain = plain_passes(model_path, every, threads)

    def compared(sums: Sums) -> Callable[[], None]:
        arithmetic = replace(TENSORRT, sums=sums)

        def run() -> None:
            evaluator.backend.compare(
                plan, None, every, lambda done: None, metric=None, introduced=True, judging=evaluator.judging,
                arithmetic=arithmetic,
            )  # fmt: skip

        return run

    works = {"plain": plain, "float32": compared(Sums.FLOAT32), "half": compared(Sums.HALF)}
    for work in works.values():
        work()
    times = [{what: _times(work) for what, work in works.items()} for _ in range(repeats)]

    def median(over: str, under: str, clock: int) -> float:
        return statistics.median(found[over][clock] / found[under][clock] for found in times)

    pairs = {"ratio": ("half", "float32"), "float32": ("float32", "plain"), "half": ("half", "plain")}
    return {
        "samples": len(every),
        "plain": statistics.median(found["plain"][0] for found in times) / len(every) * 1e3,
        **{name: [median(*pair, clock) for clock in (0, 1)] for name, pair in pairs.items()},
    }


def _times(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _print_costs(rows: Iterator[tuple[str, dict[str, Any]]]) -> None:
    click.echo("\nA comparison of all layers, both kinds of error: processor seconds (by the clock)\n")
    click.echo("| model | samples | half over float32 sums | float32 sums, plain passes | half, plain passes |")
    click.echo("|---|---|---|---|---|")
    for name, row in rows:
        cells = [f"{row[what][1]:.2f} ({row[what][0]:.2f})" for what in ("ratio", "float32", "half")]
        click.echo(f"| {name} ({row['plain']:.1f} ms a pass) | {row['samples']} | {' | '.join(cells)} |")


# Loops


def _loops(repeats: int) -> dict[str, Any]:
    return {"rows": [_loop(*case, repeats) for case in _cases()]}


def _cases() -> Iterator[tuple[str, str, Array, Array, dict[str, Any]]]:
    """A name, the operator, its two operands, which half holds, and its attributes."""
    generator = np.random.default_rng(0)

    def halves(*shape: int) -> Array:
        return generator.standard_normal(shape).astype(np.float16).astype(np.float32)

    for channels, size in ((64, 56), (256, 28), (1024, 14)):
        yield f"Conv 1×1, {channels} channels", "Conv", halves(1, channels, size, size), halves(256, channels, 1, 1), {}
    for channels, size in ((64, 56), (256, 14)):
        weight = halves(channels, channels, 3, 3)
        pads = {"pads": [1, 1, 1, 1]}
        yield f"Conv 3×3, {channels} channels", "Conv", halves(1, channels, size, size), weight, pads
    for rows, products, columns in ((128, 384, 1536), (128, 1536, 384), (8, 384, 1536), (8, 1536, 384)):
        name = f"MatMul, {rows} rows, K = {products}"
        yield name, "MatMul", halves(rows, products), halves(products, columns), {}
    for taps, size in ((3, 56), (5, 28)):
        weight, around = halves(128, 1, taps, taps), [taps // 2] * 4
        attributes = {"group": 128, "pads": around}
        yield f"depthwise {taps}×{taps}, 128 channels", "Conv", halves(1, 128, size, size), weight, attributes


def _loop(name: str, op_type: str, x: Array, w: Array, attributes: dict[str, Any], repeats: int) -> dict[str, Any]:
    given = {"x": x, "w": w}
    plain = _by_nodes([helper.make_node(op_type, ["x", "w"], ["y"], **attributes)], given)
    node = ir.Node("", op_type, [ir.Value(name=n) for n in given], ir.convenience.convert_attributes(attributes))
    ours = product_of(node, Sums.HALF)
    nodes = _chain(x, w) if attributes.get("group", 1) > 1 else _scan(op_type, x, w, attributes)
    equal = float(np.mean(nodes().reshape(-1) == ours(x, w).reshape(-1)))
    works = (plain, lambda: ours(x, w), nodes)
    times = [[_shortest(work) for work in works] for _ in range(repeats)]
    return {
        "name": name,
        "ms": statistics.median(t[0] for t in times) * 1e3,
        "ours": statistics.median(t[1] / t[0] for t in times),
        "nodes": statistics.median(t[2] / t[0] for t in times),
        "equal": equal,
    }


def _shortest(work: Callable[[], Any], calls: int = 7) -> float:
    """This thread's processor seconds in the quickest of some calls: what else the machine does disturbed it least."""
    times = []
    for _ in range(calls):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def _by_nodes(nodes: Sequence[Any], given: dict[str, Array], constants: Sequence[Any] = ()) -> Callable[[], Array]:
    """Runs nodes that give `y` of some arrays, on one thread. The second operand is a constant, as a weight is."""
    weights = [numpy_helper.from_array(given["w"], "w")] if "w" in given else []
    taken = {name: array for name, array in given.items() if name != "w"}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in taken.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", infos, [out], [*weights, *constants])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> Array:
        found: Array = session.run(["y"], taken)[0]
        return found

    return run


def _to_half(name: str, out: str) -> list[Any]:
    return [
        helper.make_node("Cast", [name], [f"{name}_half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}_half"], [out], to=TensorProto.FLOAT),
    ]


def _scan(op_type: str, x: Array, w: Array, attributes: dict[str, Any]) -> Callable[[], Array]:
    """A Scan over blocks of 16 products: rows (M, K) times columns (K, N), which are made of a convolution's input."""
    rows, columns = (w.reshape(len(w), -1), x) if op_type == "Conv" else (w.T, x.T)
    before, constants = [helper.make_node("Transpose", ["x"], ["columns"])], []
    behind = [helper.make_node("Transpose", ["sums"], ["y"])]
    if op_type == "Conv":
        rows = np.moveaxis(w.reshape(*w.shape[:2], -1), 1, 2).reshape(len(w), -1)
        before, constants = _unfolding(x, w.shape[2])
        columns, behind = np.empty((rows.shape[1], x[0, 0].size)), [helper.make_node("Identity", ["sums"], ["y"])]
    assert rows.shape[1] % BLOCK == 0
    lefts = np.ascontiguousarray(rows.reshape(len(rows), -1, BLOCK).transpose(1, 0, 2))
    shapes = {"sum": (len(rows), columns.shape[1]), "left": lefts.shape[1:], "right": (BLOCK, columns.shape[1])}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["left", "right"], ["product"]),
            helper.make_node("Add", ["sum", "product"], ["added"]),
            *_to_half("added", "next"),
        ],
        "body",
        infos,
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, shapes["sum"])],
    )
    constants += [
        numpy_helper.from_array(lefts, "lefts"),
        numpy_helper.from_array(np.zeros(shapes["sum"], np.float32), "zero"),
        numpy_helper.from_array(np.array([len(lefts), *shapes["right"]], np.int64), "blocks"),
    ]
    blocks = helper.make_node("Reshape", ["columns", "blocks"], ["rights"])
    scan = helper.make_node("Scan", ["zero", "lefts", "rights"], ["sums"], num_scan_inputs=2, body=body)
    return _by_nodes([*before, blocks, scan, *behind], {"x": x}, constants)


def _unfolding(x: Array, taps: int) -> tuple[list[Any], list[Any]]:
    """Nodes that give what each output of a stride-1 convolution takes as `columns`, taps outside, and constants."""
    if taps == 1:
        return [helper.make_node("Identity", ["x"], ["columns"])], []
    nodes, constants = _windows(taps, x.shape[2])
    nodes.append(helper.make_node("Concat", [f"x{at}" for at in range(taps * taps)], ["columns"], axis=1))
    return nodes, constants


def _windows(taps: int, size: int) -> tuple[list[Any], list[Any]]:
    """Nodes that give the input at each tap, x0, x1, …, with zeros around it so that as many places come out."""
    pad = taps // 2
    named = {"pads": [0, 0, pad, pad, 0, 0, pad, pad], "axes": [2, 3]}
    nodes = [helper.make_node("Pad", ["x", "pads"], ["wide"])]
    for at, (i, j) in enumerate(np.ndindex(taps, taps)):
        named |= {f"from{at}": [i, j], f"to{at}": [i + size, j + size]}
        nodes.append(helper.make_node("Slice", ["wide", f"from{at}", f"to{at}", "axes"], [f"x{at}"]))
    return nodes, [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in named.items()]


def _chain(x: Array, w: Array) -> Callable[[], Array]:
    """A depthwise convolution as a chain of taps, each rounded to half."""
    taps = w.shape[2] ** 2
    nodes, constants = _windows(w.shape[2], x.shape[2])
    for at, weight in enumerate(w.reshape(len(w), taps).T):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(weight.reshape(1, -1, 1, 1)), f"w{at}"))
        nodes.append(helper.make_node("Mul", [f"x{at}", f"w{at}"], [f"p{at}" if at else "s0"]))
        if at:
            nodes.append(helper.make_node("Add", [f"r{at - 1}", f"p{at}"], [f"s{at}"]))
        nodes += _to_half(f"s{at}", f"r{at}" if at < taps - 1 else "y")
    return _by_nodes(nodes, {"x": x}, constants)


def _print_loops(rows: Sequence[dict[str, Any]]) -> None:
    click.echo("\nOver ONNX Runtime's operator in float32, on one thread\n")
    click.echo("| operator | float32, ms | our loop, half sums | by nodes of ONNX | their bits that are equal |")
    click.echo("|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['ms']:.2f} | {row['ours']:.1f} × | {row['nodes']:.1f} × | {row['equal']:.2%}"
        click.echo(f"| {row['name']} | {cells} |")


# Plans


def _plan(name: str, threads: int) -> dict[str, Any]:
    import precisionlab

    model, data = files_of(name)
    with tempfile.TemporaryDirectory() as folder:
        result = precisionlab.sweep(model, data, precisions="fp16", out=Path(folder) / "run", threads=threads)
    found = result.precisions[0]
    lines = [f"\n{name}: {found.verdict.sentence}"]
    for variant in [found.low] if found.mixed is found.low else [found.low, found.mixed]:
        others = (f"{a.comparison.worst('sqnr'):.1f} dB {a.kind.words}" for a in variant.alternatives)
        figures = ", ".join([f"{variant.comparison.worst('sqnr'):.1f} dB", *others])
        lines.append(f"  {variant.name}, {len(variant.plan.pins)} pins: {figures}")
    return {"said": "\n".join(lines)}


if __name__ == "__main__":
    main()
