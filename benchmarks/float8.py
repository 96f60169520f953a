"""How products of E4M3 are added up on a GPU: `python -m benchmarks.float8 [--rows 128] [--columns 256]`.

For K products of normal data: what rounding the operands to E4M3 leaves of the true sums, and how far sums of the
rounded operands are from exact ones (float64): by ONNX Runtime's GemmFloat8, which `precisionlab fidelity` takes for
real, and by PyTorch's `_scaled_mm` with and without fast accumulation. dB of SQNR. Needs a GPU of compute capability
8.9 or newer, onnxruntime-gpu and PyTorch.
"""

from __future__ import annotations

import click
import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from precisionlab.backends.real import RealSession, real_device
from precisionlab.rewrite.builder import GraphBuilder
from precisionlab.rewrite.real_float8 import OPSET, product, rows_in_float8

LENGTHS = (64, 256, 1024, 4096, 16384)


@click.command()
@click.option("--rows", default=128, show_default=True)
@click.option("--columns", default=256, show_default=True)
@click.option("--device", default="cuda:0", show_default=True)
def main(rows: int, columns: int, device: str) -> None:
    """Print a row for each K."""
    random = np.random.default_rng(0)
    click.echo("| K | operands rounded | GemmFloat8 | _scaled_mm, fast | _scaled_mm, exact |\n|---|---|---|---|---|")
    for length in LENGTHS:
        a, b = (random.standard_normal((count, length)).astype(np.float32) for count in (rows, columns))
        low = [one.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) for one in (a, b)]
        exact, true = low[0] @ low[1].T, a.astype(np.float64) @ b.astype(np.float64).T
        found = [_decibels(true, exact), _decibels(exact, _onnxruntime(a, b, device))]
        found += [_decibels(exact, _torch(a, b, is_fast)) for is_fast in (True, False)]
        click.echo(f"| {length} | " + " | ".join(f"{one:.1f}" for one in found) + " |")


def _decibels(true: NDArray[np.float64], found: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.square(true).sum() / np.square(found - true).sum()))


def _onnxruntime(a: NDArray[np.float32], b: NDArray[np.float32], device: str) -> NDArray[np.float32]:
    builder = GraphBuilder(ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=9))
    one = np.float32(1)
    given = []
    for name, array in (("a", a), ("b", b)):
        like = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
        given.append(rows_in_float8(builder, builder.input(like, name, ir.DataType.FLOAT), one, array.shape[1]))
    graph = builder.model([product(builder, given[0], given[1], len(b), "y")])
    session = RealSession(ir.to_proto(graph).SerializeToString(), real_device(device), optimised=False)
    (found,) = session.run({"a": a, "b": b}).values()
    return np.asarray(found)


def _torch(a: NDArray[np.float32], b: NDArray[np.float32], is_fast: bool) -> NDArray[np.float32]:
    import torch

    low = [torch.from_numpy(one).cuda().to(torch.float8_e4m3fn) for one in (a, b)]
    one = torch.ones((), device="cuda")
    found = torch._scaled_mm(low[0], low[1].t(), one, one, out_dtype=torch.float32, use_fast_accum=is_fast)
    return np.asarray(found.cpu().numpy())


if __name__ == "__main__":
    main()
