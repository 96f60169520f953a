"""`precisionlab repair`: a model rewritten so that it does not break in a low precision."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from precisionlab.cli.help import Command
from precisionlab.cli.verbosity import verbosity_options

if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console

    from precisionlab.jobs.repair import RepairResult


_CAUSES = 8


@click.command(
    "repair",
    cls=Command,
    short_help="Rewrite what breaks into what does not, without pins.",
    examples={
        "model.onnx --data samples/": "write model.repaired.onnx, which is right in FP16",
        "model.onnx --data samples/ --precision int8": "move outlier channels into weights",
        "model.onnx --data samples/ --precision fp8 --around fp16": "what breaks in FP16 around FP8",
    },
)
@click.argument("model", type=click.Path())
@click.option("--data", required=True, type=click.Path(), help="The samples: a folder, or a Python function.")
@click.option("--out", type=click.Path(), help="The repaired model.  [default: MODEL.repaired.onnx in this folder]")
@click.option("--precision", help="What it is to be right in: a half or quantized precision.  [default: fp16]")
@click.option(
    "--around", help="Of a quantized one the precision of the layers around.  [default: fp32, around int4 fp16]"
)
@click.option("--tolerance", multiple=True, help="What right is, such as sqnr>=30; may be given again.")
@click.option("--samples", type=int, help="Use so many of the samples.")
@click.option("--seed", default=0, show_default=True, help="Which samples are taken.")
@click.option("--holdout", default="25%", show_default=True, help="The share of samples that choose nothing.")
@click.option("--metric", metavar="SPEC", help="A task metric of your own, package.module:name.")
@click.option("--skip-bad", is_flag=True, help="Go on past samples that cannot be used.")
@click.option("--threads", type=int, help="Threads to use.  [default: all processors]")
@click.option(
    "--memory", metavar="SIZE", help="Memory that may be taken, such as 4G.  [default: half of the machine's]"
)
@verbosity_options
@click.pass_context
def repair_command(
    ctx: click.Context,
    /,
    model: str,
    data: str,
    out: str | None,
    precision: str | None,
    around: str | None,
    tolerance: tuple[str, ...],
    samples: int | None,
    seed: int,
    holdout: str,
    metric: str | None,
    skip_bad: bool,
    threads: int | None,
    memory: str | None,
) -> None:
    """Rewrite what breaks in MODEL in a low precision into an equivalent that does not, in place of pinning it to FP32.

    Exits with 0 where the model is right then (or was), with 1 where it is not, with 2 for input that cannot be used.
    """
    from precisionlab.cli.progress import progress
    from precisionlab.jobs.repair import repair

    with progress() as observer:
        found = repair(
            model, data, precision=precision, around=around, tolerance=tolerance, out=out, samples=samples, seed=seed,
            holdout=holdout, metric=metric, skip_bad=skip_bad, threads=threads, memory=memory, observer=observer,
        )  # fmt: skip
    _print(found, sys.stdout)
    ctx.exit(0 if found.met else 1)


def _print(found: RepairResult, stream: TextIO) -> None:
    """What was repaired and what that did, and the verdict."""
    from rich.table import Table

    from precisionlab.cli.console import shortened
    from precisionlab.cli.summary import console_for
    from precisionlab.rewrite.repairs import PASSES
    from precisionlab.system.wording import counted, number

    console = console_for(stream)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("figures are emulated", "as it is", "repaired"):
        table.add_column(title, justify="left" if title.startswith("figures") else "right")
    for name, value in found.before.values.items():
        table.add_row(name, number(value, 4), number(found.after.values[name], 4))
        if found.held_out is not None:
            held = found.held_out
            table.add_row(f"{name}, held out", number(held[0].values[name], 4), number(held[1].values[name], 4))
    table.add_row("tensors with new NaN or Inf", str(found.before.nonfinite), str(found.after.nonfinite))
    console.print(table)
    for one in found.found.repairs:
        console.print(
            f"  {one.kind}: {PASSES[one.kind].title}, at {shortened(one.nodes[0], 60)} ({one.exactness.value})"
        )
        for condition in one.conditions:
            console.print(f"      {condition}", style="dim")
    if found.same is not None:
        console.print(f"in float32 it gives what the original gives, {found.same.words}")
    bounds = ", ".join(map(str, found.tolerance))
    if not found.found.repairs and found.met and found.causes:
        console.print(
            f"{found.precision}: right as it is ({bounds}), where constants that it cannot hold are clamped, as "
            "TensorRT's builder does; no repair makes it right where they are not:",
            style="bold yellow",
        )
        _print_causes(found, console)
        return
    if not found.found.repairs and found.met:
        console.print(f"{found.precision}: right as it is ({bounds}): nothing to repair", style="bold green")
        return
    if found.met:
        console.print(
            f"{found.precision}: right with {counted(len(found.found.repairs), 'repair')}, without a pin ({bounds})",
            style="bold green",
        )
    elif found.found.repairs:
        console.print(
            f"{found.precision}: better, and NOT right yet ({bounds}); sweep the repaired model", style="bold red"
        )
    else:
        console.print(f"{found.precision}: NOT right ({bounds}), and no repair helps; pin with sweep", style="bold red")
        _print_causes(found, console)
    if found.file is not None:
        console.print(f"Repaired: {found.file}")


def _print_causes(found: RepairResult, console: Console) -> None:
    """Why it breaks, of the first few layers."""
    from precisionlab.cli.console import shortened

    for layer, why in list(found.causes.items())[:_CAUSES]:
        console.print(f"  {shortened(layer, 60)}: {why}")
    if len(found.causes) > _CAUSES:
        console.print(f"  and {len(found.causes) - _CAUSES} more")
