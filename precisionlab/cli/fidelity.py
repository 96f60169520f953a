"""`precisionlab fidelity`: how true is the emulation, held against real low precision?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from precisionlab.cli.engines import build_options, build_options_of
from precisionlab.cli.help import Command
from precisionlab.cli.verbosity import verbosity_options

if TYPE_CHECKING:
    from precisionlab.results.fidelity import FidelityFindings, PrecisionFidelity


@click.command(
    "fidelity",
    cls=Command,
    short_help="Hold the emulation against real kernels.",
    examples={
        "model.onnx --data samples/": "against the half kernels of ONNX Runtime on a GPU",
        "model.onnx --data samples/ --against tensorrt": "against engines",
    },
)
@click.argument("model", type=click.Path(path_type=str))
@click.option("--data", required=True, type=click.Path(), help="Folder of samples, or a hook package.module:function.")
@click.option("--precisions", default="fp16,bf16,int8", show_default=True, help="Precisions to compare.")
@click.option(
    "--against",
    default="cuda",
    show_default=True,
    help="What is real: cuda (ONNX Runtime; int8 as integers on the CPU), tensorrt, tensorrt-rtx.",
)
@click.option("--device", default="cuda:0", show_default=True, help="The GPU that fp16, bf16 and fp8 run on.")
@click.option(
    "--layers",
    help="patterns, as a sweep has them, or nodes: nothing is fused on either side.  "
    "[default: nodes, against engines patterns]",
)
@click.option(
    "--kernels",
    help="Whose rounding inside of layers in half is emulated: tensorrt, as a sweep has it, or onnxruntime (CUDA's).  "
    "[default: against cuda onnxruntime, else tensorrt]",
)
@click.option(
    "--sums",
    default="float32",
    show_default=True,
    help="What TensorRT's kernels in half keep sums in: float32, half, half-single.",
)
@build_options
@click.option("--samples", type=int, help="Use so many samples, chosen by the seed.")
@click.option("--seed", default=0, show_default=True, help="Seed of that choice.")
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used, and say which.")
@click.option("--threads", type=int, help="Threads to use.  [default: all processors]")
@click.option("--out", type=click.Path(), help="Where the files go.  [default: reports/<model>-fidelity]")
@verbosity_options
@click.pass_context
def fidelity_command(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    precisions: str,
    against: str,
    device: str,
    layers: str | None,
    kernels: str | None,
    sums: str,
    samples: int | None,
    seed: int,
    skip_bad: bool,
    threads: int | None,
    out: str | None,
    **engine: Any,
) -> None:
    """Hold the emulation of MODEL against real low-precision arithmetic, layer by layer, without pins.

    Writes fidelity.json, fidelity.csv and fidelity.html. Exits with 0 where all goals are met, 1 where one is missed,
    2 where this machine has no such arithmetic.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.fidelity import fidelity

    with progress() as observer:
        result = fidelity(
            model,
            data,
            precisions=precisions,
            against=against,
            device=device,
            layers=layers,
            kernels=kernels,
            sums=sums,
            samples=samples,
            seed=seed,
            threads=threads,
            skip_bad=skip_bad,
            out=out,
            engine=build_options_of(engine),
            observer=observer,
        )
    print_fidelity(result, sys.stdout)
    ctx.exit(1 if any(goal.met is False for found in result.found for goal in found.goals) else 0)


def print_fidelity(result: FidelityFindings, stream: TextIO) -> None:
    """Print tables that fit 80 columns."""
    from precisionlab.cli.summary import console_for

    console = console_for(stream)
    facts = result.facts
    gpu = f" ({facts['gpu']})" if facts["gpu"] else ""
    console.print(f"{result.model}: emulation against {facts['against']}{gpu}, {facts['data']['samples']} samples")
    for found in result.found:
        console.print()
        _print_precision(console, found)
    console.print()
    console.print(f"Report: {result.folder / 'fidelity.html'}")


def _print_precision(console: object, found: PrecisionFidelity) -> None:
    from rich.console import Console
    from rich.table import Table

    from precisionlab.report.cells import show

    assert isinstance(console, Console)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{found.precision} on {found.device}", no_wrap=True)
    table.add_column("found", justify="right")
    table.add_column("wanted", justify="right")
    table.add_column("")
    for goal in found.goals:
        wanted = f"≥ {goal.least:g}" if goal.least is not None else f"≤ {goal.most:g}"
        verdict = {True: "met", False: "MISSED", None: "no figure"}[goal.met]
        table.add_row(goal.name, show(goal.figure, ".4g"), wanted, verdict)
    console.print(table)
    emulated, real = found.final
    optimised = "" if found.optimised is None else f", {show(found.optimised, '.1f')} real and optimised"
    console.print(f"final SQNR dB: {show(emulated, '.1f')} emulated, {show(real, '.1f')} real{optimised}")
    typical = " emulated, ".join(show(value, ".1f") for value in found.typical)
    console.print(f"typical sample: {typical} real")
    if found.optimised is None:
        console.print(f"not run optimised: {found.optimised_note}")
    for name, agreed in (("introduced", found.introduced), ("inherited", found.inherited)):
        if agreed is not None:
            broken, exact = "/".join(map(str, agreed.broken)), "/".join(map(str, agreed.exact))
            console.print(
                f"{name}: median difference {show(agreed.median_db, '.2f')} dB over {agreed.finite} of "
                f"{agreed.tensors} tensors; NaN or −∞ {broken}, ∞ {exact}"
            )
    mine, theirs, both = found.only
    console.print(f"NaN or Inf: {both} tensors on both sides, {len(mine)} emulated alone, {len(theirs)} real alone")
    if found.unsupported:
        reasons = "; ".join(dict.fromkeys(found.unsupported.values()))
        console.print(f"float32 on both sides: {len(found.unsupported)} of {found.layers} layers ({reasons})")
