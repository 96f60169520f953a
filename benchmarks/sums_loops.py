"""The floor of `benchmarks.sums`: a loop of our own is no MLAS.

For single convolutions and products on one thread, in processor time: our loop with sums in half, and the same sums by
nodes of ONNX (a Scan over blocks, behind what unfolds a convolution; of a depthwise one a chain of taps), over ONNX
Runtime's own operator in float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from precisionlab.backends.sums.operands import product_of
from precisionlab.model.contraction import BLOCK
from precisionlab.plan.arithmetic import Sums

Array = NDArray[Any]


def loops(repeats: int) -> dict[str, Any]:
    """Under `rows` what was measured of each operator."""
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


def print_loops(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    click.echo("\nOver ONNX Runtime's operator in float32, on one thread\n")
    click.echo("| operator | float32, ms | our loop, half sums | by nodes of ONNX | their bits that are equal |")
    click.echo("|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['ms']:.2f} | {row['ours']:.1f} × | {row['nodes']:.1f} × | {row['equal']:.2%}"
        click.echo(f"| {row['name']} | {cells} |")
